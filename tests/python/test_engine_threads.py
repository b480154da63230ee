"""Several callers of one engine: who steps, who is told, what a cancel, an error or Ctrl+C does to others.

The oracle is the engine alone: whatever happens around a request, its tokens are those of the definition.
"""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from gptoss_native.errors import GptossError

from tests.python.fake_native import expected_tokens
from tests.python.test_engine import (
    VOCAB,
    WINDOW,
    assert_all_pages_free,
    engine_of,
    expected_logits,
    request_of,
    scoring_of,
)

PATIENCE = 60  # seconds until a test gives up on a thread


def assert_undisturbed(*requests):
    for request in requests:
        assert request.output == expected_tokens(request.prompt, request.max_tokens, WINDOW, VOCAB)


def call_once(owner, name, action):
    """Run `action` at the beginning of the next call of a method."""
    method = getattr(owner, name)

    def called(*args):
        setattr(owner, name, method)
        action()
        return method(*args)

    setattr(owner, name, called)


class Slow:
    """A thread that runs `requests` and stands still inside its first step until told to go on."""

    def __init__(self, engine, requests):
        self.inside, self.go_on = threading.Event(), threading.Event()

        def wait():
            self.inside.set()
            assert self.go_on.wait(PATIENCE)

        call_once(engine.model, "forward", wait)
        self.thread = threading.Thread(target=engine.run, args=(requests,))
        self.thread.start()
        assert self.inside.wait(PATIENCE)

    def finish(self):
        self.go_on.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


def test_nobody_waits_for_a_step_to_cancel():
    engine = engine_of()
    own, other = request_of([6], 20), request_of([5], 20)
    steps = engine.steps([own])
    next(steps)
    slow = Slow(engine, [other])
    steps.close()  # comes back although the other thread's step goes on
    assert not slow.go_on.is_set()
    slow.finish()
    assert (own.finish_reason, own.reader.finished) == ("abort", 1)
    assert len(own.output) <= 2
    assert_undisturbed(other)
    assert_all_pages_free(engine)


@pytest.mark.parametrize("place", ["can_admit", "extend", "expire"])
def test_a_forgotten_iterator_may_be_collected_inside_a_step(place):
    engine = engine_of()
    forgotten = [request_of([9, 9], 50) for _ in range(2)]
    cycle = [engine.steps(forgotten)]
    cycle.append(cycle)
    next(cycle[0])
    gc.disable()
    try:
        del cycle
        call_once(engine.scheduler.pages, place, gc.collect)
        innocent = request_of([1], 30)
        engine.run([innocent])
    finally:
        gc.enable()
    assert [request.finish_reason for request in forgotten] == ["abort", "abort"]
    assert_undisturbed(innocent)
    assert_all_pages_free(engine)


def test_one_thread_steps_and_the_others_hear_of_each_step():
    engine = engine_of()
    forward = engine.model.forward

    def slow_forward(*args):
        time.sleep(0.004)  # without the GIL, as in the native one
        return forward(*args)

    engine.model.forward = slow_forward
    crowd = [request_of([n], 300) for n in range(3)]
    threads = [threading.Thread(target=engine.run, args=([request],)) for request in crowd]
    for thread in threads:
        thread.start()
    own, heard = request_of([7], 40), [len(engine.model.steps)]
    for _ in engine.steps([own]):
        heard.append(len(engine.model.steps))
    for request in crowd:
        assert not request.finished  # so there was somebody to wait for all the time
    for thread in threads:
        thread.join(PATIENCE)
    assert max(np.diff(heard)) <= 12
    assert heard[-1] - heard[0] <= 55
    assert_undisturbed(own, *crowd)
    assert_all_pages_free(engine)


def test_another_one_takes_over_when_the_stepping_thread_has_what_it_wants():
    engine = engine_of(max_sequences=2)
    short, long = request_of([1], 3), [request_of([n], 40) for n in range(5)]
    slow = Slow(engine, [short])
    threads = [threading.Thread(target=engine.run, args=([request],)) for request in long]
    for thread in threads:
        thread.start()
    slow.finish()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert_undisturbed(short, *long)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (lambda engine: engine.model, "forward"),
        (lambda engine: engine, "sample"),
        (lambda engine: engine.scheduler, "schedule"),
        (lambda engine: engine.scheduler, "advance"),
        (lambda engine: engine.scheduler.pages.full, "take"),
        (lambda engine: engine.scheduler.pages, "expire"),
        (lambda engine: engine.scheduler.pages, "release"),
    ],
)
def test_ctrl_c_ends_the_interrupted_thread_s_requests_only(owner, name):
    engine = engine_of(full_pages=15)
    others, own = [request_of([n], 40) for n in range(3)], request_of([8], 50)
    scoring, chunks = scoring_of(list(range(30)))
    waiting, steps = engine.steps([*others, scoring]), engine.steps([own])
    for _ in range(3):
        next(waiting)
    next(steps)
    call_once(owner(engine), name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(steps)
    assert own.finish_reason == "abort"
    for _ in waiting:
        assert own.sequence not in engine.scheduler.running
    assert_undisturbed(*others)
    np.testing.assert_array_equal(np.concatenate(chunks), expected_logits(list(range(30))))
    assert_all_pages_free(engine)


def test_ctrl_c_inside_a_reader_ends_that_request_and_no_other():
    engine = engine_of()
    others, own = [request_of([n], 20) for n in range(3)], request_of([8], 20)
    waiting, steps = engine.steps(others), engine.steps([own])
    next(waiting)
    next(steps)
    push = own.reader.push

    def interrupted(token, **options):
        own.reader.push = push
        raise KeyboardInterrupt

    own.reader.push = interrupted
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    for _ in waiting:
        assert own.finished
    assert_undisturbed(*others)
    assert_all_pages_free(engine)


def test_a_failed_step_is_told_to_each_caller_as_an_error_of_its_own():
    engine = engine_of()
    first, second = request_of([1], 20), request_of([2], 20)
    later = [request_of([n], 20) for n in range(9)]
    own, theirs = engine.steps([first]), engine.steps([second, *later])
    next(own)
    next(theirs)
    next(own)  # hears of the step that theirs has run
    engine.model.fail_at = len(engine.model.steps)
    with pytest.raises(RuntimeError, match="on fire"):
        next(own)
    steps = len(engine.model.steps)
    with pytest.raises(GptossError, match=r"another thread.*on fire") as caught:
        next(theirs)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(engine.model.steps) == steps  # at once, not after the rest has run
    assert all(request.finish_reason == "abort" for request in (first, second, *later))
    assert_all_pages_free(engine)


def test_a_reader_that_fails_ends_its_own_request():
    engine = engine_of()
    bad, good = request_of([1], 20), request_of([2], 20)

    def push(token, **options):
        raise ValueError("cannot read this")

    bad.reader.push = push
    steps = engine.steps([bad])
    waiting = engine.steps([good])
    next(waiting)
    with pytest.raises(ValueError, match="cannot read"):
        next(steps)
    for _ in waiting:
        assert bad.finish_reason == "abort"
    assert_undisturbed(good)
    assert_all_pages_free(engine)


def test_many_threads_come_cancel_and_go(rng):
    """Each thread runs, streams or abandons requests at random, in a cache that has too few pages."""
    engine = engine_of(full_pages=20, max_sequences=3)
    wrong, seeds = [], rng.integers(0, 1 << 32, 8)

    def work(seed):
        own = np.random.default_rng(seed)
        try:
            for _ in range(12):
                prompt = own.integers(0, VOCAB, int(own.integers(1, 30))).tolist()
                request, kind = request_of(prompt, int(own.integers(1, 30))), own.integers(0, 4)
                if kind == 0:
                    engine.run([request])
                elif kind == 1:
                    scoring, chunks = scoring_of(prompt)
                    engine.run([scoring, request])
                    np.testing.assert_array_equal(np.concatenate(chunks), expected_logits(prompt))
                else:
                    steps, patience = engine.steps([request]), 5 if kind == 2 else 1000
                    for count, _ in enumerate(steps):
                        if count == patience:
                            break
                    steps.close()
                assert request.finish_reason == "length" or kind == 2
                if request.finish_reason == "length":
                    assert_undisturbed(request)
        except BaseException as error:
            wrong.append((int(seed), repr(error)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not wrong
    engine.run([request_of([1], 1)])  # reads what is left in the inbox
    assert_all_pages_free(engine)
