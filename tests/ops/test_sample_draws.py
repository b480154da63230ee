"""sample: single draws against argmax(logit / temperature + noise) over what the filters keep, in float64.

Every instruction set must draw the same token, so the scores are compared, not the distribution.
"""

import numpy as np
import pytest

from tests.ops.inputs import normal
from tests.ops.sampling_rows import copies, far_from_every_cut, native, random_setting
from tests.reference import sample as reference
from tests.reference.gumbel import gumbel, philox
from tests.reference.sample import SamplingRow, adjusted_logits


def assert_draws(tokens, logits, settings):
    """Each token has the largest score of those kept, up to what float32 can tell apart."""
    for row, (token, setting) in enumerate(zip(tokens, settings, strict=True)):
        kept = reference.sample(logits[row], setting) > 0
        with np.errstate(over="ignore"):
            adjusted = adjusted_logits(logits[row], setting)
        scores = (adjusted - adjusted.max()) / setting.temperature
        scores = np.where(kept, scores + gumbel(setting.seed, setting.position, len(scores)), -np.inf)
        short = scores.max() - scores[token]
        assert short <= 1e-5 * (1 + abs(scores.max())), f"row {row}, token {token} by {short}: {setting}"


def test_the_reference_is_philox():
    """Known answers of Random123, the authors' library: kat_vectors, philox4x32 with 10 rounds."""
    ones = 2**64 - 1
    for key, low, high, words in (
        (0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (ones, ones, ones, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ):
        found = philox(key, np.array([low], np.uint64), high)[0]
        assert " ".join(f"{int(word):08x}" for word in found) == words


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1000, 40_007])
def test_draws_are_those_of_the_definition(backend, rng, vocab):
    logits, settings = normal(rng, 20, vocab, scale=float(rng.choice([0.1, 3, 20]))), []
    for row in logits:
        while True:
            setting = random_setting(rng, vocab)
            setting.position = int(rng.integers(2**40))
            if far_from_every_cut(row, setting):
                break
        settings.append(setting)
    assert_draws(native(backend, logits, settings)[0], logits, settings)


@pytest.mark.parametrize("case", range(6))
def test_the_cut_is_at_the_right_token(backend, rng, case):
    """Nearly equal logits: any token kept too many or too few is soon drawn, or missed."""
    vocab = int(rng.integers(200, 1500))
    while True:
        logits = normal(rng, vocab, scale=0.05)
        setting = SamplingRow(
            temperature=float(np.float32(rng.uniform(0.3, 2))),
            top_p=float(np.float32(rng.uniform(0.1, 0.95))) if case % 3 != 0 else 1.0,
            top_k=int(rng.integers(1, vocab)) if case % 3 != 1 else 0,
            min_p=float(np.float32(rng.uniform(0.8, 0.95))) if case % 2 else 0.0,
            seed=int(rng.integers(2**63)),
        )
        if far_from_every_cut(logits, setting):
            break
    count = 3 * vocab if backend.device != "simt" else 30
    settings = copies(setting, count)
    tokens = native(backend, np.tile(logits, (count, 1)), settings)[0]
    kept = reference.sample(logits, setting) > 0
    scaled = np.where(kept, logits.astype(np.float64) / setting.temperature, -np.inf)
    scores = np.stack([scaled + gumbel(setting.seed, i, vocab) for i in range(count)])
    short = scores.max(1) - scores[np.arange(count), tokens]
    assert (short < 1e-5).all(), f"{(short >= 1e-5).sum()} of {count} draws differ: vocab {vocab}, {setting}"


def test_every_instruction_set_draws_the_same(rng):
    from gptoss_native import _native

    logits, settings = normal(rng, 200, 3000, scale=2), [random_setting(rng, 3000) for _ in range(200)]
    backends = [_native.Backend(threads=1, isa=isa) for isa in _native.cpu_isas()]
    expected, *others = (native(backend, logits, settings)[0] for backend in backends)
    for other in others:
        same = other == expected  # the weights' last bits may move a top-p cut
        assert all(same | np.array([setting.top_p < 1 or setting.min_p > 0 for setting in settings]))


def test_large_penalties_forbid_nothing_that_is_allowed(backend, rng):
    """Adjusted logits that leave float32's range stay finite, and the mask still decides."""
    logits = normal(rng, 1, 40)
    setting = SamplingRow(
        allowed=[3, 5], bias={3: 3e38, 5: -3e38, 9: 3e38}, output=[3, 3, 5], presence_penalty=-3e38,
        frequency_penalty=3e38, repetition_penalty=1e-30,
    )  # fmt: skip
    tokens = native(backend, np.repeat(logits, 50, axis=0), copies(setting, 50))[0]
    assert set(tokens.tolist()) <= {3, 5}
