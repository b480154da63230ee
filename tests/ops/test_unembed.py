"""unembed against the float64 reference."""

import numpy as np
import pytest
from gptoss_native.errors import GptossError

from tests.compare import assert_close, assert_same_bits
from tests.ops.inputs import bf16, empty, multiple, norm_weight, normal
from tests.ops.numerics import tolerance
from tests.reference import ops
from tests.reference.formats import bf16_to_float


def native(backend, residual, rows, norm, eps, lm_head):
    logits = empty(len(rows), len(lm_head))
    backend.unembed(residual, np.asarray(rows, np.int32), norm, eps, lm_head, logits)
    return logits


def shapes(rng):
    yield 3, 2880, 100
    for rows in (1, int(rng.integers(2, 20)), 130):
        yield rows, multiple(rng, 32, 12), int(rng.integers(1, 700))


def test_matches_the_reference(backend, rng):
    for rows, hidden, vocab in shapes(rng):
        norm, lm_head = norm_weight(rng, hidden), bf16(rng, vocab, hidden, scale=0.1)
        residual = normal(rng, rows, hidden, scale=rng.choice([0.01, 1, 30]))
        before = residual.copy()
        wanted = rng.integers(0, rows, int(rng.integers(1, 2 * rows + 1)))  # any order, some of them twice
        logits = native(backend, residual, wanted, norm, 1e-5, lm_head)
        expected = ops.unembed(
            residual[wanted].astype(np.float64), bf16_to_float(norm), 1e-5, bf16_to_float(lm_head)
        )
        what = f"{len(wanted)} of {rows} rows, hidden {hidden}, vocab {vocab}"
        assert_close(logits, expected, tolerance(backend, 3e-6), what)
        assert_same_bits(residual, before, "the residual stream")


def test_a_row_does_not_depend_on_its_batch(backend, rng):
    hidden, vocab = multiple(rng, 32, 12), int(rng.integers(1, 700))
    norm, lm_head, residual = norm_weight(rng, hidden), bf16(rng, vocab, hidden), normal(rng, 50, hidden)
    together = native(backend, residual, range(50), norm, 1e-5, lm_head)
    for count in (1, 2, 3, 7, 19, 40):
        wanted = rng.permutation(50)[:count]
        assert_same_bits(
            native(backend, residual, wanted, norm, 1e-5, lm_head), together[wanted], f"rows {wanted}"
        )


def test_no_rows_are_no_logits(backend, rng):
    assert native(backend, normal(rng, 2, 32), [], norm_weight(rng, 32), 1e-5, bf16(rng, 9, 32)).shape == (
        0,
        9,
    )


@pytest.mark.parametrize("bad", [-1, 4])
def test_refuses_a_row_that_is_not_there(backend, rng, bad):
    with pytest.raises(GptossError, match=str(bad)):
        native(backend, normal(rng, 4, 32), [0, bad], norm_weight(rng, 32), 1e-5, bf16(rng, 9, 32))


def test_nan_stays_in_its_row(backend, rng):
    residual = normal(rng, 5, 64)
    residual[2, 0] = np.nan
    logits = native(backend, residual, range(5), norm_weight(rng, 64), 1e-5, bf16(rng, 33, 64))
    assert np.isnan(logits).all(axis=1).tolist() == [False, False, True, False, False]
    assert np.isfinite(np.delete(logits, 2, axis=0)).all()
