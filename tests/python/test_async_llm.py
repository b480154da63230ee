"""AsyncLLM: many answers at once. Oracle: LLM.generate and LLM.chat of the same checkpoint, one at a time."""

from __future__ import annotations

import asyncio
import threading
import time

import gptoss_native.async_llm as module
import numpy as np
import pytest
from gptoss_native import LLM, AsyncLLM, SamplingParams
from gptoss_native.errors import GptossError, OverloadedError, RequestError

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=1500, ignore_eos=True)


def ids(rng, count):
    return rng.integers(1, 250, count).tolist()


async def answer(llm, prompt, params=GREEDY, **options):
    """The whole answer; what was streamed is all of it."""
    pieces, output = [], None
    async for delta in llm.generate(prompt, params, **options):
        pieces.append(delta.text if delta.channel in (None, "final") else "")
        output = delta.output or output
    assert "".join(pieces) == output.text
    return output


def assert_all_pages_free(llm):
    with llm._engine._turn:
        pages = llm._scheduler.pages
        assert pages.full.free == pages.full.count
        assert pages.window_pool.free == pages.window_pool.count


@pytest.fixture(scope="module")
def solo():
    with LLM("demo", max_model_len=2048, max_num_seqs=1) as llm:
        yield llm


@pytest.fixture
def small():
    """Three at once, in a cache that cannot hold the three longest."""
    llm = AsyncLLM("demo", max_model_len=2048, max_num_seqs=3, kv_cache_tokens=2048)
    yield llm
    asyncio.run(llm.shutdown())


def test_a_crowd_gets_what_each_would_get_alone(small, solo, rng):
    """Random lengths and seeds, shared beginnings, too few pages: the same tokens and log-probabilities."""
    shared = ids(rng, 200)
    prompts = [shared[: int(rng.integers(1, 200))] + ids(rng, int(rng.integers(1, 300))) for _ in range(12)]
    settings = [
        SamplingParams(
            temperature=1.0, seed=seed, max_tokens=int(rng.integers(1, 400)), ignore_eos=True, logprobs=1
        )
        for seed in range(12)
    ]

    async def crowd():
        return await asyncio.gather(*(answer(small, *job) for job in zip(prompts, settings, strict=True)))

    found = asyncio.run(crowd())
    for prompt, params, output in zip(prompts, settings, found, strict=True):
        [alone] = solo.generate([prompt], params)[0].outputs
        assert output.token_ids == alone.token_ids
        assert output.cumulative_logprob == alone.cumulative_logprob
    assert small.stats()["cached_prompt_tokens"] > 0
    assert_all_pages_free(small)


def test_a_conversation_is_answered_as_by_chat(small, solo):
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    params = SamplingParams(temperature=0)
    found = asyncio.run(answer(small, messages, params, reasoning_effort="low"))
    expected = solo.chat(messages, params, reasoning_effort="low")[0].outputs[0]
    assert (found.content, found.token_ids) == (expected.content, expected.token_ids)


def test_abort_and_closing_end_one_answer_only(small, rng):
    async def run():
        other = asyncio.create_task(answer(small, [5, 6], GREEDY))
        aborted = asyncio.create_task(answer(small, [7], LONG, request_id="mine"))
        closed = small.generate([8], LONG)
        await closed.__anext__()
        await closed.aclose()
        assert small.abort("mine")
        assert not small.abort("nobody's")
        first = await aborted
        assert first.finish_reason == "abort"
        assert len(first.token_ids) < 1500
        assert (await other).finish_reason == "length"

    asyncio.run(run())
    assert not small._open
    assert_all_pages_free(small)


def test_cancelling_the_asyncio_task_ends_the_answer(small):
    async def run():
        task = asyncio.create_task(answer(small, [7], LONG))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert not small._open
    assert_all_pages_free(small)


def test_an_answer_that_nobody_reads_is_paused_and_comes_whole(small, monkeypatch):
    monkeypatch.setattr(module, "MAX_BACKLOG", 20)

    async def run():
        stream = small.generate([7, 8], LONG)
        deltas = [await stream.__anext__()]
        for _ in range(200):
            await asyncio.sleep(0.01)
            if small._scheduler.running and small._scheduler.running[0].paused:
                break
        made = len(small._scheduler.running[0].tokens)
        await asyncio.sleep(0.1)
        assert len(small._scheduler.running[0].tokens) == made < 1000
        assert (await answer(small, [9])).finish_reason == "length"  # others go on
        deltas += [delta async for delta in stream]
        return deltas

    deltas = asyncio.run(run())
    assert len(deltas[-1].output.token_ids) == 1500
    assert "".join(delta.text for delta in deltas) == deltas[-1].output.text


def test_a_deadline_ends_the_answer_with_what_there_is(small):
    output = asyncio.run(answer(small, [7], LONG, deadline=0.1))
    assert output.finish_reason == "error"
    assert "deadline" in output.error
    assert 0 < len(output.token_ids) < 1500


def test_more_than_may_wait_are_refused_at_once():
    llm = AsyncLLM("demo", max_model_len=2048, max_num_seqs=2, max_waiting=1)

    async def run():
        tasks = [asyncio.create_task(answer(llm, [n + 1], LONG)) for n in range(5)]
        results = await asyncio.gather(*tasks[3:], return_exceptions=True)
        assert [type(result) for result in results] == [OverloadedError] * 2
        assert "3 requests are open, 3 may be" in str(results[0])
        await llm.shutdown()
        assert {(await task).finish_reason for task in tasks[:3]} == {"abort"}
        with pytest.raises(RequestError, match="shutting down"):
            await answer(llm, [1])

    asyncio.run(run())


