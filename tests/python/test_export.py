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
        left = [path.name for path in place.iterdir() if path not in whole]
        assert left in ([], [f".{len(whole)}.{process.pid}.part"])  # the one that it was writing
        for folder in whole:
            same(open_checkpoint(folder), expected)
            same(open_checkpoint(folder / "original"), expected)


@pytest.fixture
def mounted(tmp_path):
    """A disk of its own, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)  # what was opened may still be mapped


def test_an_empty_disk_is_filled_in_place(llm, mounted, monkeypatch):
    (mounted / "lost+found").mkdir()
    names = []
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (names.append(os.path.basename(b)), real(a, b)))
    assert llm.save(mounted, layout="both", shard_bytes=50_000) == mounted
    assert names[-1] == "config.json"
    found = {path.name for path in mounted.iterdir()}
    assert {"lost+found", "config.json", "original", "model.safetensors.index.json"} < found
    assert not [name for name in found if name.startswith(".")]
    for place in (mounted, mounted / "original"):
        same(open_checkpoint(place), open_checkpoint(llm._source).arrays())


def test_a_disk_that_fails_at_the_end_is_empty_again(llm, mounted, monkeypatch):
    real = os.rename

    def failing(a, b):
        if os.path.basename(b) == "config.json":
            raise OSError(5, "Input/output error", str(b))
        real(a, b)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(CheckpointError, match="cannot be written"):
        llm.save(mounted)
    assert list(mounted.iterdir()) == []


def test_behind_a_link_is_an_empty_folder(llm, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert llm.save(tmp_path / "link") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    same(open_checkpoint(tmp_path / "elsewhere"), open_checkpoint(tmp_path / "model").arrays())
    with pytest.raises(CheckpointError, match="exists already"):
        llm.save(tmp_path / "link")


def test_the_folder_that_cannot_be_written_is_named(llm, tmp_path, monkeypatch):
    """As where its parent is another user's."""
    real = os.mkdir

    def refusing(path, *rest, **options):
        if str(path).endswith(".part"):
            raise PermissionError(13, "Permission denied", str(path))
        real(path, *rest, **options)

    monkeypatch.setattr(os, "mkdir", refusing)
    with pytest.raises(CheckpointError, match=f"Permission denied at {tmp_path}.*that it is in too"):
        llm.save(tmp_path / "out")


TERMINATED = """
import os, signal, sys, threading
from gptoss_native import cli, new_folder
from gptoss_native.checkpoint import writer

real = writer.write_safetensors
def slow(*args, **options):
    real(*args, **options)
    print("writing", flush=True)
    threading.Event().wait()

writer.write_safetensors = slow
sys.exit(cli.main(["edit", "demo", "--scale", "layers.0.sinks=0.5", "--out", sys.argv[1]]))
"""


def exporting(place):
    """A process in the middle of an export."""
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINATED, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert any(line == "writing\n" for line in process.stdout)
    return process


def ended(process, how):
    process.send_signal(how)
    code = process.wait(60)
    process.stdout.close()
    return code


def test_a_command_that_is_terminated_cleans_up(tmp_path):
    process = exporting(tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 1
    assert ended(process, signal.SIGTERM) == 143
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_goes_with_the_next(llm, tmp_path):
    """What one that still runs is writing stays."""
    dead, alive = exporting(tmp_path / "out"), exporting(tmp_path / "out")
    assert ended(dead, signal.SIGKILL) == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir() if path.suffix == ".part"} == {
        f".out.{process.pid}.part" for process in (dead, alive)
    }
    llm.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == [f".out.{alive.pid}.part"]
    assert ended(alive, signal.SIGTERM) == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
