"""Exported checkpoints. Oracle: the bytes of the source; transformers reads one in tests of the extras."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from gptoss_native import LLM, open_checkpoint
from gptoss_native.errors import CheckpointError

from tests.checkpoints import same, write_tiny


@pytest.fixture
def llm(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    with LLM(tmp_path / "model", device="cpu", max_model_len=64) as llm:
        yield llm


@pytest.mark.parametrize("source", ["demo", "tiny"])
@pytest.mark.parametrize("layout", ["huggingface", "openai", "both"])
def test_an_unedited_model_is_exported_byte_for_byte(tmp_path, rng, source, layout):
    if source == "tiny":
        write_tiny(tmp_path / "tiny", rng, "openai")
    name = "demo" if source == "demo" else tmp_path / "tiny"
    with LLM(name, device="cpu", max_model_len=64) as llm:
        folder = llm.save(tmp_path / "out", layout=layout, shard_bytes=50_000)
    expected = open_checkpoint(name).arrays()
    for place in [folder, folder / "original"] if layout == "both" else [folder]:
        found = open_checkpoint(place)
        same(found, expected)
        assert found.layout == ("openai" if place.name == "original" or layout == "openai" else "huggingface")
        assert len(found.files) > 1
        index = json.loads((place / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == found.nbytes
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out"] + ["tiny"] * (source == "tiny"))


def test_an_edited_model_is_exported_as_it_is(llm, tmp_path):
    llm.layers[0].experts[1].down_proj.update(lambda values: values * -0.3)
    llm.layers[1].router.bias.write([3.0, 2.0, 1.0])
    llm.save(tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    tokens = [3, 1, 4, 1, 5]
    with LLM(tmp_path / "out", device="cpu", max_model_len=64) as other:
        np.testing.assert_array_equal(other.logits(tokens), llm.logits(tokens))
        assert other.diff() == []


def test_a_place_that_will_not_do_is_refused(llm, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file", "model"):
        with pytest.raises(CheckpointError, match="exists already; choose a new folder"):
            llm.save(tmp_path / place)
    with pytest.raises(CheckpointError, match="layout must be one of huggingface, openai, both, found 'hf'"):
        llm.save(tmp_path / "out", layout="hf")
    with pytest.raises(CheckpointError, match="shard_bytes must be 1 or more"):
        llm.save(tmp_path / "out", shard_bytes=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "model"]
    (tmp_path / "empty").mkdir()
    assert llm.save(tmp_path / "empty") == tmp_path / "empty"


def test_a_full_disk_is_said_before_anything_is_written(llm, tmp_path, monkeypatch):
    from gptoss_native import export

    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: _Usage())
    with pytest.raises(CheckpointError, match="the disk has 1,000 free"):
        llm.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


class _Usage:
    free = 1000


def test_an_export_that_fails_on_the_way_leaves_nothing(llm, tmp_path, monkeypatch):
    from gptoss_native.parameters.store import ModelStore

    real, calls = ModelStore.read, []

    def failing(self, name, first, count):
        calls.append(name)
        if len(calls) == 20:
            raise OSError(5, "Input/output error")
        return real(self, name, first, count)

    monkeypatch.setattr(ModelStore, "read", failing)
    with pytest.raises(CheckpointError, match="cannot be written"):
        llm.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


SCRIPT = """
import sys
from gptoss_native import LLM
llm = LLM("demo", device="cpu", max_model_len=64)
print("ready", flush=True)
for n in range(1000):
    llm.save(f"{sys.argv[1]}/{n}", layout="both", shard_bytes=200_000)
    print(n, flush=True)
"""


EDITS = """
import sys
from gptoss_native import LLM
llm = LLM(sys.argv[1], device="cpu", max_model_len=64)
print("ready", flush=True)
while True:
    with llm.edit() as edit:
        edit.scale("*", -1.5)
"""


def test_a_process_killed_while_it_edits_leaves_the_files_as_they_were(tmp_path, rng):
    arrays = write_tiny(tmp_path / "model", rng)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", EDITS, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.3)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        same(open_checkpoint(tmp_path / "model"), arrays)


def test_a_killed_export_is_not_there(tmp_path, rng):
    """Killed at random moments: each folder that has appeared is whole, the next one has not appeared."""
    expected = open_checkpoint("demo").arrays()
    for attempt in range(5):
        place = tmp_path / str(attempt)
        place.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(place)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2):
            process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.3)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        whole = [path for path in place.iterdir() if not path.name.startswith(".")]
        assert whole
        for folder in whole:
            same(open_checkpoint(folder), expected)
            same(open_checkpoint(folder / "original"), expected)
