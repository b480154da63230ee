"""sample: the float64 reference gives the distribution; a chi-square over many positions judges the draws.

test_sample_draws.py compares single draws, test_sample_report.py what is said about them.
"""

import numpy as np
import pytest
from gptoss_native.errors import GptossError

from tests.ops.inputs import normal
from tests.ops.sampling_rows import copies, far_from_every_cut, native, random_setting
from tests.reference import sample as reference
from tests.reference.sample import SamplingRow


def draw(backend, logits, setting, count):
    """`count` independent draws from one row of logits: one seed, successive positions.

    The simulated GPU takes milliseconds a row: a twentieth of the draws there.
    """
    count = count // 20 if backend.device == "simt" else count
    return native(backend, np.tile(logits, (count, 1)), copies(setting, count))[0]


def assert_follows(tokens, probability, what):
    """Only tokens that may occur, as often as they should: chi-square, false alarms about once in 10^7."""
    counts = np.bincount(tokens, minlength=len(probability))
    forbidden = counts[probability == 0].sum()
    assert forbidden == 0, f"{what}: {forbidden} draws of tokens that were cut"
    expected = probability * len(tokens)
    usual = expected >= 5
    observed = np.append(counts[usual], counts[~usual].sum())
    expected = np.append(expected[usual], expected[~usual].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = max(len(expected) - 1, 1)
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1)).sum()
    limit = freedom + 5.2 * np.sqrt(2 * freedom) + 28  # Laurent and Massart 2000, lemma 1, at x = 13.5
    assert statistic < limit, f"{what}: chi-square {statistic:.1f} over {freedom} degrees, limit {limit:.1f}"


def test_greedy_takes_the_largest_adjusted_logit(backend, rng):
    vocab = int(rng.integers(2, 3000))
    logits, settings = normal(rng, 20, vocab, scale=3), []
    for _ in range(20):
        setting = random_setting(rng, vocab)
        setting.temperature = 0.0
        settings.append(setting)
    tokens = native(backend, logits, settings)[0]
    for i, setting in enumerate(settings):
        adjusted = reference.adjusted_logits(logits[i], setting)
        assert adjusted[tokens[i]] >= adjusted.max() - 1e-5, f"row {i} of {setting}: token {tokens[i]}"


def test_greedy_ties_go_to_the_lower_token(backend):
    logits = np.zeros((1, 100), np.float32)
    logits[0, [97, 40, 41]] = 2
    assert native(backend, logits, [SamplingRow(temperature=0)])[0] == [40]


@pytest.mark.parametrize("case", range(10))
def test_draws_follow_the_distribution(backend, rng, case):
    vocab = int(rng.choice([2, 5, 33, 64, 200]))
    while True:
        logits, setting = normal(rng, vocab, scale=2), random_setting(rng, vocab)
        if far_from_every_cut(logits, setting):
            break
    tokens = draw(backend, logits, setting, 4000)
    assert_follows(tokens, reference.sample(logits, setting), f"vocab {vocab}, {setting}")


@pytest.mark.parametrize(
    "effect",
    [
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 0.5},
        {"allowed": [1, 4, 5, 39]},
        {"bias": {2: 3.0, 7: -100.0}},
        {"repetition_penalty": 3.0, "prompt": [0, 1, 1], "output": [38]},
        {"presence_penalty": 2.0, "prompt": [3], "output": [0, 0, 1]},
        {"frequency_penalty": 1.0, "prompt": [3], "output": [0, 0, 0, 1]},
    ],
    ids=lambda effect: next(iter(effect)),
)
def test_each_effect_alone(backend, effect):
    logits = np.linspace(2, -2, 40, dtype=np.float32)
    setting = SamplingRow(**effect)
    probability = reference.sample(logits, setting)
    assert_follows(draw(backend, logits, setting, 6000), probability, str(effect))
    assert np.abs(probability - reference.sample(logits, SamplingRow())).max() > 0.01, (
        "the effect changed nothing"
    )


