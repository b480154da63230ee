"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..harmony import FUNCTIONS, is_tool
from ..outputs import ChatCompletionOutput, Logprob, StreamDelta, ToolCall
from ..sampling import SamplingParams
from ..strict_json import show
from .fields import Fields
from .sampling_fields import read_n, read_sampling, read_stream_options, usage_of
from .service import Service, check_finished, events, until_gone

#: Change nothing about the answer; named in the header x-ignored-parameters.
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "verbosity",
)
REFUSED = {
    "audio": "the model speaks text only",
    "prediction": "predicted outputs are not used",
    "web_search_options": "there is no web search; offer a tool of your own",
    "moderation": "nothing is moderated",
    "functions": "it was replaced by tools",
    "function_call": "it was replaced by tool_choice",
}


@dataclass
class ChatRequest:
    """What a body asks for."""

    messages: list[Any]
    params: SamplingParams
    n: int
    options: dict[str, Any]
    stream: bool
    stream_usage: bool
    reasoning: bool
    logprobs: bool
    ignored: list[str]


def read_chat(body: dict[str, Any], service: Service) -> ChatRequest:
    """A checked body. Raises ApiError, naming the field."""
    fields = Fields(body)
    adapter = service.adapter_of(fields.text("model"))
    messages = fields.list("messages")
    if not messages:
        raise fields.error("messages", "must hold at least one message")
    for name, why in REFUSED.items():
        fields.refuse(name, why)
    if (modalities := fields.list("modalities")) not in (None, ["text"]):
        raise fields.error("modalities", f"must be ['text'], found {show(modalities)}")
    logprobs = fields.flag("logprobs")
    top = fields.integer("top_logprobs", low=0, high=1 << 20)
    if top is not None and not logprobs:
        raise fields.error("top_logprobs", "needs logprobs to be true")
    limits = [fields.integer(name, low=1) for name in ("max_completion_tokens", "max_tokens")]
    params = read_sampling(
        fields,
        service,
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        logprobs=(top or 0) if logprobs else None,
        adapter=adapter,
    )
    found = ChatRequest(
        messages,
        params,
        read_n(fields, service),
        _options(fields),
        fields.flag("stream"),
        read_stream_options(fields),
        fields.flag("include_reasoning", True),
        logprobs,
        fields.ignored(IGNORED),
    )
    if found.stream_usage and not found.stream:
        raise fields.error("stream_options", "needs stream to be true")
    fields.end()
    return found


def _options(fields: Fields) -> dict[str, Any]:
    options: dict[str, Any] = {}
    effort = fields.choice("reasoning_effort", ("low", "medium", "high"))
    if (reasoning := fields.object("reasoning")) is not None:
        inner = Fields(reasoning, "reasoning.")
        effort = inner.choice("effort", ("low", "medium", "high"), effort)
        inner.end()
    if effort is not None:
        options["reasoning_effort"] = effort
    given = {
        "tools": fields.list("tools"),
        "tool_choice": fields.any("tool_choice"),
        "parallel_tool_calls": fields.flag("parallel_tool_calls", None),
        "response_format": fields.object("response_format"),
    }
    return options | {name: value for name, value in given.items() if value is not None}


def routes(service: Service) -> list[Route]:
    async def create(request: Request) -> Response:
        asked = read_chat(await service.body(request), service)
        answers = service.answers([asked.messages], asked.params, asked.n, **asked.options)
        headers = {"x-ignored-parameters": ", ".join(asked.ignored)} if asked.ignored else {}
        if asked.stream:
            response = await events(_chunks(asked, asked.params.adapter or service.name, answers))
        else:
            response = JSONResponse(
                await until_gone(request, _whole(asked, asked.params.adapter or service.name, answers))
            )
        response.headers.update(headers)
        return response

    return [Route("/v1/chat/completions", create, methods=["POST"])]


async def _whole(
    asked: ChatRequest, model: str, answers: AsyncIterator[tuple[int, StreamDelta]]
) -> dict[str, Any]:
    choices, counts = [], {}
    async for place, piece in answers:
        if piece.output is not None:
            check_finished(piece.output)
            counts[place] = _counts(piece)
            choices.append(_choice(asked, place, piece.output))
    return _frame("chat.completion", model) | {
        "choices": sorted(choices, key=lambda choice: choice["index"]),
        "usage": usage_of(counts, asked.n),
    }


