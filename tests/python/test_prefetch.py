"""Reading checkpoints ahead, and the progress shown. Oracle: the bytes written, the text on the terminal."""

from __future__ import annotations

import io
import mmap
import os

import numpy as np
import pytest
from gptoss_native.checkpoint import open_checkpoint, prefetch
from gptoss_native.checkpoint.safetensors import SafetensorsFile
from gptoss_native.errors import CheckpointError
from gptoss_native.progress import ProgressBar

from tests.checkpoints import SHARD_BYTES, same, write_tiny


@pytest.mark.parametrize("populate", [True, False])
def test_prefetch_reads_every_byte(tmp_path, rng, monkeypatch, populate):
    arrays = write_tiny(tmp_path, rng, shard_bytes=SHARD_BYTES)
    monkeypatch.setattr(prefetch, "CHUNK_BYTES", 1 << 14)
    if not populate:
        monkeypatch.setattr(prefetch, "_populate", lambda *range: False)
    checkpoint = open_checkpoint(tmp_path)
    for threads in (1, 3):
        done = []
        checkpoint.prefetch(threads, done.append)
        assert done == sorted(done)
        assert done[-1] == sum(file.nbytes for file in checkpoint.files)
    checkpoint.release_pages()
    same(checkpoint, arrays)


@pytest.mark.parametrize("populate", [True, False])
def test_prefetch_of_a_shrunken_file_is_an_error_not_a_signal(tmp_path, rng, monkeypatch, populate):
    write_tiny(tmp_path, rng)
    checkpoint = open_checkpoint(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match="changed while it was open"):
        checkpoint.prefetch(2)
    # The same when it shrinks after the first look.
    monkeypatch.setattr(SafetensorsFile, "check_unchanged", lambda self: None)
    if not populate:
        monkeypatch.setattr(prefetch, "_populate", lambda *range: False)
    with pytest.raises(CheckpointError, match=r"cannot be read; check the disk|ended at byte 5,000 of"):
        checkpoint.prefetch(2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_speaks_only_to_terminals_and_only_when_slow():
    for stream, delay, drawn in ((io.StringIO(), 0, False), (Terminal(), 60, False), (Terminal(), 0, True)):
        with ProgressBar(2_000_000_000, "loading", stream, delay) as bar:
            bar(1_000_000_000)
        text = stream.getvalue()
        assert bool(text) == drawn
        if drawn:
            assert "\rloading [############............] 1.00 of 2.00 GB, " in text
            assert "2.00 of 2.00 GB" in text
            assert text.endswith(" GB/s\n")


def test_some_tensors_are_read_alone(tmp_path, rng, monkeypatch):
    """Whole pages of the tensors named, joined where they touch, each byte of them once."""
    monkeypatch.setattr(prefetch, "CHUNK_BYTES", 1 << 14)
    write_tiny(tmp_path / "model", rng, shard_bytes=1 << 17)
    checkpoint = open_checkpoint(tmp_path / "model")
    names = [name for name in checkpoint.tensors if rng.random() < 0.5] or ["lm_head.weight"]
    read, load = [], prefetch._load
    monkeypatch.setattr(prefetch, "_load", lambda *part: read.append(part) or load(*part))
    checkpoint.prefetch(2, None, names)
    covered = {}
    for file, offset, length in read:
        assert offset % mmap.PAGESIZE == 0
        seen = covered.setdefault(id(file), np.zeros(file.nbytes, np.int8))
        seen[offset : offset + length] += 1
    for name in names:
        file, begin, end = checkpoint.tensors[name].range
        assert (covered[id(file)][begin:end] >= 1).all(), name
    wanted = sum(checkpoint.tensors[name].nbytes for name in names)
    assert wanted <= sum(length for *_, length in read) <= wanted + mmap.PAGESIZE * len(read)
