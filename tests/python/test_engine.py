"""The generation loop on a model that answers from its pages alone (see fake_native)."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

import numpy as np
import pytest
from gptoss_native.engine import Engine
from gptoss_native.errors import GptossError, RequestError
from gptoss_native.kv_cache import PageManager, window_pages_needed
from gptoss_native.request import Request, Scoring
from gptoss_native.sampling import SamplingParams
from gptoss_native.scheduler import Scheduler

from tests.python import fake_native
from tests.python.fake_native import ROW, FakeCache, FakeDraws, FakeModel, expected_tokens, logits_after

pytestmark = pytest.mark.usefixtures("each_way")

VOCAB, WINDOW, PAGE = 50, 9, 4
GREEDY = SamplingParams(temperature=0)


class TokenList:
    """A reader that keeps tokens and ends at a given one, as a stop string would."""

    def __init__(self, stop=None):
        self.tokens, self.finished, self.stop = [], 0, stop

    def push(self, token_id, *, ends, may_stop):
        self.tokens.append(token_id)
        return "stop!" if may_stop and token_id == self.stop else None

    def finish(self):
        self.finished += 1


def engine_of(full_pages=2000, max_sequences=4, max_step_tokens=16):
    window_pages = window_pages_needed(max_sequences, 10_000, max_step_tokens, WINDOW, PAGE)
    pages = PageManager(PAGE, WINDOW, full_pages, window_pages)
    ahead = fake_native.AHEAD
    scheduler = Scheduler(pages, max_sequences, max_step_tokens, max_logit_rows=5, replays=ahead)
    cache, model = FakeCache(PAGE, full_pages, window_pages), FakeModel(WINDOW, VOCAB)

    def enqueue_sample(*arguments):
        return FakeDraws(model, fake_native.fake_sample(*arguments))

    return Engine(model, cache, enqueue_sample, ROW, scheduler, VOCAB, ahead)


def request_of(prompt, max_tokens, params=GREEDY, seed=0, stop_ids=(), stop=None, eos=(), **options):
    ends = frozenset(stop_ids) | frozenset(eos)
    return Request(prompt, params, seed, max_tokens, ends, TokenList(stop), frozenset(eos), **options)


def scoring_of(tokens):
    """A scoring and the list its chunks of logits go to."""
    chunks = []
    return Scoring(tokens, lambda logits: chunks.append(logits.copy())), chunks


def expected_logits(tokens):
    return [logits_after(tokens[: n + 1], WINDOW, VOCAB) for n in range(len(tokens))]


def assert_all_pages_free(engine):
    with engine._turn:  # the loop has ended
        pass
    pages = engine.scheduler.pages
    assert pages.full.free == pages.full.count
    assert pages.window_pool.free == pages.window_pool.count
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting


def test_greedy_tokens_are_those_of_the_definition_whatever_the_batch(rng):
    """Random prompts in caches from roomy to barely large enough: prompts are cut, wait and start over."""
    for _ in range(15):
        longest = 60
        engine = engine_of(
            full_pages=-(-longest // PAGE) + int(rng.integers(0, 20)),
            max_sequences=int(rng.integers(1, 6)),
            max_step_tokens=int(rng.integers(6, 40)),
        )
        requests = []
        for _ in range(8):
            prompt = rng.integers(0, VOCAB, int(rng.integers(1, 40))).tolist()
            requests.append(request_of(prompt, int(rng.integers(1, longest - len(prompt)))))
        engine.run(requests)
        for request in requests:
            assert request.output == expected_tokens(request.prompt, request.max_tokens, WINDOW, VOCAB)
            assert request.finish_reason == "length"
            assert request.reader.tokens == request.output
            assert request.reader.finished == 1
        assert_all_pages_free(engine)


def test_draws_depend_on_seed_and_position_only():
    params = SamplingParams(temperature=1.0)
    alone = request_of([1, 2, 3], 12, params, seed=5)
    engine_of().run([alone])
    engine = engine_of(max_step_tokens=5)
    crowd = [request_of([4] * n, 12, params, seed=n) for n in range(1, 9)]
    again, other = request_of([1, 2, 3], 12, params, seed=5), request_of([1, 2, 3], 12, params, seed=6)
    engine.run([*crowd, again, other])
    assert again.output == alone.output
    assert other.output != alone.output


def test_stop_tokens_stop_strings_and_length():
    tokens = expected_tokens([1, 2], 10, WINDOW, VOCAB)
    end = tokens[3]
    count = tokens.index(end) + 1
    eos = request_of([1, 2], 10, eos=[end])
    own = request_of([1, 2], 10, stop_ids=[end])
    text = request_of([1, 2], 10, stop=end)
    length = request_of([1, 2], 10)
    engine = engine_of()
    engine.run([eos, own, text, length])
    for request, reason, detail in ((eos, "stop", None), (own, "stop", end), (text, "stop", "stop!")):
        assert request.output == tokens[:count]
        assert (request.finish_reason, request.stop_reason) == (reason, detail)
    assert (length.finish_reason, len(length.output)) == ("length", 10)
    assert_all_pages_free(engine)


def test_nothing_ends_an_answer_before_min_tokens():
    params = SamplingParams(temperature=0, min_tokens=3, logit_bias={7: 100.0})  # would always draw 7
    masked, text = request_of([1, 2], 9, params, stop_ids=[7]), request_of([1, 2], 9, params, stop=7)
    engine_of().run([masked, text])
    assert 7 not in masked.output[:3]
    assert masked.output[3:] == [7]
    assert text.output == [7, 7, 7, 7]


def test_logprobs_are_those_of_the_untouched_logits():
    params = SamplingParams(temperature=0, logprobs=3, logit_bias={7: 100.0})
    request, plain = request_of([1, 2], 2, params), request_of([1, 2], 2)
    engine_of().run([request, plain])
    assert (plain.logprobs, plain.cumulative_logprob) == ([], None)
    assert request.output == [7, 7]
    logits = logits_after([1, 2], WINDOW, VOCAB).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    found = request.logprobs[0]
    assert found[7].logprob == pytest.approx(expected[7], abs=1e-5)
    assert found[7].rank == 1 + (expected > expected[7]).sum()
    top = np.argsort(-expected)[:3].tolist()
    assert list(found)[:3] == top
    assert [found[token].rank for token in top] == [1, 2, 3]
    assert request.cumulative_logprob == pytest.approx(sum(place[7].logprob for place in request.logprobs))


def test_a_failing_step_frees_its_pages_and_leaves_the_engine_usable():
    engine = engine_of()
    engine.model.fail_at = 3
    requests = [request_of([1, 2, 3], 10), request_of([4] * 30, 10)]
    with pytest.raises(GptossError, match="on fire") as caught:
        engine.run(requests)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert {request.finish_reason for request in requests} == {"abort"}
    assert all(isinstance(request.error, GptossError) for request in requests)
    assert_all_pages_free(engine)
    after = request_of([1, 2, 3], 5)
    engine.run([after])
    assert after.output == expected_tokens([1, 2, 3], 5, WINDOW, VOCAB)


@pytest.mark.parametrize("drawn", [0, 3])
def test_logits_that_are_not_finite_end_only_their_own_request(drawn):
    engine = engine_of()
    whole = expected_tokens([1, 2], 10, WINDOW, VOCAB)
    engine.model.spoilt = [1, 2, *whole[:drawn]]
    failed, others = request_of([1, 2], 10), [request_of([n], 10) for n in range(5)]
    engine.run([*others[:2], failed, *others[2:]])
    assert (failed.finish_reason, failed.output, failed.error) == ("error", whole[:drawn], None)
    assert f"2 prompt and {drawn} answer tokens hold NaN" in failed.failure
    assert failed.reader.finished == 1
    for request in others:
        assert (request.finish_reason, request.failure) == ("length", None)
        assert request.output == expected_tokens(request.prompt, 10, WINDOW, VOCAB)
    assert_all_pages_free(engine)


def test_closing_the_iterator_aborts_only_its_own_request():
    engine = engine_of()
    other, own = request_of([5], 200), request_of([6], 5000)
    others, steps = engine.steps([other]), engine.steps([own])
    next(others)
    for _ in range(3):
        next(steps)
    steps.close()
    for _ in others:
        pass
    engine.run([request_of([1], 1)])  # whatever was asked for before has happened by its end
    assert own.finish_reason == "abort"
    assert own.reader.finished == 1
    assert other.output == expected_tokens([5], 200, WINDOW, VOCAB)
    assert_all_pages_free(engine)


def test_threads_share_steps_and_get_their_own_answers():
    engine = engine_of()
    requests = [request_of([n, n + 1], 30) for n in range(8)]
    threads = [threading.Thread(target=engine.run, args=([request],)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for request in requests:
        assert request.output == expected_tokens(request.prompt, 30, WINDOW, VOCAB)
    assert_all_pages_free(engine)


def test_a_request_that_could_never_fit_is_refused():
    engine = engine_of(full_pages=5)
    engine.run([request_of([1], 20)])
    with pytest.raises(RequestError, match=r"21 tokens.*20 tokens"):
        engine.run([request_of([1, 2], 20)])
    assert_all_pages_free(engine)


def test_logits_of_every_token_in_chunks():
    engine, tokens = engine_of(), list(range(23))
    scoring, chunks = scoring_of(tokens)
    engine.run([scoring])
    assert [len(chunk) for chunk in chunks] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.concatenate(chunks), expected_logits(tokens))
    assert_all_pages_free(engine)


def test_scorings_and_answers_share_a_cache_that_is_too_small_for_both(rng):
    """They take turns at the pages; nobody's numbers change, and every logit comes once."""
    for _ in range(8):
        engine = engine_of(
            full_pages=15 + int(rng.integers(0, 8)),
            max_sequences=int(rng.integers(1, 5)),
            max_step_tokens=int(rng.integers(5, 30)),
        )
        texts = [rng.integers(0, VOCAB, int(rng.integers(1, 60))).tolist() for _ in range(4)]
        scorings = [scoring_of(text) for text in texts]
        answers = [request_of(text[:20], 30) for text in texts]
        tasks = [*answers, *(scoring for scoring, _ in scorings)]
        engine.run([tasks[place] for place in rng.permutation(len(tasks))])
        for text, (_, chunks) in zip(texts, scorings, strict=True):
            np.testing.assert_array_equal(np.concatenate(chunks), expected_logits(text))
        for request in answers:
            assert request.output == expected_tokens(request.prompt, 30, WINDOW, VOCAB)
        assert_all_pages_free(engine)


def test_what_cannot_be_drawn_ends_one_request():
    """A mask that allows nothing, which the native sampler would refuse for the whole batch."""
    engine = engine_of()
    params = SamplingParams(temperature=0, min_tokens=1)
    bad, others = request_of([1], 9, params, stop_ids=range(VOCAB)), [request_of([n], 9) for n in range(3)]
    with pytest.raises(RequestError, match="50 stop tokens are the whole vocabulary"):
        engine.run([*others[:1], bad, *others[1:]])
    assert (bad.finish_reason, bad.output) == ("abort", [])
    again = [request_of([n], 9) for n in range(3)]
    engine.run(again)
    for request in again:
        assert request.output == expected_tokens(request.prompt, 9, WINDOW, VOCAB)
    assert_all_pages_free(engine)


def test_the_priority_says_who_comes_first_and_the_arrival_among_equals():
    engine, ends = engine_of(max_sequences=1), []
    requests = [request_of([n], 5, priority=priority) for n, priority in enumerate([3, 1, 2, 1, 0])]
    engine.submit(requests, lambda task: ends.append(task) if task.ended else None)
    engine.run([request_of([9], 1, priority=9)])
    places = [requests.index(task) for task in ends]
    first = places.pop(0) if places[0] == 0 else None  # it may have begun before the others came
    assert places == [4, 1, 3, 2] + ([0] if first is None else [])


