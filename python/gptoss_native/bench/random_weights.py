"""Checkpoints of real shapes with random weights, to measure speed without the real weights.

Speed and memory do not depend on the values as long as activations stay finite: MXFP4 codes are uniform with
scales 2^-9 to 2^-5 (about the spread of 0.02 that the dense weights get), norms are one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..checkpoint.tensor_names import TensorSpec, expected_tensors
from ..checkpoint.writer import write_checkpoint
from ..config import ModelConfig
from ..errors import CheckpointError
from ..progress import ProgressBar

CHUNK_BYTES = 8 << 20
SHARD_BYTES = 4_800_000_000
ONE = 0x3F80  # 1.0 in bfloat16
STD = 0.02


class RandomWeights:
    """Yields a tensor's bytes in chunks. The same seed gives the same checkpoint."""

    def __init__(self, seed: int):
        self.rng = np.random.Generator(np.random.SFC64(seed))
        # Normal numbers are slower to make than to write, so windows of one pool are reused; they start
        # anywhere, so that no two rows of a matrix are equal.
        normal = self.rng.standard_normal(4 * CHUNK_BYTES, dtype=np.float32) * np.float32(STD)
        self.pool = (normal.view(np.uint32) >> np.uint32(16)).astype(np.uint16)

    def __call__(self, spec: TensorSpec) -> Iterator[np.ndarray]:
        for begin in range(0, spec.nbytes, CHUNK_BYTES):
            yield self._chunk(spec, min(CHUNK_BYTES, spec.nbytes - begin))

    def _chunk(self, spec: TensorSpec, size: int) -> np.ndarray:
        if spec.group == "norms":
            return np.full(size // 2, ONE, np.uint16)
        if spec.name.endswith("_scales"):
            return self.rng.integers(118, 123, size, dtype=np.uint8)
        if spec.name.endswith("_blocks"):
            return self.rng.integers(0, 1 << 64, -(-size // 8), dtype=np.uint64).view(np.uint8)[:size]
        start = self.rng.integers(0, self.pool.size - size // 2)
        return self.pool[start : start + size // 2]


def write_synthetic(folder: Path, config: ModelConfig, seed: int, shard_bytes: int, layout: str) -> int:
    """Write the checkpoint; `folder` must not exist, and does only once complete. Returns its bytes."""
    if folder.exists():
        raise CheckpointError(f"{folder}: expected no such folder, found one; choose another or remove it")
    size = sum(spec.nbytes for spec in expected_tensors(config))
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if size + (64 << 20) > free:
        raise CheckpointError(
            f"{folder}: needs {size:,} bytes, the disk has {free:,} free; choose another disk"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    written = 0
    try:
        with ProgressBar(size, f"writing {folder.name}") as bar:

            def count(added: int) -> None:
                nonlocal written
                written += added
                bar(written)

            total = write_checkpoint(temporary, config, RandomWeights(seed), layout, shard_bytes, count)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return total
