"""Tiny checkpoints with random weights, and safetensors files written byte by byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gptoss_native.checkpoint import Checkpoint, open_checkpoint
from gptoss_native.checkpoint.tensor_names import expected_tensors
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.config import ModelConfig
from gptoss_native.errors import CheckpointError

SHARD_BYTES = 40_000  # several shards for the tiny model
TINY = ModelConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    num_local_experts=3,
    num_experts_per_tok=2,
    vocab_size=40,
    sliding_window=8,
)


def tiny_config(**changes: Any) -> ModelConfig:
    return replace(TINY, layer_types=(), **changes)


def random_arrays(config: ModelConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every tensor of a model: small bf16 numbers as uint16, any blocks, scales near one."""
    arrays = {}
    for spec in expected_tensors(config):
        if spec.dtype == "BF16":
            values = rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(0.1)
            arrays[spec.name] = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        else:
            low, high = (120, 126) if spec.name.endswith("_scales") else (0, 256)
            arrays[spec.name] = rng.integers(low, high, spec.shape, dtype=np.uint8)
    return arrays


def write_tiny(
    folder: Path,
    rng: np.random.Generator,
    layout: str = "huggingface",
    shard_bytes: int | None = None,
    config: ModelConfig = TINY,
) -> dict[str, np.ndarray]:
    """Write a checkpoint and return its tensors."""
    arrays = random_arrays(config, rng)
    write_checkpoint(folder, config, arrays, layout, shard_bytes)
    return arrays


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file from its parts; `header` is bytes, or JSON values, and `length` the header length it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; a value of `...` removes the field."""
    values = json.loads(path.read_text())
    for name, value in changes.items():
        if value is ...:
            del values[name]
        else:
            values[name] = value
    path.write_text(json.dumps(values))


def same(checkpoint: Checkpoint, arrays: dict[str, np.ndarray]) -> None:
    """Assert that a checkpoint holds exactly `arrays`, as views of its files."""
    found = checkpoint.arrays()
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == array.dtype
        assert not found[name].flags.writeable
        assert not found[name].flags.owndata


def refuse(folder: str | Path, *words: Any) -> None:
    """Assert that opening fails with a short one-line message that holds all `words`."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    text = str(caught.value)
    for word in words:
        assert str(word) in text, text
    assert "\n" not in text
    assert len(text) < 600 + 2 * len(str(folder))
