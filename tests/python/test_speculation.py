"""Drafts in the generation loop. Oracle: the same requests without, token for token and number for number.

The model repeats itself (fake_native's, with a leaning to what came a while ago), so that guesses are often
right and sometimes wrong; it reads its context back from the pages that it is given, so that a wrong one is
seen.
"""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native.constraints.states import Constraint, State, mask_of
from gptoss_native.engine import Engine
from gptoss_native.errors import RequestError
from gptoss_native.kv_cache import PageManager, window_pages_needed
from gptoss_native.sampling import SamplingParams
from gptoss_native.scheduler import Scheduler
from gptoss_native.speculation import MAX_DRAFTED, Speculation, SpeculativeConfig

from tests.python import fake_native
from tests.python.fake_native import ROW, FakeCache, FakeDraws, FakeModel, SteadyCosts
from tests.python.test_engine import assert_all_pages_free, request_of, scoring_of

pytestmark = pytest.mark.usefixtures("each_way")

VOCAB, WINDOW, PAGE, PERIOD = 50, 9, 4, 11


class Repeating(FakeModel):
    """Leans to the token of PERIOD tokens ago, not always enough to draw it."""

    leaning = 3.2

    def logits(self, full, recent):
        found = super().logits(full, recent)
        if len(full) >= PERIOD:
            found[full[-PERIOD]] += self.leaning
        return found


def engine_of(drafts, full_pages=500, max_sequences=4, max_step_tokens=40, tokens=16):
    window_pages = window_pages_needed(max_sequences, 10_000, max_step_tokens, WINDOW, PAGE)
    pages = PageManager(PAGE, WINDOW, full_pages, window_pages)
    ahead = fake_native.AHEAD
    scheduler = Scheduler(
        pages, max_sequences, max_step_tokens, 5, replays=ahead, max_drafted=MAX_DRAFTED if drafts else 0
    )
    cache, model = FakeCache(PAGE, full_pages, window_pages), Repeating(WINDOW, VOCAB)

    def enqueue_sample(*arguments):
        return FakeDraws(model, fake_native.fake_sample(*arguments))

    speculation = Speculation(SpeculativeConfig(tokens), SteadyCosts()) if drafts else None
    return Engine(model, cache, enqueue_sample, ROW, scheduler, VOCAB, ahead, speculation=speculation)


def results(requests):
    return [
        (request.output, request.logprobs, request.finish_reason, request.stop_reason, request.reader.tokens)
        for request in requests
    ]


