"""One parameter, a tensor or one expert's part of it: decoded when it is read, encoded when it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import numpy as np

from ..arguments import whole
from ..checkpoint.tensor_names import BLOCK_BYTES, BLOCK_VALUES
from ..errors import RequestError
from ..strict_json import show
from .formats import WriteReport, decode_bf16, decode_mxfp4, encode_bf16, encode_mxfp4
from .store import Store

#: Values that are decoded at once where a whole parameter is gone through: 4 MiB.
CHUNK_VALUES = 1 << 20
MOST_BINS = 1 << 16
#: From this scale on, the largest codes of MXFP4 are beyond float32.
LARGE_SCALE = 253


@dataclass(frozen=True)
class Statistics:
    """Of the finite values of a parameter; NaN where there are none. `norm` is the Euclidean one.

    zeros, not_finite: how many are 0, and how many NaN or infinite; values: how many there are in all
    """

    mean: float
    std: float
    min: float
    max: float
    norm: float
    zeros: int
    not_finite: int
    values: int


class Parameter:
    """A tensor of the model, or of one expert; [rows, columns] as the checkpoint has it: rows are outputs.

    name: as in the checkpoint, the packed experts' without `_blocks` and `_scales`; an expert's own part
    carries its
        number: model.layers.7.mlp.experts.3.down_proj
    shape, dtype: dtype is "BF16", or "MXFP4" for experts' matrices (OCP Microscaling Formats v1.0)
    nbytes: as stored
    """

    def __init__(
        self,
        store: Store,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        stored: tuple[str, ...],
        first: int = 0,
    ):
        self._store, self._stored, self._first = store, stored, first
        self.name, self.dtype, self.shape = name, dtype, shape
        # Numbers of a vector, a bias or the sinks are rows of their own.
        self._width = shape[-1] if dtype == "MXFP4" or (len(shape) == 2 and not name.endswith("bias")) else 1
        self._rows = prod(shape) // self._width

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes as stored: 2 a number, or 17 for 32 in MXFP4."""
        return self.size * 2 if self.dtype == "BF16" else self.size // BLOCK_VALUES * (BLOCK_BYTES + 1)

    @property
    def experts(self) -> list[Parameter]:
        """Each expert's part. Raises RequestError for a parameter that experts have no part in."""
        if ".mlp.experts." not in self.name or self.name.split(".mlp.experts.")[1][0].isdigit():
            raise RequestError(f"{self.name} is not divided among experts; use it as it is")
        return [self._expert(number) for number in range(self.shape[0])]

    def packed(self, rows: int | slice | None = None, expert: int | None = None) -> Any:
        """The numbers as stored: uint16 bits of bf16 in `shape`, or MXFP4 (blocks, scales), both uint8.

        blocks: [..., columns / 32, 16], low nibble first; scales: [..., columns / 32], 2^(scale - 127)
        rows: of axis 0, one or a slice; expert: of a parameter of all experts. Raises RequestError.
        """
        first, count, shape = self._part(rows, expert)
        stored = self._store.read_all(self._stored, first, count)
        if self.dtype == "BF16":
            return stored[0].view("<u2").reshape(shape)
        blocks = (*shape[:-1], shape[-1] // BLOCK_VALUES)
        return stored[0].reshape(*blocks, BLOCK_BYTES), stored[1].reshape(blocks)

    def decode(self, rows: int | slice | None = None, expert: int | None = None) -> np.ndarray:
        """The numbers as float32, exact, in `shape` or the part of it that is asked for (see `packed`)."""
        first, count, shape = self._part(rows, expert)
        return self._decode(first, count).reshape(shape)

    def part_shape(self, rows: int | slice | None = None, expert: int | None = None) -> tuple[int, ...]:
        """The shape of what `decode` with these arguments returns. Raises RequestError as it does."""
        return self._part(rows, expert)[2]

    def write(self, array: Any, rows: int | slice | None = None, expert: int | None = None) -> WriteReport:
        """Store real numbers of the shape that `decode` returns for the same part; says what rounding did.

        bf16 rounds to nearest even; MXFP4 is quantised by OCP Microscaling Formats v1.0, section 6.3 (see
        formats.encode_mxfp4). Writing what was decoded changes nothing. Outside an edit this is an edit of
        its own. Raises RequestError for another shape, for NaN, infinity and numbers that bf16 cannot hold.
        """
        first, count, shape = self._part(rows, expert)
        values = _real(array, self.name)
        if values.shape != shape:
            raise RequestError(
                f"{self.name}: the array has shape {list(values.shape)}, this part of it {list(shape)}; "
                "pass as many numbers as are to be replaced"
            )
        values = values.reshape(count, self._width)
        report = WriteReport()
        with self._store.transaction() as store:
            for at, some in self._chunks(first, count):
                now = store.read_all(self._stored, at, some)
                report += self._write(store, at, values[at - first : at - first + some], at - first, now)
        return report

    def write_packed(
        self, *arrays: np.ndarray, rows: int | slice | None = None, expert: int | None = None
    ) -> None:
        """Store numbers as `packed` returns them.

        RequestError for another dtype or shape, and for what would stand for NaN or infinity.
        """
        first, count, _ = self._part(rows, expert)
        now = self.packed(rows, expert)
        wanted = (now,) if self.dtype == "BF16" else now
        if len(arrays) != len(wanted):
            raise RequestError(
                f"{self.name}: {len(arrays)} arrays were passed, expected {len(wanted)}, as packed returns"
            )
        for array, like in zip(arrays, wanted, strict=True):
            if not isinstance(array, np.ndarray) or (array.dtype, array.shape) != (like.dtype, like.shape):
                found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else show(array)
                raise RequestError(
                    f"{self.name}: found {found}, expected {like.dtype} {list(like.shape)}, as packed returns"
                )
        self._check_finite(*arrays)
        with self._store.transaction() as store:
            for name, array in zip(self._stored, arrays, strict=True):
                store.write(name, first, np.ascontiguousarray(array).view(np.uint8).reshape(count, -1))

    def update(self, change: Callable[[np.ndarray], np.ndarray]) -> WriteReport:
        """Replace the numbers by `change` of them, float32 [some rows, columns] at a time; see `write`."""
        report = WriteReport()
        with self._store.transaction() as store:
            for at, some in self._chunks(self._first, self._rows):
                now = store.read_all(self._stored, at, some)
                old = self._decoded(now)
                new = _real(change(old), self.name)
                if new.shape != old.shape:
                    raise RequestError(
                        f"{self.name}: the new numbers have shape {list(new.shape)}, the old ones "
                        f"{list(old.shape)}; "
                        "return as many as were given"
                    )
                report += self._write(store, at, new, at - self._first, now)
        return report

    def statistics(self) -> Statistics:
        """Mean, standard deviation, extremes, norm and zeros; a few MiB decoded at a time."""
        total = squared = 0.0
        low, high, zeros, count = np.inf, -np.inf, 0, 0
        for values in self._finite_values():
            exact = values.astype(np.float64)
            total += float(exact.sum())
            squared += float((exact**2).sum())
            low, high = float(values.min(initial=low)), float(values.max(initial=high))
            zeros += int(np.count_nonzero(values == 0))
            count += values.size
        others = self.size - count
        if not count:
            return Statistics(np.nan, np.nan, np.nan, np.nan, np.nan, 0, others, self.size)
        mean = total / count
        std = sqrt(max(squared / count - mean**2, 0.0))
        return Statistics(mean, std, low, high, sqrt(squared), zeros, others, self.size)

    def histogram(self, bins: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Counts [bins] of the finite values between edges [bins + 1], equally spaced over their range.

        bins: 1 to MOST_BINS; RequestError for anything else
        """
        number = whole(bins)
        if number is None or not 1 <= number <= MOST_BINS:
            raise RequestError(f"bins must be a whole number from 1 to {MOST_BINS}, found {show(bins)}")
        found = self.statistics()
        span = (found.min, found.max) if found.not_finite < found.values else (0.0, 1.0)
        counts, edges = np.zeros(number, np.int64), np.histogram_bin_edges([], number, span)
        for values in self._finite_values():
            counts += np.histogram(values, edges)[0]
        return counts, edges

    def values(self) -> Iterator[np.ndarray]:
        """All numbers as float32 [some rows, columns], in order, a few MiB at a time."""
        for at, some in self._chunks(self._first, self._rows):
            yield self._decode(at, some)

    def _finite_values(self) -> Iterator[np.ndarray]:
        """The same without NaN and infinity; of a chunk that has some, in one dimension."""
        for values in self.values():
            finite = np.isfinite(values)
            yield values if finite.all() else values[finite]

    def __repr__(self) -> str:
        return f"<{self.name}: {self.dtype} {'x'.join(map(str, self.shape))}>"

    def _check_finite(self, numbers: np.ndarray, scales: np.ndarray | None = None) -> None:
        """Raise RequestError for packed numbers that stand for NaN or infinity."""
        if scales is None:
            if ((numbers & 0x7F80) == 0x7F80).any():
                raise RequestError(f"{self.name}: found NaN or infinity, expected finite numbers")
            return
        if (scales == 255).any():
            raise RequestError(f"{self.name}: a scale is 255, NaN in MXFP4; expected 0 to 254")
        large = scales >= LARGE_SCALE
        if large.any() and not np.isfinite(decode_mxfp4(numbers[large], scales[large][:, None])).all():
            raise RequestError(
                f"{self.name}: a scale of {LARGE_SCALE} or more makes numbers of 2^128 and beyond, which are "
                "infinite in float32; expected a smaller one, or smaller codes"
            )

    def _expert(self, number: int) -> Parameter:
        place = whole(number)
        if place is None or not 0 <= place < self.shape[0]:
            raise RequestError(
                f"{self.name} has experts 0 to {self.shape[0] - 1}, found {show(number)}; choose one of them"
            )
        name = self.name.replace(".mlp.experts.", f".mlp.experts.{place}.")
        each = self._rows // self.shape[0]
        return Parameter(
            self._store, name, self.dtype, self.shape[1:], self._stored, self._first + place * each
        )

    def _part(self, rows: int | slice | None, expert: int | None) -> tuple[int, int, tuple[int, ...]]:
        """First row, rows and shape of what is asked for."""
        if expert is not None:
            if (
                len(self.shape) < 2
                or "experts" not in self.name
                or self.name.split("experts.")[1][0].isdigit()
            ):
                raise RequestError(f"{self.name} is not divided among experts; leave expert out")
            return self._expert(expert)._part(rows, None)
        if rows is None:
            return self._first, self._rows, self.shape
        if len(self.shape) == 3 or (self._width == 1 and len(self.shape) == 2):
            raise RequestError(f"{self.name} has rows in each of {self.shape[0]} experts; say which expert")
        if isinstance(rows, slice):
            try:
                start, stop, step = rows.indices(self._rows)
            except TypeError:  # of other things than whole numbers
                step = None
            if step == 1:
                return self._first + start, max(stop - start, 0), (max(stop - start, 0), *self.shape[1:])
        elif (row := whole(rows)) is not None and -self._rows <= row < self._rows:
            return self._first + row % self._rows, 1, self.shape[1:]
        raise RequestError(
            f"{self.name} has {self._rows} rows, found rows = {show(rows)}; pass one of them or a slice"
        )

    def _chunks(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        step = max(CHUNK_VALUES // self._width, 1)
        for at in range(first, first + count, step):
            yield at, min(step, first + count - at)

    def _decode(self, first: int, count: int) -> np.ndarray:
        return self._decoded(self._store.read_all(self._stored, first, count))

    def _decoded(self, stored: list[np.ndarray]) -> np.ndarray:
        return decode_bf16(stored[0]) if self.dtype == "BF16" else decode_mxfp4(*stored)

    def _write(
        self, store: Store, first: int, values: np.ndarray, row: int, now: list[np.ndarray]
    ) -> WriteReport:
        if self.dtype == "BF16":
            stored, report = encode_bf16(values, self.name, row)
            store.write(self._stored[0], first, stored, now[0])
            return report
        codes, scales, report = encode_mxfp4(values, now[0], now[1], self.name, row)
        for name, rows, old in zip(self._stored, (codes, scales), now, strict=True):
            store.write(name, first, rows, old)
        return report


def _real(array: Any, what: str) -> np.ndarray:
    try:
        values = np.asarray(array)
        if values.dtype.kind not in "fiu":
            raise TypeError
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, np.float32).reshape(values.shape)
    except (TypeError, ValueError):
        raise RequestError(
            f"{what}: found {show(array)}, expected an array of real numbers; pass a NumPy array"
        ) from None