def test_shutdown_lets_running_answers_finish():
    llm = AsyncLLM("demo", max_model_len=2048)

    async def run():
        task = asyncio.create_task(answer(llm, [1, 2]))
        await asyncio.sleep(0.01)
        await llm.shutdown(drain_seconds=60)
        assert (await task).finish_reason == "length"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request_id": 3}, "request_id must be a text"),
        ({"priority": "high"}, "priority must be a whole number"),
        ({"deadline": -1}, "deadline must be a number of seconds"),
        ({"deadline": float("nan")}, "deadline must be a number of seconds"),
        ({"effort": "low"}, "effort is an option of conversations"),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(small, options, message):
    with pytest.raises(RequestError, match=message):
        asyncio.run(answer(small, [1], **options))
    with pytest.raises(RequestError):
        asyncio.run(answer(small, [10**9]))
    assert not small._open


def test_event_loops_of_several_threads_share_the_model(small, solo):
    found = {}

    def work(n):
        found[n] = asyncio.run(answer(small, [n, n + 1])).token_ids

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for n in range(1, 7):
        assert found[n] == solo.generate([[n, n + 1]], GREEDY)[0].outputs[0].token_ids


def test_random_cancels_leave_no_page_behind(small, rng):
    async def run():
        async def one(seed):
            own = np.random.default_rng(seed)
            stream = small.generate(own.integers(1, 250, int(own.integers(1, 200))).tolist(), LONG)
            for _ in range(int(own.integers(0, 40))):
                await stream.__anext__()
            await stream.aclose()

        await asyncio.gather(*(one(seed) for seed in rng.integers(0, 1 << 32, 40)))

    asyncio.run(run())
    assert not small._open
    assert_all_pages_free(small)


def test_edits_of_several_tasks_come_one_after_the_other():
    """Whatever threads they happen to wait on; in the order in which they asked."""

    async def main():
        llm, order = AsyncLLM("demo", device="cpu", max_model_len=64), []

        async def edit(number, hold):
            async with llm.edit(f"edit {number}") as e:
                order.append(number)
                await asyncio.sleep(hold)
                bias = e.layers[0].router.bias
                bias.write(bias.decode() + 1)

        begun = llm.numbers.layers[0].router.bias.decode()
        tasks = []
        for number in range(20):
            tasks.append(asyncio.create_task(edit(number, 0.01 * (number % 2))))
            await asyncio.sleep(0.002 * (number % 3))
        await asyncio.gather(*tasks)
        assert order == list(range(20))
        found = llm.numbers.layers[0].router.bias.decode()
        for _ in range(20):
            llm.numbers.undo()
        np.testing.assert_array_equal(llm.numbers.layers[0].router.bias.decode(), begun)
        assert (found != begun).all()
        await llm.shutdown()

    asyncio.run(main())


def test_an_edit_within_an_edit_is_refused_and_does_not_wait_for_itself():
    async def main():
        llm = AsyncLLM("demo", device="cpu", max_model_len=64)
        async with llm.edit("outer"):
            with pytest.raises(RequestError, match="an edit is open on this thread or task"):
                async with llm.edit("inner"):
                    pass
            with pytest.raises(RequestError, match="an edit is open on this thread or task"):
                await asyncio.to_thread(llm.numbers.diff)
        async with llm.edit("later"):
            pass
        await llm.shutdown()

    asyncio.run(main())


@pytest.mark.parametrize("pool", [0, 64], ids=["idle", "full pool"])
def test_an_edit_that_is_cancelled_leaves_the_line(pool):
    """While it waits for its turn, in its block, and as it is applied; then the next one begins."""

    async def main():
        llm, release = AsyncLLM("demo", device="cpu", max_model_len=2048), threading.Event()

        def crowd():
            return [asyncio.create_task(asyncio.to_thread(release.wait)) for _ in range(pool)]

        async def edit(name, hold, value=7):
            async with llm.edit(name) as e:
                e.set("layers.0.router.bias", value)
                await asyncio.sleep(hold)

        busy = crowd()
        first = asyncio.create_task(edit("first", 60))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(edit("waiting", 0)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in (*waiting[:2], first):
            task.cancel()
        await asyncio.wait_for(waiting[2], 60)
        release.set()
        await asyncio.gather(*busy)
        stream = llm.generate([1, 2], LONG)
        await anext(stream)
        release.clear()
        busy = crowd()
        applying = asyncio.create_task(edit("applied all the same", 0, 8))
        await asyncio.sleep(0.05)
        applying.cancel()
        await stream.aclose()
        await asyncio.wait_for(edit("next", 0, 9), 60)
        names = [change.name for change in llm.numbers.edits]
        assert names == ["waiting", "applied all the same", "next"]
        release.set()
        await asyncio.gather(*busy)
        await llm.shutdown()

    asyncio.run(main())


@pytest.mark.parametrize("at_once", [True, False])
def test_a_failed_step_is_an_error_however_soon_it_fails(small, monkeypatch, at_once):
    """Also when the request has ended before anybody waits for it."""
    engine, submit = small._engine, small._engine.submit

    def forward(*_, **__):
        raise RuntimeError("on fire")

    def submit_and_see_it_end(requests, listener):
        submit(requests, listener)
        while at_once and not requests[0].ended:
            time.sleep(0.001)

    monkeypatch.setattr(engine, "forward", forward)
    monkeypatch.setattr(engine, "submit", submit_and_see_it_end)
    with pytest.raises(GptossError, match="a step of 1 sequences failed: on fire"):
        asyncio.run(answer(small, [10, 11, 12]))
    monkeypatch.undo()
    assert_all_pages_free(small)
    assert len(asyncio.run(answer(small, [10, 11, 12])).token_ids) == 24
