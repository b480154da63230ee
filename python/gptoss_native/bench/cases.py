"""What the ops' benches have in common: inputs, and what a case is.

Weights rotate through more memory than the caches hold, as the layers of a model do. Up to DECODING rows are
one new token of as many sequences; more are one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import dense_forms
from ..config import HEAD_DIM, ModelConfig

BLOCK = 32
PAGE = 32
DECODING = 64
MOST_LOGIT_ROWS = 256  # a prompt wants the logits of its last row only
COLD_BYTES = 256 << 20  # weights of an op together: several times the last-level cache
SMALLEST = 100_000  # bytes: no real model has weights below, only the shape to try the benches out with


@dataclass
class Case:
    """One line of the table: calls to take in turn, each on other weights."""

    label: str
    calls: list[Callable[[], object]]
    nbytes: int  # that a call must move to or from memory, each once
    flops: int = 0
    kind: str = ""  # of the numbers multiplied, where they are not the device's usual ones: see Limits


Cases = Callable[[Any, np.random.Generator, int, ModelConfig], Iterable[Case]]


def values(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """float32; a short pool repeated, since a gigabyte of normal numbers takes longer than the bench."""
    pool = (rng.standard_normal(100_003) * scale).astype(np.float32)
    return np.resize(pool, shape)


def bf16(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """bf16 bit patterns of the size that trained weights have."""
    pool = (rng.standard_normal(100_003) * 0.02).astype(np.float32)
    return np.resize((pool.view(np.uint32) >> 16).astype(np.uint16), shape)


def linear(rng: np.random.Generator, out: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return bf16(rng, out, width), bf16(rng, out)


def matrix_bytes(backend: Any, out: int, width: int) -> int:
    """Of a dense matrix in the form in which the backend multiplies it."""
    return dense_forms.matrix_bytes(backend.dense_dtype, out, width)


def dense_kind(backend: Any) -> str:
    """Of the numbers that dense ops multiply; see Case."""
    return "int8" if backend.dense_dtype == "q8" else ""


def copies(backend: Any, nbytes: int) -> int:
    """How many sets of weights of this size make the caches useless; a simulated GPU has none."""
    if backend.device == "simt" or nbytes < SMALLEST:
        return 1
    return min(-(-COLD_BYTES // nbytes), 2048)


def is_decoded(rows: int) -> bool:
    return rows <= DECODING


def decode_rows(rows: int) -> int:
    """Of so many rows, those that are decoded."""
    return rows if is_decoded(rows) else 0


def batch(rows: int, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row_start, context, page table) of `rows` decoded sequences or one prompt, after `context` tokens."""
    sequences = rows if is_decoded(rows) else 1
    pages = -(-(context + rows // sequences) // PAGE)
    return (
        np.linspace(0, rows, sequences + 1).astype(np.int32),
        np.full(sequences, context, np.int32),
        np.arange(sequences * pages, dtype=np.int32).reshape(sequences, pages),
    )


def page_pool(backend: Any, make: Callable[..., np.ndarray], pages: int, kv_heads: int):
    """(keys, values) as the backend lays out its cache, filled by make(*shape)."""
    across, along = (pages, kv_heads, HEAD_DIM, PAGE), (pages, kv_heads, PAGE, HEAD_DIM)
    return (make(*across), make(*along)) if backend.keys_are_transposed else (make(*along), make(*across))
