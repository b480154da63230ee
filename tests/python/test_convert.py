"""MXFP4 to BF16 and back, and the commands on numbers in files. Oracle: the bytes before; tests/reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gptoss_native import open_checkpoint
from gptoss_native.checkpoint.config_files import to_huggingface
from gptoss_native.checkpoint.safetensors import SafetensorsFile
from gptoss_native.checkpoint.safetensors_writer import TensorSource, write_safetensors
from gptoss_native.convert import to_bf16, to_mxfp4
from gptoss_native.errors import CheckpointError

from tests.checkpoints import TINY, same, write_tiny
from tests.python.command import run
from tests.reference import mxfp4
from tests.reference.formats import bf16_to_float, float_to_bf16, mxfp4_to_float


@pytest.fixture
def arrays(tmp_path, rng):
    return write_tiny(tmp_path / "model", rng)


def nothing(name, report):
    assert report.max_error == report.saturated == 0, name


def test_there_and_back_is_the_same_model(tmp_path, arrays):
    """Other scales may stand for the same numbers: compared decoded, then in bytes after a second turn."""
    to_bf16(tmp_path / "model", tmp_path / "wide", shard_bytes=40_000)
    to_mxfp4(tmp_path / "wide", tmp_path / "back", nothing, shard_bytes=30_000)
    found = open_checkpoint(tmp_path / "back").arrays()
    for name, array in arrays.items():
        if name.endswith("_blocks"):
            scales = name.replace("_blocks", "_scales")
            expected = mxfp4_to_float(array, arrays[scales])
            np.testing.assert_array_equal(mxfp4_to_float(found[name], found[scales]), expected, err_msg=name)
        elif not name.endswith("_scales"):
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    to_bf16(tmp_path / "back", tmp_path / "wide2")
    to_mxfp4(tmp_path / "wide2", tmp_path / "back2", nothing)
    same(open_checkpoint(tmp_path / "back2"), found)


def test_bf16_experts_have_inputs_as_rows(tmp_path, arrays):
    """The layout of transformers' GptOssExperts: x @ gate_up_proj[e]."""
    to_bf16(tmp_path / "model", tmp_path / "wide")
    file = SafetensorsFile(tmp_path / "wide" / "model.safetensors")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    expected = mxfp4_to_float(arrays[name + "_blocks"], arrays[name + "_scales"])
    found = bf16_to_float(np.ascontiguousarray(file.array(file.tensors[name])))
    np.testing.assert_array_equal(found, expected.transpose(0, 2, 1))
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert "quantization_config" not in config
    with pytest.raises(CheckpointError, match="quantise them with `gptoss-native convert`"):
        open_checkpoint(tmp_path / "wide")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_fine_tune_is_rounded_by_the_rules(tmp_path, arrays, rng, dtype):
    """Random numbers in each format; codes and scales are the reference's, other tensors bf16's."""
    to_bf16(tmp_path / "model", tmp_path / "wide")
    file = SafetensorsFile(tmp_path / "wide" / "model.safetensors")
    values = {name: rng.normal(0, 0.1, info.shape).astype(np.float32) for name, info in file.tensors.items()}
    if dtype == "BF16":
        values = {name: float_to_bf16(array) for name, array in values.items()}
    elif dtype == "F16":
        values = {name: array.astype(np.float16) for name, array in values.items()}
    sources = [
        TensorSource(n, dtype, a.shape, lambda a=a: [np.ascontiguousarray(a)]) for n, a in values.items()
    ]
    (tmp_path / "tuned").mkdir()
    config = to_huggingface(TINY)
    del config["quantization_config"]
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "tuned" / "model.safetensors", sources)
    reports = {}
    to_mxfp4(tmp_path / "tuned", tmp_path / "out", reports.__setitem__)
    found = open_checkpoint(tmp_path / "out").arrays()
    exact = {n: bf16_to_float(a) if dtype == "BF16" else a.astype(np.float64) for n, a in values.items()}
    for name, array in exact.items():
        if name in found:
            np.testing.assert_array_equal(found[name], float_to_bf16(array), err_msg=name)
            continue
        rows = array.transpose(0, 2, 1)
        codes, scales, saturated = mxfp4.quantize(np.ascontiguousarray(rows).reshape(-1, 32))
        np.testing.assert_array_equal(found[name + "_scales"].reshape(-1), scales)
        np.testing.assert_array_equal(mxfp4.unpack(found[name + "_blocks"].reshape(-1, 16)), codes)
        stored = mxfp4_to_float(found[name + "_blocks"], found[name + "_scales"])
        report = reports[name]
        assert report.saturated == saturated.sum()
        expected = np.linalg.norm(stored - rows) / np.linalg.norm(rows)
        assert report.relative_error == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_converted_is_refused(tmp_path, arrays):
    with pytest.raises(CheckpointError, match="is in MXFP4 already"):
        to_mxfp4(tmp_path / "model", tmp_path / "out", nothing)
    to_bf16(tmp_path / "model", tmp_path / "wide")
    file = SafetensorsFile(tmp_path / "wide" / "model.safetensors")

    def rewritten(**changes):
        sources = {
            name: TensorSource(name, info.dtype, info.shape, lambda i=info: [file.array(i)])
            for name, info in file.tensors.items()
        }
        sources = {name: source for name, source in {**sources, **changes}.items() if source is not None}
        folder = tmp_path / f"changed{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text((tmp_path / "wide" / "config.json").read_text())
        write_safetensors(folder / "model.safetensors", sources.values())
        return folder

    name = "model.layers.0.mlp.experts.down_proj"
    nan = np.full((3, 64, 32), 0x7FC0, np.uint16)
    for changes, words in [
        ({name: None}, f"tensor {name} is missing"),
        ({name: TensorSource.from_array(name, nan[:2])}, r"BF16 \[2, 64, 32\], expected .* \[3, 64, 32\]"),
        ({name: TensorSource.from_array(name, nan)}, "expert 0: the value in row 0, column 0 is nan"),
        ({"x": TensorSource.from_array("x", nan)}, "tensor 'x' has no place"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            to_mxfp4(rewritten(**changes), tmp_path / "out", nothing)
        assert not (tmp_path / "out").exists()


def test_edit_diff_and_export_on_the_command_line(tmp_path, capsys, arrays):
    model, out, patch = (str(tmp_path / name) for name in ("model", "out", "p.safetensors"))
    edits = [
        "--set",
        "layers.1.experts.2.*=0",
        "--scale",
        "layers.0.router.bias=2",
        "--set",
        "layers.0.sinks=1.5",
    ]
    code, text, err = run(capsys, "edit", model, *edits, "--out", out, "--save-patch", patch)
    assert (code, err) == (0, "")
    assert text.endswith(f"{out}\n")
    found = open_checkpoint(out).arrays()
    np.testing.assert_array_equal(found["model.layers.0.self_attn.sinks"], float_to_bf16(np.full(4, 1.5)))
    name = "model.layers.1.mlp.experts.down_proj"
    values = mxfp4_to_float(found[name + "_blocks"], found[name + "_scales"])
    assert not values[2].any()
    np.testing.assert_array_equal(
        values[:2], mxfp4_to_float(arrays[name + "_blocks"], arrays[name + "_scales"])[:2]
    )
    code, text, _ = run(capsys, "diff", model, out, "--json")
    assert {each["name"] for each in json.loads(text)} == {
        "model.layers.0.mlp.router.bias",
        "model.layers.0.self_attn.sinks",
        *(f"model.layers.1.mlp.experts.2.{n}_proj{b}" for n in ("gate_up", "down") for b in ("", "_bias")),
    }
    code, text, err = run(capsys, "edit", model, "--patch", patch, "--out", out + "2")
    assert (code, err) == (0, "")
    code, text, _ = run(capsys, "diff", out, out + "2")
    assert (code, text) == (0, "no number differs\n")
    code, text, _ = run(capsys, "export", out, "--out", out + "3", "--layout", "openai")
    same(open_checkpoint(out + "3"), found)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["edit", "MODEL", "--out", "OUT"], 2, "nothing is to be changed"),
        (["edit", "MODEL", "--set", "lm_head.weight=0"], 2, "say where the result goes"),
        (["edit", "MODEL", "--set", "lm_head.weight", "--out", "OUT"], 2, "expected a name, = and a number"),
        (["edit", "MODEL", "--set", "lm_head.weight=nan", "--out", "OUT"], 1, "expected a finite number"),
        (["edit", "MODEL", "--set", "lm_heat.weight=0", "--out", "OUT"], 1, "the nearest are lm_head.weight"),
        (["edit", "MODEL", "--patch", "nowhere", "--out", "OUT"], 1, "nowhere"),
        (["edit", "MODEL", "--set", "lm_head.weight=0", "--out", "MODEL"], 1, "exists already"),
        (["diff", "MODEL", "demo"], 1, "are of different shapes"),
        (["convert", "MODEL", "--out", "OUT"], 1, "is in MXFP4 already"),
        (["convert", "nowhere", "--out", "OUT"], 1, "nowhere"),
        (["export", "MODEL", "--out", "MODEL"], 1, "exists already"),
        (["export", "MODEL"], 2, "--out"),
    ],
)
def test_wrong_commands_are_one_sentence(tmp_path, capsys, arrays, args, code, words):
    places = {"MODEL": str(tmp_path / "model"), "OUT": str(tmp_path / "out")}
    found, _, err = run(capsys, *[places.get(arg, arg) for arg in args])
    assert found == code, err
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
