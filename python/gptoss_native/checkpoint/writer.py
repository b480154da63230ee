"""Write a checkpoint in either layout: config.json, safetensors shards and their index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..errors import CheckpointError
from ..strict_json import show
from .config_files import to_huggingface, to_openai
from .reader import INDEX, SINGLE
from .safetensors_writer import TensorSource, write_json, write_safetensors
from .tensor_names import StoredTensor, TensorSpec, file_tensors

#: Yields the bytes of one tensor, given its canonical name, dtype and shape.
Chunks = Callable[[TensorSpec], Iterable[Any]]


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    tensors: Chunks | Mapping[str, np.ndarray],
    layout: str = "huggingface",
    shard_bytes: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> int:
    """Write a checkpoint into `folder` (created if needed); returns the bytes of all weight files.

    `tensors` is canonical name -> array (BF16 as uint16, blocks and scales as uint8), or a function that
    yields each tensor's bytes. Without `shard_bytes` there is one file. config.json comes last: a folder that
    was only half written is not a checkpoint. Raises CheckpointError for an unknown layout, when the folder
    already holds a checkpoint, or an array is missing or has another dtype or shape.
    """
    if layout not in ("huggingface", "openai"):
        raise CheckpointError(f"layout must be 'huggingface' or 'openai', found {show(layout)}; choose one")
    values = to_openai(config) if layout == "openai" else to_huggingface(config)
    chunks = tensors if callable(tensors) else _from_arrays(Path(folder), tensors)
    sources = [_source(stored, chunks) for stored in file_tensors(config, layout)]
    return write_files(Path(folder), values, sources, shard_bytes, on_bytes)


def write_files(
    folder: Path,
    config: Mapping[str, Any],
    sources: list[TensorSource],
    shard_bytes: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> int:
    """Write tensors of any names, their index and `config` as config.json; otherwise as write_checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    if {"config.json", INDEX} & set(present) or any(name.endswith(".safetensors") for name in present):
        raise CheckpointError(
            f"{folder}: expected a folder without a checkpoint, found {present[0]}; choose another or "
            "empty it"
        )
    shards = _shards(sources, shard_bytes)
    names = (
        [SINGLE] if len(shards) == 1 else [_shard_name(number, len(shards)) for number in range(len(shards))]
    )
    total = sum(
        write_safetensors(folder / name, shard, on_bytes) for name, shard in zip(names, shards, strict=True)
    )
    if len(shards) > 1:
        weight_map = {
            source.name: name for name, shard in zip(names, shards, strict=True) for source in shard
        }
        size = sum(source.nbytes for source in sources)
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    write_json(folder / "config.json", config)
    return total


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _source(stored: StoredTensor, chunks: Chunks) -> TensorSource:
    def generate() -> Iterable[Any]:
        for part in stored.parts:
            yield from chunks(part)

    return TensorSource(stored.name, stored.dtype, stored.shape, generate)


def _shards(sources: list[TensorSource], shard_bytes: int | None) -> list[list[TensorSource]]:
    """Fill shards in order; one holds more than `shard_bytes` only when a single tensor does."""
    shards: list[list[TensorSource]] = [[]]
    room = shard_bytes
    for source in sources:
        if room is not None and shards[-1] and source.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(source)
        room = None if room is None else room - source.nbytes
    return shards


def _from_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> Chunks:
    def chunks(spec: TensorSpec) -> Iterable[np.ndarray]:
        array = arrays.get(spec.name)
        dtype = np.dtype(np.uint16 if spec.dtype == "BF16" else np.uint8)
        if array is None or array.dtype != dtype or array.shape != spec.shape:
            found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise CheckpointError(
                f"{folder}: tensor {spec.name} must be {dtype} {list(spec.shape)}, found {found}; "
                "pass every tensor of the model"
            )
        yield np.ascontiguousarray(array)

    return chunks
