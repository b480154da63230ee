"""What the backends' numerics ask of a test: GPUs read activations as bf16 and keep the cache in bf16."""

from __future__ import annotations

import numpy as np

from tests.compare import Difference, assert_close
from tests.reference import ops
from tests.reference.formats import bf16_to_float, float_to_bf16


def is_exact(backend) -> bool:
    """Whether activations stay float32 from op to op."""
    return backend.device == "cpu"


def as_read(backend, x: np.ndarray) -> np.ndarray:
    """float32 activations that the backend reads without rounding them."""
    return x if is_exact(backend) else bf16_to_float(float_to_bf16(x)).astype(np.float32)


def rows_for(backend, x: np.ndarray) -> np.ndarray:
    """Rows as the experts take them: float32, or bf16 bits."""
    return x if is_exact(backend) else float_to_bf16(x)


def rows_from(backend, x: np.ndarray) -> np.ndarray:
    return x if is_exact(backend) else bf16_to_float(x).astype(np.float32)


def rows_dtype(backend) -> type:
    return np.float32 if is_exact(backend) else np.uint16


def some_decoded(rng: np.random.Generator, rows: int) -> int:
    """How many of `rows` rows are decoded: none, all or some; a GPU computes the others by other kernels."""
    return int(rng.choice([0, rows, rng.integers(0, rows + 1)]))


def piece(rng: np.random.Generator, backend, left: int) -> int:
    """How many of a sequence's `left` rows to take: on a GPU never one of several, nor all but one."""
    counts = [n for n in range(1, left + 1) if is_exact(backend) or left == 1 or (n > 1 and left - n != 1)]
    return int(rng.choice(counts))


def tolerance(backend, exact: float, rounded: float = 2.0**-8) -> float:
    """`exact`, or `rounded` where something on the way is rounded to bf16."""
    return exact if is_exact(backend) else rounded


def assert_attends(
    backend, output, queries, keys, values, sinks, window, exact: float, what: str
) -> Difference:
    """Holds one sequence's attention to the float64 reference, whose arguments these are.

    A GPU's tensor cores take the weights as bf16, each off by up to 2^-8 of itself, or as roundings go by
    2^-8 / sqrt(3) at most: an entry may differ by what that makes of its weighted values w v, the sum of
    |w v| at worst and, where there are many, seven times the root of the sum of (w v)^2.
    """
    expected = ops.paged_attention(queries, keys, values, sinks, window)
    if is_exact(backend):
        return assert_close(output, expected, exact, what)
    magnitudes = ops.paged_attention(queries, keys, np.abs(values), sinks, window)
    squares = ops.paged_attention(queries, keys, values**2, sinks, window, power=2)
    found = assert_close(output, expected, 2.0**-6, what)
    rounding = 2.0**-8 * np.minimum(magnitudes, 7 / np.sqrt(3) * np.sqrt(squares))
    allowed = rounding + 1e-5 * np.abs(expected).max(initial=0)
    beyond = np.abs(output - expected) > allowed
    assert not beyond.any(), f"{what}: rounded weights do not explain {np.argwhere(beyond)[:4]}, {found}"
    return found
