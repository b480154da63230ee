"""How many guesses run. Oracles: tokens a second of each choice, and texts that do or do not repeat."""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native.speculation import (
    MARGIN,
    MAX_DRAFTED,
    Drafter,
    HitRates,
    Speculation,
    SpeculativeConfig,
    StepCosts,
    speculative_config,
)

from tests.python.fake_native import SteadyCosts
from tests.python.test_engine import request_of


def planned(speculation, requests):
    """The drafts of the next step."""
    speculation.plan(requests, allowed=True)
    return [request.sequence.draft for request in requests]


def rows_run(speculation, prompt, answer, step=lambda draft: None):
    """(steps, guesses) in which the answer is generated, and the longest draft of each quarter of it."""
    request = request_of(prompt, len(answer) + 1)
    steps, guesses, longest = 0, 0, [0] * 4
    while len(request.output) < len(answer):
        [draft] = planned(speculation, [request])
        step(draft)
        steps, guesses = steps + 1, guesses + len(draft)
        quarter = 4 * len(request.output) // len(answer)
        longest[quarter] = max(longest[quarter], len(draft))
        for guess in (*draft, None):
            if len(request.output) == len(answer):
                break
            token = answer[len(request.output)]
            request.accept(token)
            if token != guess:
                break
    return steps, guesses, longest


def test_drafts_grow_where_all_is_right_and_stop_where_nothing_is(rng):
    text = rng.permutation(2000)[:600].tolist()
    speculation = Speculation(SpeculativeConfig(16, 4, 2), SteadyCosts())
    steps, _, longest = rows_run(speculation, text, text)
    assert steps < len(text) / 8
    assert longest[0] <= longest[3] == 16
    # Pairs that have stood before, each time with another token after them.
    pairs = rng.integers(0, 12, 600).tolist()
    speculation = Speculation(SpeculativeConfig(16, 4, 2), SteadyCosts())
    rows_run(speculation, pairs, rng.integers(0, 12, 600).tolist())
    steps, guesses, _ = rows_run(speculation, pairs, rng.integers(0, 12, 600).tolist())
    assert guesses <= 6, "nothing is gained, so next to nothing may be spent"
    assert steps >= 590


def test_one_that_copies_is_not_held_back_by_those_that_do_not(rng):
    speculation = Speculation(SpeculativeConfig(16, 4, 2), SteadyCosts())
    for _ in range(5):
        rows_run(speculation, rng.integers(0, 12, 300).tolist(), rng.integers(0, 12, 300).tolist())
    text = rng.permutation(2000)[:400].tolist()
    steps, _, _ = rows_run(speculation, text, text)
    assert steps < len(text) / 6


def test_a_changed_token_does_not_end_the_copy(rng):
    text = rng.permutation(2000)[:300].tolist()
    answer = [token + 5000 if place % 30 == 29 else token for place, token in enumerate(text)]
    drafter = Drafter(text, SpeculativeConfig(16, 4, 2), HitRates(512))
    drafter.follow(text + answer[:30])
    assert drafter.guess(5) == tuple(text[30:35])


#: What a step takes with guesses, in steps without; the last is of a machine on which a row costs a step.
CURVES = {
    "next to nothing": lambda guesses: 1 + 0.13 * guesses,
    "experts": lambda guesses: float(np.interp(guesses, [0, 1, 2, 3, 7, 15], [1, 1.6, 2.1, 2.5, 3.8, 5.5])),
    "much": lambda guesses: 1 + 0.4 * guesses,
    "everything": lambda guesses: 1.0 + guesses,
}


def speedup(speculation, prompt, answer, curve, rng):
    """Of an answer, on a machine whose steps vary by a third."""
    taken = 0.0

    def step(draft):
        nonlocal taken
        seconds = curve(len(draft))
        taken += seconds
        speculation.costs.saw(1, len(draft), seconds * float(np.exp(rng.normal(0, 0.3))))

    steps, _, _ = rows_run(speculation, prompt, answer, step)
    assert steps <= len(answer)
    return len(answer) / taken


@pytest.mark.parametrize(("curve", "least"), list(zip(CURVES, (2.0, 1.4, 1.3, 0.9), strict=True)))
def test_copies_gain_what_the_machine_gives_and_nothing_loses(curve, least, rng):
    """The second of two answers in a row, so that costs are known."""
    text = rng.permutation(3000)[:600].tolist()
    edited = [token + 5000 if rng.random() < 0.03 else token for token in text]
    speculation = Speculation(SpeculativeConfig(16, 4, 2))
    for _ in range(2):
        found = speedup(speculation, text, edited, CURVES[curve], rng)
    assert found > least
    text, other = rng.integers(0, 40, 600).tolist(), rng.integers(0, 40, 600).tolist()
    for _ in range(2):
        found = speedup(speculation, text, other, CURVES[curve], rng)
    assert found > 0.95


