"""sample: log-probabilities, ranks and the status of each row, against the float64 reference."""

import numpy as np
import pytest

from tests.compare import assert_close, assert_same_bits
from tests.ops.inputs import normal
from tests.ops.sampling_rows import native, random_setting
from tests.reference import sample as reference
from tests.reference.sample import SamplingRow


@pytest.mark.parametrize("vocab", [1, 7, 1000, 70_001])
def test_logprobs_and_ranks_are_of_the_untouched_logits(backend, rng, vocab):
    count = min(5, vocab)
    logits = normal(rng, 12, vocab, scale=4)
    settings = [random_setting(rng, vocab) for _ in range(12)]
    token, logprob, rank, top_token, top_logprob, _ = native(backend, logits, settings, count)
    expected = reference.logprobs(logits)
    picked = np.take_along_axis(logits, token[:, None], axis=1)
    assert_close(
        logprob, np.take_along_axis(expected, token[:, None], axis=1)[:, 0], 2e-6, "log-probabilities"
    )
    assert (rank == 1 + (logits > picked).sum(axis=1)).all()
    assert (top_token == np.argsort(-logits, axis=1, kind="stable")[:, :count]).all()
    assert_close(top_logprob, np.take_along_axis(expected, top_token, axis=1), 2e-6, "top log-probabilities")


def test_ranks_and_top_tokens_among_equals(backend, rng):
    """Of equal logits the lower token comes first, on both sides of the cut."""
    vocab = int(rng.integers(100, 400))
    logits = rng.integers(-1, 2, (8, vocab)).astype(np.float32)
    logits[:, ::7] *= -1  # -0 and 0 are equals
    count = int(rng.integers(1, vocab))
    token, _, rank, top_token, _, _ = native(backend, logits, [SamplingRow(seed=i) for i in range(8)], count)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert (top_token == order[:, :count]).all()
    assert (order[np.arange(8), rank - 1] == token).all()


def test_a_row_can_do_without_a_report(backend, rng):
    logits, settings = normal(rng, 6, 500), [random_setting(rng, 500) for _ in range(6)]
    whole = native(backend, logits, settings, 7)
    for setting in settings[::2]:
        setting.skip_report = 1
    token, logprob, rank, top_token, top_logprob, _ = found = native(backend, logits, settings, 7)
    assert (token == whole[0]).all()
    assert (rank[::2] == 0).all()
    assert (top_token[::2] == 0).all()
    assert np.isnan(logprob[::2]).all()
    assert np.isnan(top_logprob[::2]).all()
    for before, after in zip(whole, found, strict=True):
        assert_same_bits(after[1::2], before[1::2], "the rows with a report")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_fails_alone(backend, rng, value):
    """Its neighbours come out as in a batch without it, bit for bit."""
    vocab, bad = int(rng.integers(1, 300)), int(rng.integers(5))
    logits, settings = normal(rng, 5, vocab), [random_setting(rng, vocab) for _ in range(5)]
    for setting in settings[::2]:
        setting.temperature = 0
    expected = native(backend, logits, settings, 1)
    assert expected[-1].tolist() == [0] * 5
    logits[bad, int(rng.integers(vocab))] = value
    found = native(backend, logits, settings, 1)
    assert found[-1].tolist() == [int(i == bad) for i in range(5)]
    for before, after in zip(expected[:-1], found[:-1], strict=True):
        assert_same_bits(np.delete(after, bad, axis=0), np.delete(before, bad, axis=0), "the other rows")
    token, logprob, rank, top_token, top_logprob, _ = (part[bad] for part in found)
    assert (token, rank, top_token) == (0, 0, 0)
    assert np.isnan([logprob, top_logprob[0]]).all()
