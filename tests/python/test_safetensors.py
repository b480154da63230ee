"""The safetensors reader and writer.

Oracle: files put together byte by byte here from the format's description, and the arrays that were written.
"""

from __future__ import annotations

import json
import os
import tracemalloc

import numpy as np
import pytest
from gptoss_native.checkpoint.safetensors import SafetensorsFile
from gptoss_native.checkpoint.safetensors_writer import TensorSource, write_safetensors
from gptoss_native.errors import CheckpointError

from tests.checkpoints import safetensors_bytes


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def open_bytes(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return SafetensorsFile(path)


def test_reads_bytes_in_place(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "second": entry("U8", [2, 2], 6, 10),
        "first": entry("BF16", [3], 0, 6),
        "empty": entry("F32", [0, 7], 6, 6),
        "scalar": entry("F32", [], 10, 14),
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as every writer does, so that the data is aligned
    file = open_bytes(tmp_path, safetensors_bytes(text, bytes(range(1, 15))))
    assert list(file.tensors) == ["first", "empty", "second", "scalar"]
    first, second = file.array(file.tensors["first"]), file.array(file.tensors["second"])
    np.testing.assert_array_equal(first, np.array([0x0201, 0x0403, 0x0605], np.uint16))
    np.testing.assert_array_equal(second, np.array([[7, 8], [9, 10]], np.uint8))
    assert not first.flags.writeable
    assert not first.flags.owndata
    assert second.ctypes.data == file.address() + file.tensors["second"].begin


def test_misaligned_tensor_is_still_right(tmp_path):
    header = {"byte": entry("U8", [1], 0, 1), "number": entry("BF16", [2], 1, 5)}
    text = json.dumps(header).encode()
    # Whether the data begins at an even byte depends on the header's length: one of these two is misaligned.
    for number, padding in enumerate((b"", b" ")):
        (tmp_path / str(number)).mkdir()
        opened = open_bytes(tmp_path / str(number), safetensors_bytes(text + padding, bytes([9, 1, 2, 3, 4])))
        array = opened.array(opened.tensors["number"])
        np.testing.assert_array_equal(array, np.array([0x0201, 0x0403], np.uint16))
        assert array.flags.aligned
        assert not array.flags.writeable


def test_array_outlives_the_file_object(tmp_path):
    file = open_bytes(tmp_path, safetensors_bytes({"a": entry("U8", [4], 0, 4)}, b"\1\2\3\4"))
    array = file.array(file.tensors["a"])
    del file
    assert array.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found 0 bytes"),
        (b"1234567", "found 7 bytes"),
        (safetensors_bytes(b"{}", length=3), "header is 3 bytes long, but only 2 follow"),
        (safetensors_bytes(b"{}", length=100_000_001), "at most 100,000,000, found 100,000,001"),
        (safetensors_bytes(b"{}", length=2**64 - 1), "at most 100,000,000"),
        (safetensors_bytes(b""), "must start with '{'"),
        (safetensors_bytes(b" {}"), "must start with '{'"),
        (safetensors_bytes(b"[]"), "must start with '{'"),
        (safetensors_bytes(b"{} {}"), "not valid JSON"),
        (safetensors_bytes(b'{"a": \xff}'), "byte 6 is not valid UTF-8"),
        (safetensors_bytes(b'{"a": 1, "a": 1}'), "'a' appears twice"),
        (safetensors_bytes(b'{"a": NaN}'), "NaN is not a JSON number"),
        (safetensors_bytes(b'{"a": -Infinity}'), "-Infinity is not a JSON number"),
        (safetensors_bytes(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
        (safetensors_bytes(b'{"a":' + b"9" * 5000 + b"}"), "model.safetensors: "),
        (safetensors_bytes({"__metadata__": {"n": 1}}), "__metadata__ must map strings to strings"),
        (safetensors_bytes({"__metadata__": []}), "__metadata__ must map strings to strings"),
        (safetensors_bytes({"a": []}), "must have exactly dtype, shape and data_offsets"),
        (safetensors_bytes({"a": {"dtype": "U8", "shape": [0]}}), "must have exactly"),
        (safetensors_bytes({"a": {**entry("U8", [0], 0, 0), "x": 1}}), "must have exactly"),
        (safetensors_bytes({"a": entry("U7", [0], 0, 0)}), "dtype 'U7'"),
        (safetensors_bytes({"a": entry(["U8"], [0], 0, 0)}), r"dtype ['U8']"),
        (safetensors_bytes({"a": entry("U8", 4, 0, 4)}, b"1234"), "shape 4"),
        (safetensors_bytes({"a": entry("U8", [True], 0, 1)}, b"1"), "shape [True]"),
        (safetensors_bytes({"a": entry("U8", [1.0], 0, 1)}, b"1"), "shape [1.0]"),
        (safetensors_bytes({"a": entry("U8", [-1, -4], 0, 4)}, b"1234"), "shape [-1, -4]"),
        (safetensors_bytes({"a": entry("U8", [1] * 17, 0, 1)}, b"1"), "at most 16 whole numbers"),
        (safetensors_bytes({"a": entry("U8", [2**62, 4], 0, 0)}), "its data_offsets hold 0"),
        (safetensors_bytes({"a": entry("U8", [2**63], 0, 0)}), "whole numbers"),
        (safetensors_bytes({"a": entry("U8", [4], 4, 0)}, b"1234"), "begin <= end"),
        (safetensors_bytes({"a": entry("U8", [4], -4, 0)}, b"1234"), "begin <= end"),
        (safetensors_bytes({"a": entry("U8", [4], 0, None)}, b"1234"), "begin <= end"),
        (safetensors_bytes({"a": entry("U8", [4], 0, 4) | {"data_offsets": [0]}}, b"1234"), "offsets [0]"),
        (safetensors_bytes({"a": entry("BF16", [4], 0, 4)}, b"1234"), "needs 8 bytes for BF16 [4], its"),
        (safetensors_bytes({"a": entry("F4", [3], 0, 1)}, b"1"), "data_offsets hold 1"),
        (safetensors_bytes({"a": entry("U8", [4], 0, 4)}, b"123"), "of tensors, the file holds 3"),
        (safetensors_bytes({"a": entry("U8", [4], 0, 4)}, b"12345"), "of tensors, the file holds 5"),
        (safetensors_bytes({"a": entry("U8", [3], 1, 4)}, b"1234"), "offset 0 of the data, found 1 (a gap)"),
        (
            safetensors_bytes({"a": entry("U8", [3], 0, 3), "b": entry("U8", [2], 2, 4)}, b"1234"),
            "tensor 'b' must start at offset 3 of the data, found 2 (overlap)",
        ),
        (safetensors_bytes({"n" * 1025: entry("U8", [0], 0, 0)}), "name of 1,025 characters"),
        (safetensors_bytes({"\ud800": entry("U8", [1], 0, 0)}), r"tensor '\ud800'"),
    ],
)  # fmt: skip
def test_refuses(tmp_path, content, message):
    with pytest.raises(CheckpointError) as caught:
        open_bytes(tmp_path, content)
    text = str(caught.value)
    assert message in text
    assert "model.safetensors" in text
    assert "\n" not in text
    assert len(text) < 500 + len(str(tmp_path))


def test_inflating_header_is_refused_before_it_is_parsed(tmp_path):
    content = safetensors_bytes(b'{"a":[' + b"[]," * 3_000_000 + b"[]]}")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="more than 300,000 objects and lists"):
        open_bytes(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(content)


def test_folders_pipes_and_missing_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "regular file"),
        (tmp_path / "pipe", "regular file"),
        (tmp_path / "no", "opened"),
    ):
        with pytest.raises(CheckpointError, match=message):
            SafetensorsFile(path)