def test_equal_logits_at_a_cut_go_to_the_lower_token(backend):
    logits = np.zeros(50, np.float32)
    for setting in (SamplingRow(top_k=3), SamplingRow(top_p=0.05)):
        assert set(draw(backend, logits, setting, 1000)) == {0, 1, 2}, setting


def test_a_draw_depends_on_seed_and_position_only(backend, rng):
    vocab = 500
    logits = normal(rng, 40, vocab)
    settings = [
        SamplingRow(seed=int(rng.integers(2**63)), position=int(rng.integers(2**40))) for _ in range(40)
    ]
    together = native(backend, logits, settings)[0]
    for i in rng.permutation(40)[:10]:
        assert native(backend, logits[i : i + 1].copy(), [settings[i]])[0] == together[i], f"row {i} alone"
    order = rng.permutation(40)
    assert (native(backend, logits[order].copy(), [settings[i] for i in order])[0] == together[order]).all()
    other = [SamplingRow(seed=s.seed + 1, position=s.position) for s in settings]
    assert (native(backend, logits, other)[0] != together).any(), "the seed changed nothing"


def test_seeds_and_positions_are_independent(backend, rng):
    """Pairs of draws from neighbouring seeds, positions or both fill the square evenly."""
    count = 4000 if backend.device != "simt" else 200
    first, uniform = int(rng.integers(2**62)), np.zeros((count, 6), np.float32)
    for step in ((0, 1), (1, 0), (1, -1)):
        here = [SamplingRow(seed=first + (i % 63), position=1 + i // 63) for i in range(count)]
        there = [SamplingRow(seed=s.seed + step[0], position=s.position + step[1]) for s in here]
        pairs = 6 * native(backend, uniform, here)[0] + native(backend, uniform, there)[0]
        assert_follows(pairs, np.full(36, 1 / 36), f"pairs of draws {step} apart")


def test_extreme_logits(backend):
    logits = np.array(
        [[3e38, -3e38, 1, 0], [-9e37, -8e37, -2e38, -3e38], [-1e4, -1e4, -1e4 + 1, -1e4]], np.float32
    )
    for temperature in (0.0, 1.0, 1e-6):
        for top_p in (1.0, 0.9):
            tokens = native(backend, logits, [SamplingRow(temperature=temperature, top_p=top_p)] * 3)[0]
            assert tokens[:2].tolist() == [0, 1], f"temperature {temperature}, top_p {top_p}"
            assert temperature == 1 or tokens[2] == 2, f"temperature {temperature}, top_p {top_p}"


def test_a_mask_of_one_token_decides(backend, rng):
    logits = normal(rng, 65, 65, scale=10)
    settings = [SamplingRow(allowed=[i], temperature=float(i % 2), top_p=0.5) for i in range(65)]
    assert native(backend, logits, settings)[0].tolist() == list(range(65))


def test_refuses_a_mask_that_allows_nothing(backend, rng):
    settings = [SamplingRow(allowed=[39]), SamplingRow(), SamplingRow(allowed=[])]
    with pytest.raises(GptossError, match="row 1 allows none"):
        native(backend, normal(rng, 3, 40), settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bias": {40: 1.0}},
        {"bias": {-1: 1.0}},
        {"bias": {0: np.inf}},
        {"prompt": [40]},
        {"output": [-1]},
        {"temperature": -1.0},
        {"top_k": -1},
        {"temperature": np.nan},
        {"top_p": np.nan},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"skip_report": 2},
    ],
)
def test_refuses_settings_out_of_range(backend, rng, wrong):
    with pytest.raises(GptossError):
        native(backend, normal(rng, 1, 40), [SamplingRow(**wrong)])


def test_a_temperature_near_zero_is_greedy(backend, rng):
    """Divided by 1e-40, every positive logit overflows: the largest must still win."""
    logits = normal(rng, 50, 300)
    tokens = native(backend, logits, copies(SamplingRow(temperature=1e-40), 50))[0]
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))