def test_the_choice_makes_the_most_tokens_a_second(rng):
    """Against every other choice, with known costs and rates; none where none is a fifth faster."""
    speculation = Speculation(SpeculativeConfig(20, 4, 2), SteadyCosts())
    for _ in range(300):
        rate, row = float(rng.uniform(0, 0.97)), float(rng.uniform(0, 1))
        speculation.rates.of = lambda agreement, rate=rate: rate
        speculation.costs.of = lambda sequences, most, row=row: [1 + row * n for n in range(most + 1)]
        request = request_of(rng.integers(0, 9, 30).tolist() * 2, 100)
        [draft] = planned(speculation, [request])
        chances = [rate**n for n in range(21)]
        speed = [sum(chances[: n + 1]) / (1 + row * n) for n in range(21) if n == 0 or chances[n] >= 0.1]
        best = max(range(len(speed)), key=speed.__getitem__)
        assert len(draft) == (best if speed[best] > 1 + MARGIN else 0)


def test_drafts_stay_within_the_answer_and_the_step(rng):
    speculation = Speculation(SpeculativeConfig(MAX_DRAFTED, 4, 2), SteadyCosts())
    speculation.rates.of = lambda agreement: 0.999
    speculation.costs.of = lambda sequences, most: [1.0] * (most + 1)
    text = rng.permutation(500).tolist()
    requests = [request_of([*text, *text[:20]], most) for most in (1, 2, 7, 60, 60, 60)]
    drafts = planned(speculation, requests)
    assert [len(draft) for draft in drafts[:3]] == [0, 1, 6]
    assert sum(map(len, drafts)) == MAX_DRAFTED
    assert drafts[2] == tuple(text[20:26])
    requests[3].sequence.paused = True
    assert planned(speculation, requests)[3] == ()
    speculation.plan(requests, allowed=False)
    assert not any(request.sequence.draft for request in requests)


def test_where_the_next_token_is_on_its_way_a_draft_is_awaited(rng):
    speculation = Speculation(SpeculativeConfig(8, 4, 2), SteadyCosts())
    speculation.rates.of = lambda agreement: 0.9
    text = rng.permutation(500).tolist()
    copying, other = request_of([*text, *text[:20]], 60), request_of(text, 60)
    for request in (copying, other):
        request.sequence.drawn = 0
    assert planned(speculation, [copying, other]) == [(), ()]
    assert (copying.sequence.awaited, other.sequence.awaited) == (True, False)


def test_costs_lie_between_those_seen_and_what_was_too_dear_is_tried_again():
    costs = StepCosts()
    assert costs.of(1, 2)[0] == 1 < costs.of(1, 2)[1] < costs.of(1, 2)[2]
    assert costs.needs_plain(1)
    for guesses, seconds in ((0, 2.0), (4, 4.0), (8, 5.0)):
        for _ in range(20):
            costs.saw(1, guesses, seconds)
    assert not costs.needs_plain(1)
    factors = costs.of(1, 12)
    assert factors[0] == 1.0
    assert [factors[n] for n in (2, 4, 6, 8)] == pytest.approx([1.5, 2.0, 2.25, 2.5])
    assert factors[12] > factors[8]
    assert costs.of(8, 4) != costs.of(1, 4), "many sequences are another case"
    costs.saw(1, 4, 1000.0)  # an interruption
    assert costs.of(1, 4)[4] < 2.5
    for _ in range(21 * StepCosts.DOUBT + 1):
        costs.saw(1, 0, 2.0)
    assert [guesses for guesses, _ in costs.factors(1)] == [0.0]


def test_a_factor_seen_more_often_is_doubted_later():
    costs = StepCosts()
    for _ in range(4):
        costs.saw(1, 0, 1.0)
    costs.saw(1, 1, 9.0)
    for _ in range(3):
        costs.saw(1, 8, 9.0)
    for _ in range(StepCosts.DOUBT + 1):
        costs.saw(1, 0, 1.0)
    assert [guesses for guesses, _ in costs.factors(1)] == [0.0, 8.0]


def test_a_step_without_guesses_is_due_from_time_to_time():
    costs = StepCosts()
    for _ in range(4):
        assert costs.needs_plain(1)
        costs.saw(1, 0, 1.0)
    for _ in range(StepCosts.COMPARE):
        assert not costs.needs_plain(1)
        costs.saw(1, 3, 1.0)
    costs.saw(1, 3, 1.0)
    assert costs.needs_plain(1)


def test_only_steps_that_follow_each_other_are_timed():
    times = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0])
    costs = StepCosts(clock=lambda: next(times))
    costs.finished(2, 0)
    costs.finished(2, 0)  # one second
    costs.finished(None, 0)  # with a prompt in it
    costs.finished(3, 0)  # two seconds
    costs.rested()
    costs.finished(4, 0)
    costs.finished(4, 0)  # three
    assert costs.seconds == {2: 1.0, 3: 2.0, 4: 3.0}


def test_one_limit_of_the_lookup_moves_the_other():
    assert speculative_config(None) is None
    assert speculative_config({}) == SpeculativeConfig()
    assert speculative_config({"prompt_lookup_max": 1}).prompt_lookup_min == 1
    assert speculative_config({"prompt_lookup_min": 6}).prompt_lookup_max == 6