def test_change_while_open_is_noticed(tmp_path):
    file = open_bytes(tmp_path, safetensors_bytes({"a": entry("U8", [4], 0, 4)}, b"1234"))
    file.check_unchanged()
    with open(file.path, "r+b") as other:
        other.truncate(10)
    with pytest.raises(CheckpointError, match=r"changed while it was open, from \d+ bytes to 10"):
        file.check_unchanged()


def test_round_trip_of_random_tensors(tmp_path, rng):
    arrays = {}
    for number in range(int(rng.integers(1, 12))):
        shape = tuple(int(size) for size in rng.integers(1, 6, rng.integers(1, 5)))
        dtype = (np.uint8, np.uint16)[rng.integers(2)]
        arrays[f"tensor.{number}"] = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    path = tmp_path / "out.safetensors"
    written = []
    sources = [TensorSource.from_array(name, array) for name, array in arrays.items()]
    size = write_safetensors(path, sources, written.append)
    assert size == path.stat().st_size
    assert sum(written) == sum(array.nbytes for array in arrays.values())
    file = SafetensorsFile(path)
    assert file.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        read = file.array(file.tensors[name])
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype
        assert not read.flags.owndata


def test_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=r"tensor a needs 4 bytes for U8 \[4\], its source gave 3"):
        write_safetensors(path, [TensorSource("a", "U8", (4,), lambda: [b"123"])])
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.safetensors"]
