"""Numbers as checkpoints store them, and as floats: bf16 and MXFP4, both ways."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from ..checkpoint.tensor_names import BLOCK_BYTES, BLOCK_VALUES
from ..errors import GptossError, RequestError


@dataclass(frozen=True)
class WriteReport:
    """What rounding has done to numbers that were written.

    values: how many; saturated: of them, those too large for their block's scale, stored as its largest
    max_error: largest |stored - written|; squared_error, energy: sums of its square and of written values'
    """

    values: int = 0
    saturated: int = 0
    max_error: float = 0.0
    squared_error: float = 0.0
    energy: float = 0.0

    @property
    def relative_error(self) -> float:
        """Norm of the error, as a share of the written numbers' norm."""
        return sqrt(self.squared_error / self.energy) if self.energy else 0.0

    def __add__(self, other: WriteReport) -> WriteReport:
        return WriteReport(
            self.values + other.values,
            self.saturated + other.saturated,
            max(self.max_error, other.max_error),
            self.squared_error + other.squared_error,
            self.energy + other.energy,
        )

    def __str__(self) -> str:
        text = (
            f"{self.values:,} values, relative error {self.relative_error:.2g}, largest {self.max_error:.3g}"
        )
        return text + (f", {self.saturated:,} saturated" if self.saturated else "")


def decode_bf16(rows: np.ndarray) -> np.ndarray:
    """float32 [rows, width] of uint8 [rows, 2 * width]."""
    return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)


def encode_bf16(values: np.ndarray, what: str, row: int = 0) -> tuple[np.ndarray, WriteReport]:
    """uint8 [rows, 2 * width] of float32 [rows, width], rounded to nearest even.

    what, row: whose the values are, and the first one's row, for the RequestError about one not finite
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")
    wrong = (rounded & 0x7F80) == 0x7F80
    if wrong.any():
        raise _not_finite(values, wrong, what, row)
    stored = rounded.view(np.uint8).reshape(len(values), -1)
    error = (decode_bf16(stored) - values).astype(np.float64)
    largest = float(np.abs(error).max(initial=0.0))
    exact = values.astype(np.float64)
    return stored, WriteReport(values.size, 0, largest, float(np.sum(error**2)), float(np.sum(exact**2)))


def decode_mxfp4(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [rows, 32 * blocks] of uint8 codes [rows, 16 * blocks] and scales [rows, blocks]; exact.

    Numbers of 2^128 and more, which scales from 253 on can stand for, become infinite.
    """
    from .. import _native

    return _native.decode_mxfp4(np.ascontiguousarray(codes), np.ascontiguousarray(scales))


def encode_mxfp4(
    values: np.ndarray, codes: np.ndarray | None, scales: np.ndarray | None, what: str, row: int = 0
) -> tuple[np.ndarray, np.ndarray, WriteReport]:
    """Codes, scales and report of float32 [rows, 32 * blocks]: OCP Microscaling Formats v1.0, section 6.3.

    codes, scales: what is stored now; a block whose scale represents the new values exactly keeps it.
        Otherwise a scale is 2^(floor(log2 of the largest magnitude) - 2), at least 2^-127; values round to
        nearest, ties to even, and those beyond 6 times the scale are stored as 6 times it
    what, row: as in encode_bf16
    """
    from .. import _native

    keeps = codes is not None and scales is not None
    blocks = values.shape[1] // BLOCK_VALUES
    codes = np.array(codes) if keeps else np.zeros((len(values), blocks * BLOCK_BYTES), np.uint8)
    scales = np.array(scales) if keeps else np.zeros((len(values), blocks), np.uint8)
    try:
        lost = _native.quantize_mxfp4(np.ascontiguousarray(values), codes, scales, keeps)
    except GptossError:
        raise _not_finite(values, ~np.isfinite(values), what, row) from None
    return codes, scales, WriteReport(values.size, *lost)


def _not_finite(values: np.ndarray, wrong: np.ndarray, what: str, row: int) -> RequestError:
    first, column = (int(i) for i in np.argwhere(wrong)[0])
    return RequestError(
        f"{what}: the value in row {row + first}, column {column} is {values[first, column]}, "
        "expected a finite number that bf16 can hold"
    )
