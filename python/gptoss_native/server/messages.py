"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens, with its events and errors.

Thoughts are shown when `thinking` asks for them; the model has them in any case. What is read from a body:
server/messages_input.py.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..outputs import ChatCompletionOutput, StreamDelta
from .blocks import CALL, REASONING, Block, Blocks
from .errors import ApiError
from .messages_input import NAMES, Asked, read_message
from .service import Service, check_finished, events, named_event, renaming, until_gone

PATH = "/v1/messages"
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def error_body(error: ApiError) -> dict[str, Any]:
    """An error in the vendor's shape."""
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def routes(service: Service) -> list[Route]:
    async def create(request: Request) -> Response:
        asked = read_message(await service.body(request), service)
        answers = renaming(service.answers([asked.messages], asked.params, 1, **asked.options), NAMES)
        if asked.stream:
            response = await events(
                _events(asked, asked.params.adapter or service.name, answers), named_event, error_body, b""
            )
        else:
            response = JSONResponse(
                await until_gone(request, _whole(asked, asked.params.adapter or service.name, answers))
            )
        if asked.ignored:
            response.headers["x-ignored-parameters"] = ", ".join(asked.ignored)
        return response

    async def count(request: Request) -> Response:
        asked = read_message(await service.body(request), service, counting=True)
        tokens = await asyncio.to_thread(service.count_tokens, asked.messages, asked.params, asked.options)
        return JSONResponse({"input_tokens": tokens})

    return [
        Route(PATH, create, methods=["POST"]),
        Route(f"{PATH}/count_tokens", count, methods=["POST"]),
    ]


async def _whole(asked: Asked, model: str, answers: AsyncIterator[tuple[int, StreamDelta]]) -> dict[str, Any]:
    blocks, message = Blocks(), {}
    async for _, piece in answers:
        for _ in blocks.push(piece):
            pass
        if piece.output is not None:
            check_finished(piece.output)
            content = [_content(block) for block in blocks.all if asked.thinking or block.kind != REASONING]
            message = _frame(model) | {"content": content, "usage": _usage(piece), **_ending(piece, asked)}
    return message


async def _events(
    asked: Asked, model: str, answers: AsyncIterator[tuple[int, StreamDelta]]
) -> AsyncIterator[dict[str, Any]]:
    blocks, shown = Blocks(), 0
    begun = False
    try:
        async for _, piece in answers:
            if not begun:
                begun = True
                usage = {"input_tokens": 0, "output_tokens": 0}
                yield {"type": "message_start", "message": _frame(model) | {"content": [], "usage": usage}}
                yield {"type": "ping"}
            for change, block, text in blocks.push(piece):
                if block.kind == REASONING and not asked.thinking:
                    continue
                if change == "open":
                    empty = _empty(block)
                    yield {"type": "content_block_start", "index": shown, "content_block": empty}
                elif change == "more":
                    yield {"type": "content_block_delta", "index": shown, "delta": _delta(block, text)}
                else:
                    yield {"type": "content_block_stop", "index": shown}
                    shown += 1
            if piece.output is not None:
                check_finished(piece.output)
                yield {"type": "message_delta", "delta": _ending(piece, asked), "usage": _usage(piece)}
                yield {"type": "message_stop"}
    finally:
        await answers.aclose()


def _frame(model: str) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _content(block: Block) -> dict[str, Any]:
    if block.kind == REASONING:
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    if block.kind == CALL:
        return _empty(block) | {"input": _arguments(block.text)}
    return {"type": "text", "text": block.text}


def _arguments(text: str) -> dict[str, Any]:
    """A call's arguments as an object; what is none, such as those of a call cut off, is kept as it is."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": text}


def _empty(block: Block) -> dict[str, Any]:
    if block.kind == CALL:
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}
    if block.kind == REASONING:
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _delta(block: Block, text: str) -> dict[str, Any]:
    if block.kind == CALL:
        return {"type": "input_json_delta", "partial_json": text}
    if block.kind == REASONING:
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


def _ending(piece: StreamDelta, asked: Asked) -> dict[str, Any]:
    output = piece.output
    assert isinstance(output, ChatCompletionOutput)
    sequence = output.stop_reason if output.stop_reason in asked.params.stop else None
    if output.finish_reason == "length":
        reason = "max_tokens"
    elif sequence is not None:
        reason = "stop_sequence"
    else:
        reason = "tool_use" if output.tool_calls else "end_turn"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(piece: StreamDelta) -> dict[str, Any]:
    cached = piece.cached_tokens or 0
    return {
        "input_tokens": (piece.prompt_tokens or 0) - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": len(piece.output.token_ids) if piece.output is not None else 0,
    }
