"""Write a checkpoint of a real shape with random weights, to measure speed without the real weights.

Speed and memory do not depend on the values as long as activations stay finite: MXFP4 codes are uniform with
scales 2^-9 to 2^-5 (about the spread of 0.02 that the dense weights get), norms are one.

    python bench/synthetic_checkpoint.py 20b /data/random-20b
    python bench/synthetic_checkpoint.py 20b-4layer /data/random-4 --vocab 32768
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from gptoss_native.checkpoint.tensor_names import TensorSpec, expected_tensors
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.config import KNOWN_CONFIGS, ModelConfig
from gptoss_native.errors import CheckpointError
from gptoss_native.progress import ProgressBar

_20B, _120B = KNOWN_CONFIGS["openai/gpt-oss-20b"], KNOWN_CONFIGS["openai/gpt-oss-120b"]
SHAPES: dict[str, ModelConfig] = {
    "20b": _20B,
    "120b": _120B,
    "20b-4layer": replace(
        _20B, num_hidden_layers=4, vocab_size=32_768, layer_types=(), eos_token_ids=(), pad_token_id=None
    ),
}
CHUNK_BYTES = 8 << 20
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, dest="num_hidden_layers")
    parser.add_argument("--experts", type=int, dest="num_local_experts")
    parser.add_argument("--experts-per-token", type=int, dest="num_experts_per_tok")
    parser.add_argument("--vocab", type=int, dest="vocab_size")
    parser.add_argument("--hidden", type=int, dest="hidden_size")
    parser.add_argument("--intermediate", type=int, dest="intermediate_size")
    parser.add_argument("--heads", type=int, dest="num_attention_heads")
    parser.add_argument("--kv-heads", type=int, dest="num_key_value_heads")
    parser.add_argument("--window", type=int, dest="sliding_window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-gb", type=float, default=4.8, help="size of a shard in GB")
    parser.add_argument("--layout", choices=("huggingface", "openai"), default="huggingface")
    options = parser.parse_args(arguments)
    names = ModelConfig.__dataclass_fields__
    changed = {name: value for name, value in vars(options).items() if name in names and value is not None}
    start = time.monotonic()
    try:
        config = SHAPES[options.shape]
        if "vocab_size" in changed:
            config = replace(config, eos_token_ids=(), pad_token_id=None)
        config = replace(config, layer_types=(), **changed)
        size = write_synthetic(
            options.folder, config, options.seed, int(options.shard_gb * 1e9), options.layout
        )
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    seconds = time.monotonic() - start
    print(f"{options.folder}: {size:,} bytes in {seconds:.1f} s ({size / seconds / 1e9:.2f} GB/s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
