"""Ragged batches over a paged cache full of traps: whatever an op may not read is NaN."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from tests.ops.numerics import is_exact
from tests.reference.formats import bf16_to_float, float_to_bf16

HEAD_DIM = 64


@dataclass
class PagedBatch:
    row_start: np.ndarray  # int32 [sequences + 1]
    context: np.ndarray  # int32 [sequences], tokens in the cache before this step
    pages: np.ndarray  # int32 [sequences, pages of the longest]; -1 = not held
    keys: np.ndarray  # float32 or bf16 [pages, kv_heads, HEAD_DIM, page_size]
    values: np.ndarray  # same dtype [pages, kv_heads, page_size, HEAD_DIM]

    @contextmanager
    def cache_of(self, backend):
        """Keys and values as the backend lays them out: whichever the CPU transposes, a GPU does not."""
        if backend.keys_are_transposed:
            yield self.keys, self.values
            return
        turned = [np.ascontiguousarray(a.swapaxes(2, 3)) for a in (self.keys, self.values)]
        yield turned
        for mine, theirs in zip((self.keys, self.values), turned, strict=True):
            mine[...] = theirs.swapaxes(2, 3)

    @property
    def page_size(self) -> int:
        return self.keys.shape[-1]

    @property
    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.row_start, self.context, self.pages

    def rows(self, sequence: int) -> slice:
        return slice(int(self.row_start[sequence]), int(self.row_start[sequence + 1]))

    def positions(self, sequence: int) -> np.ndarray:
        """Of the rows of this step."""
        rows = self.rows(sequence)
        return self.context[sequence] + np.arange(rows.stop - rows.start)

    def slot(self, sequence: int, position: int) -> tuple[int, int]:
        return int(self.pages[sequence, position // self.page_size]), int(position % self.page_size)

    def read(self, sequence: int, positions) -> tuple[np.ndarray, np.ndarray]:
        """float64 keys and values [positions, kv_heads, HEAD_DIM]; NaN where the page is not held."""
        k = np.full((len(positions), self.keys.shape[1], HEAD_DIM), np.nan)
        v = k.copy()
        for i, position in enumerate(positions):
            page, slot = self.slot(sequence, position)
            if page >= 0:
                k[i], v[i] = as_float(self.keys[page, :, :, slot]), as_float(self.values[page, :, slot])
        return k, v

    def write(self, sequence: int, position: int, k: np.ndarray, v: np.ndarray) -> None:
        page, slot = self.slot(sequence, position)
        cast = float_to_bf16 if self.keys.dtype == np.uint16 else np.float32
        self.keys[page, :, :, slot], self.values[page, :, slot] = cast(k), cast(v)

    def only(self, sequence: int, first: int, count: int) -> PagedBatch:
        """The same cache, seen by `count` of a sequence's rows alone, from its row `first` on."""
        return PagedBatch(
            np.array([0, count], np.int32),
            self.context[sequence : sequence + 1] + np.int32(first),
            self.pages[sequence : sequence + 1],
            self.keys,
            self.values,
        )


def cache_dtype(backend, wanted: type = np.float32) -> type:
    """float32 or bf16 (as uint16), whichever is wanted and the backend can keep."""
    return wanted if is_exact(backend) else np.uint16


def as_float(array: np.ndarray) -> np.ndarray:
    return bf16_to_float(array) if array.dtype == np.uint16 else array.astype(np.float64)


def paged_batch(rng, sequences, kv_heads: int, page_size: int, dtype, window: int = 0) -> PagedBatch:
    """A batch of (context before, new rows) pairs over scattered pages; every slot is NaN.

    Pages that no row of the step can see are given back: their entry is -1.
    """
    held = []
    for before, new in sequences:
        oldest = max(0, before - window + 1) if window else 0
        held.append(range(oldest // page_size, -(-(before + new) // page_size)))
    spare = int(rng.integers(0, 4))
    free = list(rng.permutation(sum(map(len, held)) + spare))
    pages = np.full((len(sequences), max(h.stop for h in held) + int(rng.integers(0, 2))), -1, np.int32)
    for sequence, logical in enumerate(held):
        for page in logical:
            pages[sequence, page] = free.pop()
    count = sum(map(len, held)) + spare
    nan = float_to_bf16(np.float32([np.nan]))[0] if dtype == np.uint16 else np.float32(np.nan)
    return PagedBatch(
        np.cumsum([0, *(new for _, new in sequences)], dtype=np.int32),
        np.array([before for before, _ in sequences], np.int32),
        pages,
        np.full((count, kv_heads, HEAD_DIM, page_size), nan, dtype),
        np.full((count, kv_heads, page_size, HEAD_DIM), nan, dtype),
    )


def random_sequences(rng, rows: int, longest: int) -> list[tuple[int, int]]:
    """Splits `rows` into sequences: decoding ones of a single row and prefilling ones of many."""
    sequences = []
    while rows:
        new = 1 if rng.random() < 0.5 else int(rng.integers(1, rows + 1))
        sequences.append((int(rng.integers(0, longest)) if rng.random() < 0.7 else 0, new))
        rows -= new
    return sequences
