"""Random inputs of the ops, in the dtypes and layouts that the native code takes."""

from __future__ import annotations

import numpy as np

from tests.reference.formats import BLOCK, float_to_bf16

NAN = np.float32(np.nan)


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """float32"""
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def bf16(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """bf16 bit patterns, uint16"""
    return float_to_bf16(normal(rng, *shape, scale=scale))


def norm_weight(rng: np.random.Generator, hidden: int) -> np.ndarray:
    return float_to_bf16(1 + normal(rng, hidden, scale=0.2))


def linear(rng: np.random.Generator, out: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(weight [out, width], bias [out]) whose outputs are of size 1 for inputs of size 1."""
    return bf16(rng, out, width, scale=width**-0.5), bf16(rng, out, scale=0.5)


def mxfp4(rng: np.random.Generator, experts: int, out: int, width: int, scale: float = 1.0):
    """(blocks, scales, bias) of an expert layer whose outputs are of size `scale` for inputs of size 1.

    Every code occurs, block scales vary over a factor of 32, a few blocks are of no or next to no weight.
    """
    typical = 127 + np.log2(scale / 3) - 0.5 * np.log2(width)
    scales = np.clip(np.rint(rng.normal(typical, 1, (experts, out, width // BLOCK))), 1, 254).astype(np.uint8)
    scales[rng.random(scales.shape) < 0.01] = 0
    blocks = rng.integers(0, 256, (*scales.shape, 16), dtype=np.uint8)
    blocks[rng.random(scales.shape) < 0.01] = 0
    return blocks, scales, bf16(rng, experts, out, scale=0.5 * scale)


def empty(*shape: int, dtype=np.float32) -> np.ndarray:
    """An output full of values that no op may leave behind."""
    if dtype == np.float32:
        return np.full(shape, np.nan, np.float32)
    if dtype == np.uint16:
        return np.full(shape, 0x7FC1, np.uint16)  # bf16 NaN
    return np.full(shape, np.iinfo(dtype).min, dtype)


def multiple(rng: np.random.Generator, of: int, most: int) -> int:
    """A random multiple of `of`, up to `most` of them."""
    return of * int(rng.integers(1, most + 1))


def group_by_expert(expert: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """(start [experts + 1], order [rows * chosen]) of expert ids [rows, chosen], as moe_gate gives them."""
    flat = expert.reshape(-1)
    start = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=experts))])
    return start.astype(np.int32), np.argsort(flat, kind="stable").astype(np.int32)


def choose_experts(rng: np.random.Generator, rows: int, experts: int, chosen: int) -> np.ndarray:
    """Expert ids [rows, chosen], distinct in a row. Often some experts stay empty, or all rows agree."""
    style = rng.choice(["uniform", "few", "same"])
    pool = np.arange(experts) if style == "uniform" else rng.permutation(experts)[: max(chosen, experts // 3)]
    rows_of = [rng.choice(pool, chosen, replace=False) for _ in range(rows)]
    return np.array([rows_of[0]] * rows if style == "same" else rows_of, np.int32)
