"""OpenAI's Responses API: create (whole, streamed, in the background), retrieve, delete, cancel, list.

The state lives in memory: server/store.py. What is read from a body: server/responses_input.py.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..outputs import ChatCompletionOutput, StreamDelta
from .blocks import CALL, REASONING, Block, Blocks
from .errors import ApiError
from .responses_input import NAMES, Asked, input_items, read_response
from .sampling_fields import reasoning_tokens
from .service import Service, check_finished, events, named_event, renaming, until_gone
from .store import Store, Stored


def routes(service: Service) -> list[Route]:
    store, background = Store(), set()

    async def create(request: Request) -> Response:
        body = await service.body(request)
        asked = read_response(body, service, store)
        making = Making(asked, service, store)
        if asked.background:
            task = asyncio.create_task(making.whole())
            background.add(task)
            task.add_done_callback(
                lambda task: (background.discard(task), task.cancelled() or task.exception())
            )
            response: Response = JSONResponse(making.response("queued"))
        elif asked.stream:
            response = await events(making.events(), named_event, _error_event, b"")
        else:
            response = JSONResponse(await until_gone(request, making.whole()))
        if asked.ignored:
            response.headers["x-ignored-parameters"] = ", ".join(asked.ignored)
        return response

    def stored_of(request: Request) -> Stored:
        response_id = request.path_params["response_id"]
        stored = store.get(response_id)
        if stored is None:
            raise ApiError(404, f"there is no response {response_id!r}; it was not stored, or is gone by now")
        return stored

    async def retrieve(request: Request) -> Response:
        if request.query_params.get("stream") in ("true", "True", "1"):
            raise ApiError(
                400, "stream must be false: a stored response is retrieved as it is", param="stream"
            )
        return JSONResponse(stored_of(request).response)

    async def delete(request: Request) -> Response:
        response = stored_of(request).response
        store.pop(response["id"])
        service.llm.abort(response["id"])
        return JSONResponse({"id": response["id"], "object": "response", "deleted": True})

    async def cancel(request: Request) -> Response:
        response = stored_of(request).response
        while response["status"] in ("queued", "in_progress"):
            service.llm.abort(response["id"])  # again and again: it may not have come to the engine yet
            await asyncio.sleep(0.005)
            response = stored_of(request).response
        return JSONResponse(response)

    async def items(request: Request) -> Response:
        stored = stored_of(request)
        data = input_items(stored.conversation, stored.response["id"])
        return JSONResponse(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": False,
            }
        )

    one = "/v1/responses/{response_id}"
    return [
        Route("/v1/responses", create, methods=["POST"]),
        Route(one, retrieve, methods=["GET"]),
        Route(one, delete, methods=["DELETE"]),
        Route(f"{one}/cancel", cancel, methods=["POST"]),
        Route(f"{one}/input_items", items, methods=["GET"]),
    ]


class Making:
    """One response while it is made."""

    def __init__(self, asked: Asked, service: Service, store: Store):
        self.asked, self._service, self._store = asked, service, store
        self.id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._blocks, self._sequence = Blocks(), 0
        self._save(self.response("queued" if asked.background else "in_progress"))

    async def whole(self) -> dict[str, Any]:
        """The finished response."""
        response: dict[str, Any] = {}
        async for event in self.events():
            response = event.get("response", response)
        return response

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of the stream, in the vendor's order."""
        answers = renaming(
            self._service.answers(
                [self.asked.messages], self.asked.params, 1, request_id=self.id, **self.asked.options
            ),
            NAMES,
        )
        try:
            begun = False
            async for _, piece in answers:
                if not begun:
                    begun = True
                    for name in ("created", "in_progress"):
                        yield self._event(f"response.{name}", response=self.response("in_progress"))
                for change, block, text in self._blocks.push(piece):
                    for event in _block_events(change, block, text):
                        name = event.pop("type")
                        yield self._event(name, output_index=block.number, **event)
                if piece.output is not None:
                    response = self._finish(piece)
                    name = {"cancelled": "failed"}.get(response["status"], response["status"])
                    yield self._event(f"response.{name}", response=response)
        except (asyncio.CancelledError, GeneratorExit):  # the client has gone, or the server ends
            self._save(self.response("cancelled"))
            raise
        except ApiError as error:
            wrong = {"code": error.code or error.kind, "message": error.message}
            self._save(self.response("failed", error=wrong))
            raise
        finally:
            await answers.aclose()

    def response(self, status: str, **more: Any) -> dict[str, Any]:
        """The object as it is now."""
        items = [_item(block, "completed") for block in self._blocks.all] if more else []
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.asked.params.adapter or self._service.name,
            "output": items,
            "usage": None,
            **self.asked.echo,
        } | more

    def _finish(self, piece: StreamDelta) -> dict[str, Any]:
        output = piece.output
        assert isinstance(output, ChatCompletionOutput)
        if output.finish_reason != "abort":
            check_finished(output)
        counted, cached = piece.prompt_tokens or 0, piece.cached_tokens or 0
        details: dict[str, Any] = {
            "completed_at": int(time.time()),
            "usage": {
                "input_tokens": counted,
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
                "output_tokens": len(output.token_ids),
                "output_tokens_details": {
                    "reasoning_tokens": reasoning_tokens(self._service.llm.tokenizer, output)
                },
                "total_tokens": counted + len(output.token_ids),
            },
        }
        status = {"length": "incomplete", "abort": "cancelled"}.get(str(output.finish_reason), "completed")
        if status == "incomplete":
            details["incomplete_details"] = {"reason": "max_output_tokens"}
        response = self.response(status, **details)
        self._save(response, [*self.asked.messages, output.message])
        return response

    def _save(self, response: dict[str, Any], conversation: list[dict[str, Any]] | None = None) -> None:
        if self.asked.store:
            self._store.put(Stored(response, conversation or self.asked.messages))

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}


