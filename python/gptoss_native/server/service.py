"""What every path of the server works with: the model, its settings, its metrics."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from ..adapters import LoadedAdapter
from ..async_llm import AsyncLLM
from ..errors import GptossError, OverloadedError, RequestError
from ..interventions import SteeringVector
from ..outputs import CompletionOutput, StreamDelta
from ..sampling import SamplingParams, derive_seed
from ..strict_json import parse_object, show
from .errors import ApiError
from .metrics import Metrics
from .settings import Settings

CLOSED_REQUEST = 499  # nginx's status for a client that has gone
RETRY_AFTER = "1"  # seconds
#: A field of the body that an error begins with.
_FIELD = re.compile(r"(messages|tools|tool_choice|response_format|structured_outputs)\b[^\s:]*")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
Found = TypeVar("Found")


class Service:
    """One model being served."""

    def __init__(self, llm: AsyncLLM, settings: Settings):
        self.llm, self.settings, self.metrics = llm, settings, Metrics()
        self.name = settings.served_model_name or llm.name
        self.started = int(time.time())
        self.steering: dict[str, SteeringVector] = {}  # by the names that requests use
        for each in settings.lora_modules or ():
            name, is_one, folder = each.partition("=")
            if not is_one:
                raise RequestError(f"lora-modules must be NAME=FOLDER, found {show(each)}; correct it")
            self.load_adapter(name, folder)

    def load_adapter(self, name: str, folder: str) -> LoadedAdapter:
        """Serve an adapter as a model of that name. Raises what Adapters.load does."""
        if name == self.name:
            raise RequestError(f"{show(name)} is the model's own name; choose another for the adapter")
        return self.llm.numbers.adapters.load(name, folder)

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that a model's name stands for, if any; ApiError for a model that is not served."""
        adapters = self.llm.numbers.adapters
        if name in (None, self.name):
            return None
        if name not in adapters:
            names = ", ".join(map(repr, (self.name, *adapters)))
            raise ApiError(
                404,
                f"the model {show(name)} does not exist, this server has {names}; ask for that",
                param="model",
                code="model_not_found",
            )
        return name

    async def body(self, request: Request, empty: bool = False) -> dict[str, Any]:
        """The JSON object that was sent; empty: nothing stands for one without fields."""
        data, most = bytearray(), self.settings.max_body_bytes
        try:
            async for piece in request.stream():
                data += piece
                if len(data) > most:
                    raise ApiError(
                        413, f"the body has more than {most} bytes, the most this server takes; send less"
                    )
        except ClientDisconnect:
            raise ApiError(CLOSED_REQUEST, "the client has gone") from None
        if empty and not data:
            return {}
        try:
            return _of_whole_characters(parse_object(bytes(data), "the body"), data)
        except GptossError as error:
            # Its advice is about files.
            raise ApiError(400, str(error).rpartition(";")[0] + "; correct the body") from None

    def count_tokens(self, messages: Any, params: SamplingParams, options: dict[str, Any]) -> int:
        """Tokens of a conversation's prompt. May take a while: not on the event loop."""
        return self.llm.count_tokens(messages, params, **options)

    async def answers(
        self, prompts: Sequence[Any], params: SamplingParams, n: int, **options: Any
    ) -> AsyncIterator[tuple[int, StreamDelta]]:
        """(place, piece) of n answers to each prompt, as they come; closing it ends them all."""
        queue: asyncio.Queue[tuple[int, StreamDelta | Exception]] = asyncio.Queue(64)
        tasks = []
        for place in range(len(prompts) * n):
            own = _with_seed(params, place % n)
            tasks.append(asyncio.create_task(self._answer(queue, place, prompts[place // n], own, options)))
        try:
            left = len(tasks)
            while left:
                place, piece = await queue.get()
                if isinstance(piece, Exception):
                    raise api_error(piece)
                left -= piece.output is not None
                yield place, piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(
        self, queue: asyncio.Queue, place: int, prompt: Any, params: SamplingParams, options: dict
    ) -> None:
        begin = last = time.perf_counter()
        first = True
        try:
            async with aclosing(self.llm.generate(prompt, params, **options)) as pieces:
                async for piece in pieces:
                    now = time.perf_counter()
                    if piece.text:
                        (self.metrics.first_token if first else self.metrics.between_tokens).add(now - last)
                        first, last = False, now
                    if piece.output is not None:
                        self.metrics.whole.add(now - begin)
                        self.metrics.finished[piece.output.finish_reason] += 1
                        self.metrics.generated_tokens += len(piece.output.token_ids)
                    if piece.text or piece.output is not None:
                        await queue.put((place, piece))
        except asyncio.CancelledError:
            self.metrics.finished["cancelled"] += 1
            raise
        except Exception as error:
            await queue.put((place, error))


def _of_whole_characters(body: dict[str, Any], data: bytes) -> dict[str, Any]:
    """The body with U+FFFD for each half of a UTF-16 pair, which no answer could be encoded with."""
    if not _SURROGATE.search(data):
        return body
    text = json.dumps(body, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return json.loads(text)


async def renaming(
    answers: AsyncIterator[tuple[int, StreamDelta]], names: dict[str, str]
) -> AsyncIterator[tuple[int, StreamDelta]]:
    """The same answers; errors name the fields as the caller's API does."""
    try:
        async for answer in answers:
            yield answer
    except ApiError as error:
        raise error.renamed(names) from None
    finally:
        await answers.aclose()


def _with_seed(params: SamplingParams, index: int) -> SamplingParams:
    return params if params.seed is None else replace(params, seed=derive_seed(params.seed, index))


def api_error(error: Exception) -> ApiError:
    """How the client hears of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadedError):
        headers = {"Retry-After": RETRY_AFTER}
        return ApiError(429, str(error), kind="rate_limit_error", code="overloaded", headers=headers)
    if isinstance(error, RequestError):
        too_long = "max_model_len" in str(error)
        field = _FIELD.match(str(error))
        return ApiError(
            400,
            str(error),
            param=field[0] if field else None,
            code="context_length_exceeded" if too_long else None,
        )
    return ApiError(500, f"the server could not finish the answer: {error}", kind="server_error")


def check_finished(output: CompletionOutput) -> None:
    """Raise ApiError for an answer that the engine could not finish."""
    if output.finish_reason == "error":
        raise ApiError(500, output.error or "the answer could not be finished", kind="server_error")


async def until_gone(request: Request, work: Awaitable[Found]) -> Found:
    """The result of `work`, which is cancelled when the client goes away."""

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.05)

    task, watch = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLOSED_REQUEST, "the client has gone")
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


def openai_event(piece: dict[str, Any]) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + json.dumps(piece, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def named_event(piece: dict[str, Any]) -> bytes:
    """A server-sent event named by its `type`."""
    return b"event: " + piece["type"].encode() + b"\n" + openai_event(piece)


async def events(
    pieces: AsyncIterator[dict[str, Any]],
    write: Callable[[dict[str, Any]], bytes] = openai_event,
    error_of: Callable[[ApiError], dict[str, Any]] = ApiError.body,
    end: bytes = b"data: [DONE]\n\n",
) -> Response:
    """Server-sent events of `pieces`. What is wrong before the first is an ordinary error response."""
    first = await anext(pieces)

    async def stream() -> AsyncIterator[bytes]:
        try:
            yield write(first)
            async for piece in pieces:
                yield write(piece)
        except ApiError as error:
            yield write(error_of(error))
        finally:
            await pieces.aclose()
        yield end

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
