"""How two arrays differ, in the numbers that tell a rounding from a mistake."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Difference:
    """Measured over the entries that are finite in both arrays."""

    largest: float  # max |actual - expected|
    relative: float  # the same over max |expected|
    relative_norm: float  # |actual - expected| / |expected|, Euclidean
    cosine: float
    where: tuple[int, ...]  # of the largest
    nan_mismatches: int
    inf_mismatches: int

    def __str__(self) -> str:
        return (
            f"max abs {self.largest:.3e} at {self.where}, relative {self.relative:.3e}, "
            f"relative norm {self.relative_norm:.3e}, 1 - cosine {1 - self.cosine:.3e}, "
            f"NaN mismatches {self.nan_mismatches}, infinity mismatches {self.inf_mismatches}"
        )


def difference(actual: np.ndarray, expected: np.ndarray) -> Difference:
    """Compares two arrays of one shape; raises AssertionError when the shapes differ."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(actual) & np.isfinite(expected)
    a, e = np.where(finite, actual, 0), np.where(finite, expected, 0)
    error = np.abs(a - e)
    norms = np.linalg.norm(a) * np.linalg.norm(e)
    infinite = np.isinf(actual) | np.isinf(expected)
    return Difference(
        largest=float(error.max(initial=0)),
        relative=ratio(error.max(initial=0), np.abs(e).max(initial=0)),
        relative_norm=ratio(np.linalg.norm(error), np.linalg.norm(e)),
        cosine=float((a * e).sum() / norms) if norms > 0 else float(not error.any()),
        where=tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape)) if error.size else (),
        nan_mismatches=int((np.isnan(actual) != np.isnan(expected)).sum()),
        inf_mismatches=int((infinite & (actual != expected)).sum()),
    )


def ratio(part: float, whole: float) -> float:
    if part == 0:
        return 0.0
    return float(part / whole) if whole > 0 else float("inf")


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> Difference:
    """Fails unless the largest error is within `tolerance` of the largest expected value, the error's norm
    within `tolerance` of the expected norm, and NaN and infinities stand in the same places."""
    found = difference(actual, expected)
    message = f"{what}: {found}; allowed {tolerance:.1e}"
    assert found.nan_mismatches == 0, message
    assert found.inf_mismatches == 0, message
    assert max(found.relative, found.relative_norm) <= tolerance, message
    return found


def same_bits(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays hold the same bytes: unlike ==, NaN equals NaN and -0 differs from 0."""
    return (
        actual.shape == expected.shape
        and actual.dtype == expected.dtype
        and np.ascontiguousarray(actual).tobytes() == np.ascontiguousarray(expected).tobytes()
    )


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Fails with the measured difference unless both arrays hold the same bytes."""
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, expected {expected.dtype}"
    assert same_bits(actual, expected), f"{what}: not bitwise equal; {difference(actual, expected)}"
