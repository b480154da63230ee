"""Several callers of one engine: who steps, who is told, what a cancel, an error or Ctrl+C does to others.

The oracle is the engine alone: whatever happens around a request, its tokens are those of the definition.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading

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

pytestmark = pytest.mark.usefixtures("each_way")

PATIENCE = 60  # seconds until a test gives up on a thread


def assert_undisturbed(*requests):
    for request in requests:
        assert request.output == expected_tokens(request.prompt, request.max_tokens, WINDOW, VOCAB)


def call_once(owner, name, action):
    """Run `action` at the beginning of the next call of a method."""
    method = getattr(owner, name)

    def called(*args, **options):
        setattr(owner, name, method)
        action()
        return method(*args, **options)

    setattr(owner, name, called)


def test_nobody_waits_for_a_step_to_cancel():
    engine = engine_of()
    inside, go_on = threading.Event(), threading.Event()
    own, other = request_of([6], 2000), request_of([5], 20)
    steps = engine.steps([own])
    next(steps)

    def wait():
        inside.set()
        assert go_on.wait(PATIENCE)

    call_once(engine.model, "forward", wait)
    assert inside.wait(PATIENCE)
    engine.submit([other], lambda task: None)
    steps.close()  # comes back although a step goes on
    go_on.set()
    assert_all_pages_free(engine)
    assert (own.finish_reason, own.reader.finished) == ("abort", 1)
    assert_undisturbed(other)


@pytest.mark.parametrize("place", ["can_extend", "extend", "expire"])
def test_a_forgotten_iterator_may_be_collected_inside_a_step(place):
    engine = engine_of()
    forgotten = [request_of([9, 9], 5000) for _ in range(2)]
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
    assert_all_pages_free(engine)
    assert [request.finish_reason for request in forgotten] == ["abort", "abort"]
    assert_undisturbed(innocent)


def test_each_caller_hears_of_the_steps_that_move_its_own():
    engine = engine_of()
    crowd = [request_of([n], 60) for n in range(3)]
    threads = [threading.Thread(target=engine.run, args=([request],)) for request in crowd]
    for thread in threads:
        thread.start()
    own, heard = request_of([7], 40), 0
    for _ in engine.steps([own]):
        heard += 1
    assert 1 <= heard <= 41
    for thread in threads:
        thread.join(PATIENCE)
    assert_undisturbed(own, *crowd)
    assert_all_pages_free(engine)


@pytest.mark.parametrize("call", ["run", "steps"])
def test_ctrl_c_ends_the_interrupted_call_s_requests_only(call):
    engine = engine_of(full_pages=2000)
    others, own = [request_of([n], 200) for n in range(3)], request_of([8], 5000)
    ends = []
    engine.submit(others, ends.append)
    forward, count = engine.model.forward, 0

    def interrupt(*arguments, **options):
        nonlocal count
        count += 1
        if count == 10:
            os.kill(os.getpid(), signal.SIGINT)  # to the process, as the terminal sends it
        return forward(*arguments, **options)

    engine.model.forward = interrupt
    with pytest.raises(KeyboardInterrupt):
        for _ in [engine.run([own])] if call == "run" else engine.steps([own]):
            pass
    assert_all_pages_free(engine)
    assert own.finish_reason == "abort"
    assert_undisturbed(*others)


@pytest.mark.parametrize("name", ["schedule", "advance", "remove"])
def test_a_mistake_of_the_engine_s_own_is_told_to_all_and_ends_nothing_else(name):
    engine = engine_of()
    callers = [engine.steps([request_of([n], 5000)]) for n in range(3)]
    for steps in callers:
        next(steps)

    def mistake():
        raise AssertionError("two and two are five")

    call_once(engine.scheduler, name, mistake)
    engine.submit([request_of([9], 3)], lambda task: None)  # which will also be removed
    for steps in callers:
        with pytest.raises(GptossError, match=r"report it: AssertionError\('two and two"):
            list(steps)
    after = request_of([4], 9)
    engine.run([after])
    assert_undisturbed(after)
    assert_all_pages_free(engine)


def test_stop_ends_what_runs_and_what_waits():
    engine = engine_of(max_sequences=1)
    requests, ends = [request_of([n], 5000) for n in range(3)], []
    engine.submit(requests, lambda task: ends.append(task) if task.ended else None)
    engine.stop()
    assert [request.finish_reason for request in requests] == ["abort"] * 3
    assert len(ends) == 3
    after = request_of([4], 9)
    engine.run([after])
    assert_undisturbed(after)
    assert_all_pages_free(engine)


def test_a_program_ends_while_its_engine_is_at_work():
    """Not at the request's 100,000th token, and not by a crash of a thread inside native code."""
    program = """
import gptoss_native
llm = gptoss_native.LLM("demo", max_model_len=4096)
params = gptoss_native.SamplingParams(ignore_eos=True, max_tokens=4000)
stream = llm.stream("1 + 1 =", params)
print(next(stream).text)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failed_step_is_told_to_each_caller_as_an_error_of_its_own():
    engine = engine_of()
    first, second = request_of([1], 5000), request_of([2], 5000)
    own, theirs = engine.steps([first]), engine.steps([second])
    next(own)
    next(theirs)
    engine.model.fail_at = len(engine.model.steps) + 5
    errors = []
    for steps in (own, theirs):
        with pytest.raises(GptossError, match=r"a step of 2 sequences failed: .*on fire") as caught:
            list(steps)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert all(isinstance(error.__cause__, RuntimeError) for error in errors)
    assert all(request.finish_reason == "abort" for request in (first, second))
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