async def _chunks(
    asked: ChatRequest, model: str, answers: AsyncIterator[tuple[int, StreamDelta]]
) -> AsyncIterator[dict[str, Any]]:
    frame, counts, calls = _frame("chat.completion.chunk", model), {}, {}

    def chunk(place: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": place, "delta": delta, "logprobs": None, "finish_reason": None} | more
        return frame | {"choices": [choice]}

    try:
        async for place, piece in answers:
            if place not in calls:
                calls[place] = {}
                yield chunk(place, {"role": "assistant", "content": ""})
            if delta := _delta(piece, asked.reasoning, calls[place]):
                yield chunk(place, delta)
            if piece.output is not None:
                check_finished(piece.output)
                counts[place] = _counts(piece)
                yield chunk(
                    place,
                    _rest(piece.output, calls[place]),
                    finish_reason=_finish_reason(piece.output),
                    logprobs=_logprobs(piece.output) if asked.logprobs else None,
                )
    finally:
        await answers.aclose()
    if asked.stream_usage:
        yield frame | {"choices": [], "usage": usage_of(counts, asked.n)}


def _delta(piece: StreamDelta, reasoning: bool, calls: dict[str, int]) -> dict[str, Any]:
    """What can be shown at once; `calls` are the numbers of those that were begun, by id."""
    if not piece.text:
        return {}
    if piece.tool_call_id is not None:
        return {"tool_calls": [_call_delta(piece, calls)]}
    if piece.channel == "analysis":
        return {"reasoning": piece.text, "reasoning_content": piece.text} if reasoning else {}
    return {"content": piece.text} if piece.channel in ("final", None) else {}


def _call_delta(piece: StreamDelta, calls: dict[str, int]) -> dict[str, Any]:
    """A call is named in its first piece; the others go on with its arguments."""
    is_new, number = piece.tool_call_id not in calls, calls.setdefault(str(piece.tool_call_id), len(calls))
    if not is_new:
        return {"index": number, "function": {"arguments": piece.text}}
    name = str(piece.recipient).removeprefix(FUNCTIONS)
    return {"index": number} | ToolCall(str(piece.tool_call_id), name, piece.text).to_dict()


def _rest(output: ChatCompletionOutput, calls: dict[str, int]) -> dict[str, Any]:
    """What is known at the end only: calls without arguments, and a note that is all the answer."""
    delta: dict[str, Any] = {}
    late = [call for call in output.tool_calls if call.id not in calls]
    if late:
        delta["tool_calls"] = [{"index": i} | call.to_dict() for i, call in enumerate(late, len(calls))]
    has_answer = any(
        message.channel in ("final", None) and not is_tool(message.recipient) for message in output.messages
    )
    if output.content and not has_answer:
        delta["content"] = output.content
    return delta


def _choice(asked: ChatRequest, place: int, output: ChatCompletionOutput) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": output.content or None, "refusal": None}
    if asked.reasoning and output.reasoning:
        message |= {"reasoning": output.reasoning, "reasoning_content": output.reasoning}
    if output.tool_calls:
        message["tool_calls"] = [call.to_dict() for call in output.tool_calls]
    return {
        "index": place,
        "message": message,
        "logprobs": _logprobs(output) if asked.logprobs else None,
        "finish_reason": _finish_reason(output),
    }


def _finish_reason(output: ChatCompletionOutput) -> str:
    if output.finish_reason == "stop" and output.tool_calls:
        return "tool_calls"
    return "length" if output.finish_reason == "length" else "stop"


def _logprobs(output: ChatCompletionOutput) -> dict[str, Any]:
    content = []
    for token, found in zip(output.token_ids, output.logprobs or [], strict=False):
        entry = _entry(found[token])
        ranked = sorted(found.values(), key=lambda logprob: logprob.rank)
        entry["top_logprobs"] = [_entry(logprob) for logprob in ranked]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(logprob: Logprob) -> dict[str, Any]:
    text = logprob.decoded_token or ""
    return {"token": text, "logprob": logprob.logprob, "bytes": list(text.encode(errors="replace"))}


def _counts(piece: StreamDelta) -> tuple[int, int, int]:
    return piece.prompt_tokens or 0, piece.cached_tokens or 0, len(piece.output.token_ids)


def _frame(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }
