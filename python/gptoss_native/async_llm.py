"""AsyncLLM: the same engine for services. Many answers at once, as asynchronous iterators."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from typing import Any

from .engine import Engine
from .errors import OverloadedError, RequestError
from .llm import LLM
from .open_numbers import OpenNumbers
from .outputs import StreamDelta
from .parameters import Edit
from .prompts import Conversation, Prompt
from .request import Request
from .sampling import SamplingParams
from .strict_json import show
from .tokenizer import Tokenizer

#: Pieces that a consumer may leave unread before its answer is paused.
MAX_BACKLOG = 1024


class AsyncLLM:
    """A gpt-oss model that answers many callers at once, without helper processes.

    model, settings: as for LLM
    max_waiting: requests that may wait beside the max_num_seqs that run; more raise OverloadedError

    Its methods may be called on any thread, each generator on the event loop where it was begun. One whose
    answer is not read is paused after MAX_BACKLOG pieces and keeps its place in the key/value cache; close
    what you do not read to the end.

    Raises CheckpointError and RequestError as LLM does.
    """

    def __init__(self, model: str | os.PathLike[str] = "demo", *, max_waiting: int = 256, **settings: Any):
        if type(max_waiting) is not int or max_waiting < 0:
            raise RequestError(
                f"max_waiting must be 0 or more, found {show(max_waiting)}; choose such a number"
            )
        self._llm = LLM(model, **settings)
        self._engine = self._llm.engine
        self._scheduler = self._engine.scheduler
        self._limit = max_waiting + self._scheduler.max_sequences
        self._open: dict[str, _Answer] = {}
        self._ids = itertools.count()
        self._closed = False
        self.name, self.config = self._llm.name, self._llm.config
        self.max_model_len, self.default_params = self._llm.max_model_len, self._llm.default_params
        self.device = self._llm.device

    @property
    def tokenizer(self) -> Tokenizer:
        """See LLM.tokenizer."""
        return self._llm.tokenizer

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return not self._closed

    async def generate(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        **options: Any,
    ) -> AsyncIterator[StreamDelta]:
        """One answer, piece by piece, to a conversation, a text or token ids. Closing the iterator ends it.

        request_id: differs from those of all other open requests; None: chosen here
        priority: lower goes first, also when the key/value cache is too small for all
        deadline: seconds from now after which the answer ends as it is, with finish reason "error"
        options: of a conversation, as in LLM.chat

        The last delta carries the whole answer in `output`. Raises RequestError for a bad request,
        OverloadedError when too many wait, both before anything runs; GptossError when a step fails.
        """
        limit = _checked_deadline(deadline)
        if type(priority) is not int:
            raise RequestError(f"priority must be a whole number, found {show(priority)}; pass 0")
        answer = self._enter(request_id)
        try:
            # Rendering and encoding a long conversation would hold up every other answer of this loop.
            request = await asyncio.to_thread(
                self._llm.request,
                prompt,
                sampling_params,
                options,
                answer.request_id,
                priority=priority,
                deadline=limit,
            )
            async with aclosing(answer.deltas(request)) as deltas:
                async for delta in deltas:
                    yield delta
            yield StreamDelta(
                output=request.reader.output(request, 0),
                prompt_tokens=len(request.prompt),
                cached_tokens=request.sequence.cached or 0,
            )
        finally:
            del self._open[answer.request_id]

    @property
    def numbers(self) -> OpenNumbers:
        """The model's parameters and what LLM does with them: edits, undo, patches, export, usage of experts.

        Its methods may be called on any thread. Those that wait, as an edit's end does for running requests,
        block it: call them by asyncio.to_thread, or see `edit`.
        """
        return self._llm

    @asynccontextmanager
    async def edit(self, name: str = "edit", **options: Any) -> AsyncIterator[Edit]:
        """LLM.edit for `async with`: waiting for its turn, and for running requests, blocks nobody."""
        edit, turn = self._llm._new_edit(name, **options)
        await turn.wait()
        edit.__enter__()
        try:
            yield edit
        except BaseException as error:
            edit.__exit__(type(error), error, error.__traceback__)  # drops the changes, which takes no time
            raise
        await _in_a_thread(lambda: edit.__exit__(None, None, None))

    def count_tokens(
        self, prompt: Prompt | Conversation, sampling_params: SamplingParams | None = None, **options: Any
    ) -> int:
        """Tokens of the prompt that `generate` would make of the same. Raises RequestError as it does."""
        return len(self._llm.request(prompt, sampling_params, options).prompt)

    def abort(self, request_id: str) -> bool:
        """End an open request, with finish reason "abort"; False if there is none of that name."""
        answer = self._open.get(request_id)
        if answer is not None:
            answer.abort()
        return answer is not None

    async def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let those that run go on for so long, then abort them and wait for that."""
        self._closed = True
        end = time.monotonic() + drain_seconds
        while self._open and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for request_id in list(self._open):
            self.abort(request_id)
        await asyncio.to_thread(self._engine.stop)
        self._llm.close()

    def stats(self) -> dict[str, int]:
        """Plain numbers for a dashboard; tokens, preemptions, steps and drafts are counts since the start."""
        pages, speculation = self._scheduler.pages, self._engine.speculation
        return {
            "running": len(self._scheduler.running),
            "waiting": max(len(self._open) - len(self._scheduler.running), 0),
            "kv_pages": pages.full.count,
            "kv_pages_used": pages.full.count - pages.full.free,
            "kv_window_pages": pages.window_pool.count,
            "kv_window_pages_used": pages.window_pool.count - pages.window_pool.free,
            "prompt_tokens": self._scheduler.prompt_tokens,
            "cached_prompt_tokens": self._scheduler.cached_tokens,
            "preemptions": self._scheduler.preemptions,
            "steps": self._engine.steps_run,
            "spec_decode_num_drafts": speculation.drafts if speculation else 0,
            "spec_decode_num_draft_tokens": speculation.drafted if speculation else 0,
            "spec_decode_num_accepted_tokens": speculation.accepted if speculation else 0,
        }

    def _enter(self, request_id: str | None) -> _Answer:
        if self._closed:
            raise RequestError("this AsyncLLM is shutting down and takes no more requests; make a new one")
        if len(self._open) >= self._limit:
            raise OverloadedError(
                f"{len(self._open)} requests are open, {self._limit} may be; try again later, or raise "
                "max_waiting or max_num_seqs"
            )
        if request_id is None:
            request_id = f"request-{next(self._ids)}"
        if not isinstance(request_id, str) or request_id in self._open:
            raise RequestError(
                f"request_id must be a text that no open request has, found {show(request_id)}; change it"
            )
        self._open[request_id] = answer = _Answer(request_id, self._engine)
        return answer


class _Answer:
    """Brings a request's news from the engine's thread to the event loop that waits for them."""

    def __init__(self, request_id: str, engine: Engine):
        self.request_id, self._engine = request_id, engine
        self._request: Request | None = None
        self._loop, self._event, self._rung = asyncio.get_running_loop(), asyncio.Event(), False
        self._aborted = False

    async def deltas(self, request: Request) -> AsyncIterator[StreamDelta]:
        """The pieces as they come, until the request has ended."""
        self._request, pieces = request, request.reader.deltas
        if self._aborted:
            request.end()
            return
        try:
            self._engine.submit([request], self._ring)
            while not request.ended:
                await self._event.wait()
                self._event.clear()
                self._rung = False  # from here on there may be news that are not in what is read below
                while pieces:
                    yield pieces.popleft()
                if request.sequence.paused:
                    self._engine.pause(request, False)
            while pieces:
                yield pieces.popleft()
            if request.error is not None:  # perhaps before anything was waited for
                raise request.error
        finally:
            if not request.ended:
                self._engine.cancel(request)

    def abort(self) -> None:
        """End it now, or as soon as there is something to end."""
        self._aborted = True
        if self._request is not None:
            self._engine.cancel(self._request)

    def _ring(self, request: Request) -> None:
        """On the engine's thread: wake the loop, once until it has looked."""
        if len(request.reader.deltas) > MAX_BACKLOG:
            request.sequence.paused = True
        if not self._rung:
            self._rung = True
            try:
                self._loop.call_soon_threadsafe(self._event.set)
            except RuntimeError:  # the loop has been closed: nobody will ever read this
                self._engine.cancel(request)


async def _in_a_thread(work: Callable[[], None]) -> None:
    """Run `work` to its end, whatever becomes of who waits for it, on a thread of its own."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # it cannot be cancelled

    def run() -> None:
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="gptoss-native edit", daemon=True).start()
    await asyncio.wrap_future(done)


def _checked_deadline(seconds: Any) -> float | None:
    if seconds is None:
        return None
    if type(seconds) not in (int, float) or not 0 < seconds < 1e9:
        raise RequestError(
            f"deadline must be a number of seconds above 0, found {show(seconds)}; leave it out for none"
        )
    return time.monotonic() + seconds
