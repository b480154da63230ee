"""How many guesses run. Oracles: the tokens a second that a choice makes, and answers that do or do not repeat."""

from __future__ import annotations

import pytest
from gptoss_native.speculation import (
    MAX_DRAFTED,
    Drafter,
    HitRates,
    Speculation,
    SpeculativeConfig,
    StepCosts,
    speculative_config,
)

from tests.python.test_engine import request_of


def planned(speculation, requests):
    """The drafts of the next step."""
    speculation.plan(requests, allowed=True)
    return [request.sequence.draft for request in requests]


def rows_run(speculation, prompt, answer):
    """(steps, guesses) in which the answer is generated, and the longest draft of each quarter of it."""
    request = request_of(prompt, len(answer) + 1)
    steps, guesses, longest = 0, 0, [0] * 4
    while len(request.output) < len(answer):
        [draft] = planned(speculation, [request])
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
    speculation = Speculation(SpeculativeConfig(16, 4, 2))
    steps, _, longest = rows_run(speculation, text, text)
    assert steps < len(text) / 8
    assert longest[0] <= longest[3] == 16
    # Pairs that have stood before, each time with another token after them.
    pairs = rng.integers(0, 12, 600).tolist()
    speculation = Speculation(SpeculativeConfig(16, 4, 2))
    rows_run(speculation, pairs, rng.integers(0, 12, 600).tolist())
    steps, guesses, _ = rows_run(speculation, pairs, rng.integers(0, 12, 600).tolist())
    assert guesses <= 6, "nothing is gained, so next to nothing may be spent"
    assert steps >= 590


def test_one_that_copies_is_not_held_back_by_those_that_do_not(rng):
    speculation = Speculation(SpeculativeConfig(16, 4, 2))
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


@pytest.mark.parametrize("row_cost", [0.0, 0.1, 0.5, 2.0])
def test_the_choice_makes_the_most_tokens_a_second(row_cost, rng):
    """Against every other choice, with costs and rates that are known."""
    speculation = Speculation(SpeculativeConfig(20, 4, 2))
    costs = {rows: 1 + row_cost * (rows - 1) for rows in range(1, 40)}
    for _ in range(30):
        for rows, seconds in costs.items():
            speculation.costs.saw(rows, seconds)
    for _ in range(200):
        rate = float(rng.random())
        speculation.rates.of = lambda agreement, rate=rate: rate
        text = rng.integers(0, 9, 30).tolist() * 2
        request = request_of(text, 100)
        [draft] = planned(speculation, [request])
        gain = [sum(rate**n for n in range(count + 1)) / costs[1 + count] for count in range(21)]
        best = max(gain)
        if rate < 0.99:
            assert gain[len(draft)] >= best / 1.2, (rate, len(draft), gain.index(best))
        assert gain[len(draft)] >= gain[0]


def test_drafts_stay_within_the_answer_and_the_step(rng):
    speculation = Speculation(SpeculativeConfig(MAX_DRAFTED, 4, 2))
    speculation.rates.of = lambda agreement: 0.999
    speculation.costs.of = lambda rows: 1.0
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
    speculation = Speculation(SpeculativeConfig(8, 4, 2))
    speculation.rates.of = lambda agreement: 0.9
    text = rng.permutation(500).tolist()
    copying, other = request_of([*text, *text[:20]], 60), request_of(text, 60)
    for request in (copying, other):
        request.sequence.drawn = 0
    assert planned(speculation, [copying, other]) == [(), ()]
    assert (copying.sequence.awaited, other.sequence.awaited) == (True, False)


def test_costs_lie_between_those_seen_and_are_tried_again():
    costs = StepCosts()
    assert costs.of(5) > costs.of(1)
    for rows, seconds in ((1, 1.0), (5, 3.0)):
        for _ in range(20):
            costs.saw(rows, seconds)
    assert costs.of(3) == pytest.approx(2.0)
    assert costs.of(9) > 3.0
    costs.saw(5, 100.0)  # an interruption
    assert costs.of(5) < 4.0
    for _ in range(StepCosts.MEMORY + 100):
        costs.saw(1, 1.0)
    assert list(costs.seen) == [1]


def test_only_steps_that_follow_each_other_are_timed():
    times = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0])
    costs = StepCosts(clock=lambda: next(times))
    costs.finished(2)
    costs.finished(2)  # one second
    costs.finished(None)  # with a prompt in it
    costs.finished(3)  # two seconds
    costs.rested()
    costs.finished(4)
    costs.finished(4)  # three
    assert costs.seen == {2: 1.0, 3: 2.0, 4: 3.0}


def test_one_limit_of_the_lookup_moves_the_other():
    assert speculative_config(None) is None
    assert speculative_config({}) == SpeculativeConfig()
    assert speculative_config({"prompt_lookup_max": 1}).prompt_lookup_min == 1
    assert speculative_config({"prompt_lookup_min": 6}).prompt_lookup_max == 6
