"""A model's numbers as a checkpoint: streamed, and there only when all of it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .checkpoint.tensor_names import TensorSpec
from .checkpoint.writer import write_checkpoint
from .config import ModelConfig
from .errors import CheckpointError
from .new_folder import new_folder
from .parameters.store import Store, rows_of, specs_of
from .strict_json import show

#: Files beside the weights that other programs want, copied where the source has them.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json", "LICENSE", "USAGE_POLICY",
)  # fmt: skip
CHUNK_BYTES = 8 << 20
LAYOUTS = {"huggingface": ("huggingface",), "openai": ("openai",), "both": ("huggingface", "openai")}


def export(
    config: ModelConfig,
    store: Store,
    folder: Path,
    source: Path | None,
    tokenizer: Path | None,
    layout: str = "huggingface",
    shard_bytes: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Path:
    """Write `store` as a checkpoint into `folder`, which appears under its name once it is whole.

    source, tokenizer: folders whose companion files are copied
    layout: "huggingface", "openai" or "both"; the second of both goes into `original`
    Raises CheckpointError when the folder exists and is not empty, or cannot be written.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"layout must be one of {', '.join(LAYOUTS)}, found {show(layout)}; choose one")
    if shard_bytes is not None and (type(shard_bytes) is not int or shard_bytes < 1):
        raise CheckpointError(
            f"shard_bytes must be 1 or more, or None, found {show(shard_bytes)}; pass e.g. 5 << 30"
        )
    need = len(LAYOUTS[layout]) * sum(spec.nbytes for spec in specs_of(config).values())
    with new_folder(folder, need) as partial:
        for place, kind in zip((partial, partial / "original"), LAYOUTS[layout], strict=False):
            write_checkpoint(place, config, _chunks(store), kind, shard_bytes, on_bytes)
        copy_companions([source, tokenizer], partial)
    return Path(os.path.abspath(folder))


def copy_companions(sources: list[Path | None], folder: Path) -> None:
    """The files beside the weights, each from the first of `sources` that has it."""
    for name in COMPANIONS:
        found = next((at / name for at in sources if at is not None and (at / name).is_file()), None)
        if found is not None:
            shutil.copyfile(found, folder / name)


def _chunks(store: Store) -> Callable[[TensorSpec], Iterator[np.ndarray]]:
    def chunks(spec: TensorSpec) -> Iterator[np.ndarray]:
        rows, row_bytes = rows_of(spec)
        step = max(CHUNK_BYTES // row_bytes, 1)
        for first in range(0, rows, step):
            yield np.ascontiguousarray(store.read(spec.name, first, min(step, rows - first)))

    return chunks