def test_a_deadline_ends_a_request_and_no_other():
    engine = engine_of()
    late, other = request_of([1], 400, deadline=time.monotonic() + 0.03), request_of([2], 30)
    engine.run([late, other])
    assert (late.finish_reason, other.finish_reason) == ("error", "length")
    assert "deadline" in late.failure
    assert late.output == expected_tokens([1], 400, WINDOW, VOCAB)[: len(late.output)]
    assert_all_pages_free(engine)


def test_a_paused_request_waits_and_goes_on_where_it_was():
    engine, heard = engine_of(), SimpleQueue()
    own = request_of([1], 40)

    def listen(task):
        heard.put(len(task.output))
        if len(task.output) == 5 and not task.ended:
            engine.pause(task, True)

    engine.submit([own], listen)
    while heard.get() < 5:
        pass
    other = request_of([2], 30)
    engine.run([other])
    assert 5 <= len(own.output) <= 7  # what was on its way still came
    engine.pause(own, False)
    while heard.get() < 40:
        pass
    assert own.output == expected_tokens([1], 40, WINDOW, VOCAB)
    assert other.output == expected_tokens([2], 30, WINDOW, VOCAB)
    assert_all_pages_free(engine)


def test_a_second_text_takes_over_the_pages_of_the_beginning_they_share(rng):
    """The third does too, from pages that nobody holds any more; the tokens are those of the definition."""
    for _ in range(10):
        engine = engine_of()
        shared = rng.integers(0, VOCAB, int(rng.integers(PAGE, 60))).tolist()
        texts = [shared + rng.integers(0, VOCAB, int(rng.integers(1, 20))).tolist() for _ in range(3)]
        for place, text in enumerate(texts):
            request = request_of(text, 12)
            engine.run([request])
            assert request.output == expected_tokens(text, 12, WINDOW, VOCAB)
            assert request.sequence.cached >= (len(shared) // PAGE * PAGE if place else 0)
        assert_all_pages_free(engine)


def test_conversations_hit_what_their_turns_have_left(rng):
    """Turns grow in a cache that has to forget some of them; every answer is that of the definition."""
    for _ in range(6):
        engine, hits = engine_of(full_pages=45, max_sequences=3), 0
        histories = [rng.integers(0, VOCAB, 9).tolist() for _ in range(4)]
        for _ in range(4):
            requests = [request_of(history, int(rng.integers(1, 9))) for history in histories]
            engine.run([requests[place] for place in rng.permutation(len(requests))])
            for history, request in zip(histories, requests, strict=True):
                expected = expected_tokens(request.prompt, request.max_tokens, WINDOW, VOCAB)
                assert request.output == expected
                hits += request.sequence.cached
                history += [*request.output, *rng.integers(0, VOCAB, 5).tolist()]
        assert hits > 0
        assert_all_pages_free(engine)
