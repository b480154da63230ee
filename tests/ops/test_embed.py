"""embed copies rows of the embedding; the oracle is NumPy indexing, compared bit by bit."""

import numpy as np
import pytest
from gptoss_native.errors import GptossError

from tests.compare import assert_same_bits
from tests.ops.inputs import bf16, empty, multiple
from tests.reference import ops
from tests.reference.formats import bf16_to_float


@pytest.mark.parametrize("rows", [1, 2, 130])
def test_copies_the_row_of_each_token(backend, rng, rows):
    hidden, vocab = multiple(rng, 32, 12), int(rng.integers(1, 300))
    weight = bf16(rng, vocab, hidden)
    weight[rng.integers(vocab), rng.integers(hidden)] = 0x7FC0  # NaN is copied like any other value
    token_ids = rng.integers(0, vocab, rows).astype(np.int32)
    residual = empty(rows, hidden)
    backend.embed(token_ids, weight, residual)
    expected = ops.embed(token_ids, bf16_to_float(weight)).astype(np.float32)
    assert_same_bits(residual, expected, f"embed of {rows} rows, hidden {hidden}")


@pytest.mark.parametrize("bad", [-1, 7, 2**31 - 1])
def test_refuses_a_token_outside_the_vocabulary(backend, rng, bad):
    with pytest.raises(GptossError, match=str(bad)):
        backend.embed(np.array([3, bad], np.int32), bf16(rng, 7, 32), empty(2, 32))


def test_takes_tokens_that_have_been_drawn(backend, rng):
    hidden, vocab = 64, int(rng.integers(1, 300))
    weight, drawn = bf16(rng, vocab, hidden), rng.integers(0, vocab, 5).astype(np.int32)
    token_ids = rng.integers(-5, vocab, 70).astype(np.int32)
    residual = empty(70, hidden)
    backend.embed(token_ids, weight, residual, drawn)
    known = np.where(token_ids < 0, drawn[np.clip(-1 - token_ids, 0, 4)], token_ids)
    assert_same_bits(residual, ops.embed(known, bf16_to_float(weight)).astype(np.float32), f"vocab {vocab}")
    with pytest.raises(GptossError, match="-6"):
        backend.embed(np.array([-6], np.int32), weight, residual[:1], drawn)
