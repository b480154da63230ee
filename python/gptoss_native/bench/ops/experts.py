"""What the benches of moe_up and moe_down share: MXFP4 weights and random routings."""

from __future__ import annotations

import numpy as np

from ...config import ModelConfig
from ..cases import BLOCK, bf16


def mxfp4(
    rng: np.random.Generator, experts: int, out: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(blocks, scales, bias) of all experts of a layer."""
    pool = rng.integers(0, 256, 100_003, dtype=np.uint8)
    blocks = np.resize(pool, (experts, out, width // BLOCK, 16))
    scales = np.resize(pool % 5 + 118, (experts, out, width // BLOCK)).astype(np.uint8)
    return blocks, scales, bf16(rng, experts, out)


def routings(rng: np.random.Generator, rows: int, model: ModelConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """(group_start, group_order) of steps whose experts take turns, so that none is still in a cache."""
    experts, chosen = model.num_local_experts, model.num_experts_per_tok
    found, deck = [], np.empty(0, np.int64)
    for _ in range(8):
        if rows == 1:
            deck = deck if len(deck) else rng.permutation(experts)
            expert, deck = deck[:chosen], deck[chosen:]
        else:
            expert = rng.random((rows, experts)).argsort(1)[:, :chosen].ravel()
        start = np.concatenate([[0], np.cumsum(np.bincount(expert, minlength=experts))])
        found.append((start.astype(np.int32), np.argsort(expert, kind="stable").astype(np.int32)))
    return found


def bytes_read(groups: list[tuple[np.ndarray, np.ndarray]], out: int, width: int) -> int:
    """Mean over the steps: each expert that has a row is fetched once, blocks and scales."""
    experts = np.mean([(np.diff(start) > 0).sum() for start, _ in groups])
    return int(experts * out * (width // BLOCK) * 17)


def q8_rows(rng: np.random.Generator, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    q8 = rng.integers(-127, 128, (rows, width), dtype=np.int8)
    return q8, np.full((rows, width // BLOCK), 0.01, np.float32)