def _error_event(error: ApiError) -> dict[str, Any]:
    return {"type": "error", "code": error.code, "message": error.message, "param": error.param}


def _item(block: Block, status: str) -> dict[str, Any]:
    """The output item of a block."""
    text, item = block.text, {"id": block.item_id, "status": status}
    if block.kind == REASONING:
        content = [{"type": "reasoning_text", "text": text}]
        return item | {"type": "reasoning", "summary": [], "content": content if text else []}
    if block.kind == CALL:
        return item | {
            "type": "function_call",
            "call_id": block.call_id,
            "name": block.name,
            "arguments": text,
        }
    content = [_part(block)] if status != "in_progress" else []
    phase = "commentary" if block.channel == "commentary" else "final_answer"
    return item | {"type": "message", "role": "assistant", "content": content, "phase": phase}


def _part(block: Block) -> dict[str, Any]:
    if block.kind == REASONING:
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


def _block_events(change: str, block: Block, text: str) -> list[dict[str, Any]]:
    """What a change of a block is told by, without output_index and sequence_number."""
    place = {"item_id": block.item_id}
    if block.kind != CALL:
        place["content_index"] = 0
    kind, extra = {
        REASONING: ("response.reasoning_text", {}),
        CALL: ("response.function_call_arguments", {}),
    }.get(block.kind, ("response.output_text", {"logprobs": []}))
    if change == "open":
        added = {"type": "response.output_item.added", "item": _item(block, "in_progress")}
        part = {"type": "response.content_part.added", **place, "part": _part(block)}
        return [added] if block.kind == CALL else [added, part]
    if change == "more":
        return [{"type": f"{kind}.delta", **place, "delta": text, **extra}]
    whole = {"arguments": block.text, "name": block.name} if block.kind == CALL else {"text": block.text}
    done = {"type": f"{kind}.done", **place, **whole, **extra}
    part = {"type": "response.content_part.done", **place, "part": _part(block)}
    closed = {"type": "response.output_item.done", "item": _item(block, "completed")}
    return [done, closed] if block.kind == CALL else [done, part, closed]
