"""attention_out against the float64 reference."""

import numpy as np
import pytest

from tests.compare import assert_close, assert_same_bits
from tests.ops.inputs import linear, multiple, normal
from tests.ops.numerics import as_read, some_decoded
from tests.reference import ops
from tests.reference.formats import bf16_to_float


def shapes(rng):
    yield 1, 96, 64
    yield 7, 2880, 128
    for rows in (1, int(rng.integers(2, 20)), int(rng.integers(20, 131))):
        yield rows, multiple(rng, 32, 12), multiple(rng, 64, 9)


def test_adds_the_projection_to_the_residual_stream(backend, rng):
    for rows, hidden, width in shapes(rng):
        weight, bias = linear(rng, hidden, width)
        attended = as_read(backend, normal(rng, rows, width, scale=3))
        residual = normal(rng, rows, hidden, scale=10)
        expected = residual + ops.attention_out(
            attended.astype(np.float64), bf16_to_float(weight), bf16_to_float(bias)
        )
        decoded = some_decoded(rng, rows)
        backend.attention_out(attended, weight, bias, residual, decoded)
        assert_close(
            residual, expected, 2e-6, f"rows {rows}, hidden {hidden}, width {width}, decoded {decoded}"
        )


@pytest.mark.parametrize("decoded", [True, False])
def test_a_row_does_not_depend_on_its_batch(backend, rng, decoded):
    hidden, width = multiple(rng, 32, 12), multiple(rng, 64, 8)
    weight, bias = linear(rng, hidden, width)
    total = 67 if decoded else 200  # enough for a tile of 128 tokens
    attended, residual = normal(rng, total, width), normal(rng, total, hidden)
    together = residual.copy()
    backend.attention_out(attended, weight, bias, together, total * decoded)
    for count in (1, 2, 3, 5, 13, 31, 60):
        first = int(rng.integers(0, total - count + 1))
        rows = slice(first, first + count)
        alone = residual[rows].copy()
        backend.attention_out(attended[rows].copy(), weight, bias, alone, count * decoded)
        assert_same_bits(alone, together[rows], f"rows {first} to {first + count} of {total}")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_row(backend, rng, value):
    weight, bias = linear(rng, 96, 64)
    attended, residual = normal(rng, 9, 64), normal(rng, 9, 96)
    attended[4, 63] = value
    backend.attention_out(attended, weight, bias, residual)
    assert not np.isfinite(residual[4][bf16_to_float(weight)[:, 63] != 0]).any()
    assert np.isfinite(np.delete(residual, 4, axis=0)).all()
