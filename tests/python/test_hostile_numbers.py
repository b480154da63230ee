"""Patches, adapters and steering vectors from anywhere.

A damaged file is refused with one sentence, or is what it says.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from gptoss_native import LLM, SteeringVector
from gptoss_native.checkpoint.safetensors_writer import TensorSource, write_safetensors
from gptoss_native.errors import CheckpointError, RequestError
from gptoss_native.parameters.lora import load_lora
from gptoss_native.parameters.patch import FORMAT, VERSION

from tests.checkpoints import TINY, write_tiny
from tests.python.test_edits import numbers, same
from tests.python.test_lora import adapter_tensors, write_adapter

ROUNDS = 400


def damaged(rng, data: bytes) -> bytes:
    """A few bytes or a stretch of it changed, cut or doubled; often in the header, where it hurts."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        end = len(found) if rng.random() < 0.4 else min(len(found), 700)
        at = int(rng.integers(0, max(end, 1)))
        kind = rng.random()
        if kind < 0.4:
            found[at : at + 1] = bytes([int(rng.integers(256))])
        elif kind < 0.6:
            found[at : at + 1] = b'0123456789,]}"-'[int(rng.integers(15)) :][:1]
        elif kind < 0.75:
            del found[at : at + int(rng.integers(1, 40))]
        elif kind < 0.9:
            found[at:at] = found[at : at + int(rng.integers(1, 40))]
        else:
            del found[at:]
    return bytes(found)


def test_damaged_patches_change_nothing_or_what_they_say(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    path = tmp_path / "patch.safetensors"
    with LLM(tmp_path / "model", device="cpu", max_model_len=64) as llm:
        before = numbers(llm)
        with llm.edit() as e:
            e.scale("layers.0.experts.1.down_proj", 0.3)
            e.set("layers.1.router.bias", 1)
        llm.save_patch(path)
        llm.undo()
        data, refused = path.read_bytes(), 0
        for _ in range(ROUNDS):
            path.write_bytes(damaged(rng, data))
            try:
                llm.apply_patch(path, force=bool(rng.random() < 0.3))
                assert all(np.isfinite(p.decode()).all() for p in llm.parameters.values())
                llm.undo()
            except CheckpointError as error:
                refused += str(error).count("\n") == 0
            same(numbers(llm), before)
        assert refused > ROUNDS // 2


def test_damaged_adapters_are_refused_or_read(tmp_path, rng):
    folder = write_adapter(tmp_path / "lora", adapter_tensors(rng))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        path = folder / name
        data, refused = path.read_bytes(), 0
        for _ in range(ROUNDS // 2):
            path.write_bytes(damaged(rng, data))
            try:
                assert load_lora(folder, TINY).matrices
            except CheckpointError as error:
                refused += str(error).count("\n") == 0
        path.write_bytes(data)
        assert refused > 0, name
    values = (None, 0, "x", [], {}, True, 1e400, -1, {"a": {"b": 1}})
    settings = json.loads((folder / "adapter_config.json").read_text())
    allowed = {
        "lora_alpha": [0, -1],
        "alpha_pattern": [None, 0, [], {}],
        "r": values,  # the matrices say it
        "use_rslora": [None, True],
        "peft_type": [],
        "bias": [None, 0],
    }
    for field, good in allowed.items():
        for value in values:
            changed = json.dumps({**settings, field: value}).replace("Infinity", "1e400")
            (folder / "adapter_config.json").write_text(changed)
            if any(type(value) is type(each) and value == each for each in good):
                assert load_lora(folder, TINY).matrices
            else:
                with pytest.raises(CheckpointError, match=field):
                    load_lora(folder, TINY)


def test_damaged_vectors_are_refused_or_read(tmp_path, rng):
    path = tmp_path / "vector.safetensors"
    SteeringVector({1: rng.normal(size=32), 3: rng.normal(size=32)}).save(path)
    data, refused = path.read_bytes(), 0
    for _ in range(ROUNDS):
        path.write_bytes(damaged(rng, data))
        try:
            assert len(SteeringVector.load(path)) > 0
        except CheckpointError:
            refused += 1
    assert refused > ROUNDS // 4


def test_a_patch_with_odd_metadata_is_refused(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    path, rows = tmp_path / "patch.safetensors", np.zeros((1, 1), "<u2")
    sources = [TensorSource.from_array("model.layers.0.mlp.router.bias@0", rows)]
    with LLM(tmp_path / "model", device="cpu", max_model_len=64) as llm:
        for before in ("[" * 200_000, '{"a":' * 100_000, "[]", "", '{"a":' + "1" * 6000 + "}"):
            write_safetensors(
                path, sources, metadata={"format": FORMAT, "version": VERSION, "name": "x", "before": before}
            )
            with pytest.raises(CheckpointError, match="has no list of what it replaces"):
                llm.apply_patch(path, force=True)
        assert llm.edits == []


def test_only_new_and_regular_files_are_written(tmp_path, rng):
    """A link, a pipe or a device at the path stays what it is."""
    write_tiny(tmp_path / "model", rng)
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    vector = SteeringVector({0: rng.normal(size=32)})
    with LLM(tmp_path / "model", device="cpu", max_model_len=64) as llm:
        llm.layers[0].router.bias.write(np.ones(3))
        for save in (llm.save_patch, vector.save):
            for name, kind in (
                ("link", "link"),
                ("pipe", "pipe"),
                ("model", "folder"),
                ("/dev/null", "device"),
            ):
                with pytest.raises(
                    CheckpointError, match=f"is a {kind}, expected a new file or a regular one"
                ):
                    save(tmp_path / name)
            for wrong in (None, 3, "", "a\0b"):
                with pytest.raises(RequestError, match="a path must be a text or a Path"):
                    save(wrong)
            save(tmp_path / "twice")
            save(tmp_path / "twice")
        for call in (
            llm.save,
            llm.apply_patch,
            SteeringVector.load,
            lambda path: llm.adapters.load("x", path),
        ):
            with pytest.raises(RequestError, match="a path must be a text or a Path, found None"):
                call(None)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "mine"