def repetitive(rng, length):
    return (rng.integers(0, VOCAB, PERIOD).tolist() * (length // PERIOD + 1))[:length]


def repetitive_after(prompt, count):
    return [prompt[(len(prompt) + place) % PERIOD] for place in range(count)]


def random_requests(rng, count, longest):
    """As a function that makes the same ones each time: a request can run once only."""
    made = []
    for number in range(count):
        prompt = repetitive(rng, int(rng.integers(1, 30)))
        params = SamplingParams(
            temperature=float(rng.choice([0, 0.3])),
            logprobs=int(rng.choice([0, 3])),
            min_tokens=int(rng.choice([0, 5])),
            logit_bias={int(rng.integers(VOCAB)): float(rng.choice([-5, 1]))},
        )
        stops = {"stop_ids": [int(rng.integers(VOCAB))]} if number % 3 == 0 else {}
        if number % 4 == 0:
            stops["stop"] = int(rng.integers(VOCAB))
        made.append((prompt, int(rng.integers(5, longest - len(prompt))), params, number, stops))
    return lambda: [request_of(*rest, **stops) for *rest, stops in made]


def test_answers_with_drafts_are_those_without_whatever_the_batch(rng):
    """From roomy caches to barely large enough ones, where answers are preempted and start over."""
    drafted = accepted = preemptions = 0
    for _ in range(12):
        longest = 70
        limits = {
            "full_pages": -(-longest // PAGE) + int(rng.integers(0, 30)),
            "max_sequences": (sequences := int(rng.integers(1, 6))),
            "max_step_tokens": sequences + int(rng.integers(0, 40)),
        }
        requests = random_requests(rng, 8, longest)
        plain, drafting = requests(), requests()
        engine_of(False, **limits).run(plain)
        engine = engine_of(True, **limits, tokens=int(rng.integers(1, 20)))
        if rng.integers(2):  # whether it pays or not: most are wrong
            engine.speculation._best = lambda drafter, tokens, factors: (int(rng.integers(len(factors))), 0.0)
        engine.run(drafting)
        assert results(drafting) == results(plain)
        assert_all_pages_free(engine)
        drafted += engine.speculation.drafted
        accepted += engine.speculation.accepted
        preemptions += engine.scheduler.preemptions
    assert accepted > 100, "guesses must have been right, to be tested"
    assert drafted - accepted > 20, "and wrong"
    assert preemptions > 0


def test_fewer_steps_make_the_same_tokens(rng):
    prompt = repetitive(rng, 40)
    params = SamplingParams(temperature=0, logprobs=2)
    plain, drafting = request_of(prompt, 200, params), request_of(prompt, 200, params)
    without, engine = engine_of(False), engine_of(True)
    without.model.leaning = engine.model.leaning = 100
    without.run([plain])
    engine.run([drafting])
    assert results([drafting]) == results([plain])
    assert plain.output == repetitive_after(prompt, 200)
    assert engine.steps_run < without.steps_run / 5
    assert max(engine.model.steps[3:]) > 8


def test_one_that_drafts_runs_beside_scorings_and_long_prompts(rng):
    requests = random_requests(rng, 4, 60)
    text = rng.integers(0, VOCAB, 60).tolist()
    found = []
    for drafts in (False, True):
        tasks, (scoring, chunks) = requests(), scoring_of(text)
        engine_of(drafts, max_step_tokens=12).run([*tasks, scoring, request_of(text * 3, 4)])
        found.append((results(tasks), np.concatenate(chunks)))
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[0][1], found[1][1])


def test_pages_of_accepted_tokens_are_found_again_and_those_of_rejected_ones_never(rng):
    """Each answer with its prompt is the beginning of the next prompt."""
    engines = engine_of(False), engine_of(True)
    texts = [repetitive(rng, 20)] * 2
    for _ in range(6):
        outputs = []
        for place, engine in enumerate(engines):
            request = request_of(texts[place], 25, SamplingParams(temperature=0, logprobs=1))
            engine.run([request])
            outputs.append(results([request]))
            texts[place] = texts[place] + request.output
        assert outputs[0] == outputs[1]
    assert engines[1].scheduler.cached_tokens == engines[0].scheduler.cached_tokens > 0


def test_cancelling_one_leaves_the_others_as_they_are(rng):
    make = random_requests(rng, 5, 70)
    plain = make()
    engine_of(False).run(plain)
    drafting, engine = make(), engine_of(True)
    for number, _ in enumerate(engine.steps(drafting)):
        if number == 3:
            engine.cancel(drafting[2])
    for place, (with_drafts, without) in enumerate(zip(drafting, plain, strict=True)):
        if place != 2:
            assert results([with_drafts]) == results([without])
        assert with_drafts.output == without.output[: len(with_drafts.output)]
    assert_all_pages_free(engine)


class CountingMatcher:
    """A grammar that allows another part of the vocabulary at each place, and ends after `end` tokens."""

    def __init__(self, end, place=0):
        self.end, self.place = end, place

    @property
    def accepting(self):
        return self.place >= self.end

    stopped = accepting

    def mask(self):
        return mask_of([token for token in range(VOCAB) if (token + self.place) % 9], VOCAB)

    def take(self, token):
        assert (token + self.place) % 9, "a token that was not allowed"
        self.place += 1

    def copy(self):
        return CountingMatcher(self.end, self.place)


def test_a_constraint_binds_the_tokens_of_a_draft_each_at_its_place(rng):
    """States that change after some tokens, and a matcher of which each place is another one."""
    drafted = 0
    for _ in range(6):
        prompt, change = repetitive(rng, 30), int(rng.integers(VOCAB))

        def constraint(change=change):
            body = State(mask_of([], VOCAB), matcher=CountingMatcher(30), is_last=True)
            text = State(mask_of(range(VOCAB), VOCAB), next={change: body})
            odd = State(mask_of(range(1, VOCAB, 2), VOCAB), otherwise=text)
            text.next[(change + 1) % VOCAB] = odd
            return Constraint(text)

        plain, drafting = (request_of(prompt, 80, constraint=constraint()) for _ in range(2))
        engine_of(False).run([plain])
        engine = engine_of(True)
        engine.run([drafting])
        assert results([drafting]) == results([plain])
        drafted += engine.speculation.accepted
    assert drafted > 0


def test_a_draft_ends_before_what_cannot_be_drawn():
    request = request_of([1, 2], 20, stop_ids=[9], constraint=Constraint(State(mask_of(range(8), VOCAB))))
    for guess, planned in (([1, 2, 3], (1, 2, 3)), ([1, 9, 3], (1,)), ([1, 2, 8, 3], (1, 2)), ([9], ())):
        request.plan_draft(guess)
        assert request.sequence.draft == planned


def test_a_grammar_that_fails_ahead_only_ends_the_draft():
    class Failing(CountingMatcher):
        def mask(self):
            if self.place == 3:
                raise RequestError("too complex")
            return mask_of(range(VOCAB), VOCAB)

        def copy(self):
            return Failing(self.end, self.place)

    first = State(mask_of([], VOCAB), matcher=Failing(30), is_last=True)
    request = request_of([1, 2], 20, constraint=Constraint(first))
    request.plan_draft([20] * 6)
    assert len(request.sequence.draft) == 2
    assert len(request.draws(VOCAB, request.sequence.draft)) == 3


def test_penalties_of_a_row_count_the_guesses_before_it(rng):
    params = SamplingParams(repetition_penalty=1.2, min_tokens=3)
    request = request_of([1, 2], 20, params, stop_ids=[7])
    for token in (3, 4):
        request.accept(token)
    request.plan_draft([5, 6])
    draws = request.draws(VOCAB, (5, 6))
    assert [draw.output.tolist() for draw in draws] == [[3, 4], [3, 4, 5], [3, 4, 5, 6]]
    assert [draw.prompt.tolist() for draw in draws] == [[1, 2]] * 3
    assert [draw.position for draw in draws] == [2, 3, 4]
    assert [draw.allowed is None for draw in draws] == [False, True, True]
