"""A checkpoint that changes under an LLM, its descriptors, its tokenizer. Oracle: what it held at first."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
import warnings

import numpy as np
import pytest
from gptoss_native import LLM, CheckpointError, SamplingParams, loading
from gptoss_native import llm as llm_module
from gptoss_native.checkpoint import open_checkpoint
from gptoss_native.tokenizer import Tokenizer

from tests.checkpoints import SHARD_BYTES, refuse, write_tiny

GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture
def folder(tmp_path, rng):
    write_tiny(tmp_path / "model", rng, shard_bytes=SHARD_BYTES)
    return tmp_path / "model"


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("call", ["generate", "stream", "score", "logits"])
@pytest.mark.parametrize("shard", [0, -1])
def test_a_file_cut_short_between_requests_is_an_error_not_a_signal(folder, call, shard):
    path = sorted(folder.glob("*.safetensors"))[shard]
    before = path.stat().st_size
    with LLM(folder, device="cpu", max_model_len=32, threads=1) as llm:
        llm.generate([1, 2], GREEDY)
        os.truncate(path, 4096)
        with pytest.raises(CheckpointError, match=f"{path.name}: changed .* from {before:,} bytes to 4,096;"):
            list(getattr(llm, call)([1, 2]))


def test_a_file_rewritten_in_place_is_noticed(folder):
    path = min(folder.glob("*.safetensors"))
    with LLM(folder, device="cpu", max_model_len=32, threads=1) as llm:
        llm.generate([1, 2], GREEDY)
        with open(path, "r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(bytes(100))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # however coarse the file system's clock
        with pytest.raises(CheckpointError, match=rf"{path.name}: changed .* bytes to [\d,]+, rewritten;"):
            llm.generate([1, 2], GREEDY)


def test_a_new_file_in_the_place_of_the_old_one_changes_nothing(folder):
    path = min(folder.glob("*.safetensors"))
    with LLM(folder, device="cpu", max_model_len=32, threads=1) as llm:
        expected = llm.logits([1, 2, 3])
        path.with_name("new").write_bytes(b"not a checkpoint")
        os.replace(path.with_name("new"), path)
        np.testing.assert_array_equal(llm.logits([1, 2, 3]), expected)
        shutil.rmtree(folder)
        np.testing.assert_array_equal(llm.logits([1, 2, 3]), expected)


def test_a_change_while_loading_is_noticed(folder, monkeypatch):
    """After the last look of read-ahead, before the first request."""
    path = min(folder.glob("*.safetensors"))
    native_config = loading.native_config

    def truncate_later(config):
        os.truncate(path, path.stat().st_size - 1)  # the last page stays mapped, so that nothing is killed
        return native_config(config)

    monkeypatch.setattr(loading, "native_config", truncate_later)
    with pytest.raises(CheckpointError, match="changed while it was open"):
        LLM(folder, device="cpu", max_model_len=32, threads=1)


def test_descriptors_are_closed_without_a_warning(folder):
    LLM(folder, device="cpu", max_model_len=32, threads=1).close()  # whatever is opened once a process
    before = descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with LLM(folder, device="cpu", max_model_len=32, threads=1) as llm:
            llm.generate([1], GREEDY)
            assert descriptors() > before
        del llm
        open_checkpoint(folder).prefetch(1)
        (folder / "config.json").write_text("{}")
        refuse(folder, "config.json")
        assert descriptors() == before
    assert not caught


def test_threads_that_ask_first_share_one_tokenizer(folder, monkeypatch):
    made = []

    def slow(directory):
        time.sleep(0.05)
        made.append(directory)
        return Tokenizer.o200k_harmony()

    monkeypatch.setattr(llm_module.Tokenizer, "for_checkpoint", slow)
    with LLM(folder, device="cpu", max_model_len=32, threads=1) as llm:
        found = []
        threads = [threading.Thread(target=lambda: found.append(llm.tokenizer)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(made) == 1
    assert len(set(map(id, found))) == 1
