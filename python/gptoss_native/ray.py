"""The server on several GPUs or machines, as a Ray Serve application (extra `ray`).

    serve run gptoss_native.ray:app model=openai/gpt-oss-20b replicas=2 gpus=1

Each replica is one engine with one model, as in `gptoss-native serve`. A front takes HTTP, lets Ray's own
PrefixCacheAffinityRouter choose a replica whose prefix cache is likely to know the beginning, and passes the
answer through as it comes. Ray starts, watches, restarts and scales the replicas. docs/ray.md has the values.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .async_llm import AsyncLLM
from .errors import GptossError, RequestError
from .server.app import make_app
from .server.errors import ApiError
from .server.service import Service
from .server.settings import Settings
from .strict_json import show

#: Ray's prefix-affine router; its public name can only be imported beside vLLM.
ROUTERS = (
    "ray.serve.llm.request_router",
    "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router",
)
GONE = ApiError(
    503,
    "the replica that worked on this answer has gone; send the request again",
    kind="server_error",
    code="replica_lost",
    headers={"Retry-After": "1"},
)


@dataclass
class Values:
    """What `app` takes beside the server's own settings.

    replicas: how many engines; with max_replicas the fewest of them
    max_replicas: start more, up to so many, while each has more than `target_requests` at once
    gpus: of each replica: 0 (CPU), 1, or a share of one
    cpus: of each replica
    """

    model: str = "demo"
    replicas: int = 1
    max_replicas: int = 0
    target_requests: float = 32.0
    gpus: float = 0.0
    cpus: float = 1.0


@dataclass
class Call:
    """One HTTP request on its way to a replica; the router reads `messages`."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    messages: list[dict[str, str]]


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """The application; `arguments`: Values and the settings of `gptoss-native serve`. Raises RequestError."""
    values, settings = Values(), Settings()
    for name, given in arguments.items():
        target = next((t for t in (values, settings) if name in {f.name for f in fields(t)}), None)
        if target is None:
            raise RequestError(f"{show(name)} is no value of gptoss_native.ray; docs/ray.md lists them")
        kind = type(getattr(target, name))
        try:
            setattr(target, name, given if kind in (type(None), bool) else kind(given))
        except ValueError:
            raise RequestError(f"{name} must be of type {kind.__name__}, found {show(given)}") from None
    scale: dict[str, Any] = {"num_replicas": values.replicas}
    if values.max_replicas > values.replicas:
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=values.replicas,
                max_replicas=values.max_replicas,
                target_ongoing_requests=values.target_requests,
            )
        }
    engine = serve.deployment(Replica).options(
        name="engine",
        ray_actor_options={"num_gpus": values.gpus, "num_cpus": values.cpus},
        max_ongoing_requests=settings.max_num_seqs + settings.max_waiting,
        graceful_shutdown_timeout_s=float(settings.drain_seconds),
        health_check_period_s=2.0,
        request_router_config=_router(),
        **scale,
    )
    front = serve.deployment(Front).options(name="front", max_ongoing_requests=10_000)
    return front.bind(engine.bind(values.model, settings))


def _router() -> RequestRouterConfig:
    """By prefix where this Ray has such a router, else by load."""
    for module in ROUTERS:
        with suppress(ImportError):
            return RequestRouterConfig(
                request_router_class=importlib.import_module(module).PrefixCacheAffinityRouter
            )
    return RequestRouterConfig()


class Replica:
    """One engine behind the same application that `gptoss-native serve` runs."""

    def __init__(self, model: str, settings: Settings):
        self._llm = AsyncLLM(model, **settings.model_settings())
        self._app = make_app(Service(self._llm, settings))

    async def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if not self._llm.is_ready:
            raise GptossError("the engine takes no more requests")

    async def serve(self, call: Call) -> AsyncIterator[Any]:
        """The status and headers, then the body as it comes. Closing it is a client that goes away."""
        sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(64)
        left, scope = asyncio.Event(), _scope(call)
        asked = iter([{"type": "http.request", "body": call.body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in asked:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def work() -> None:
            try:
                await self._app(scope, receive, sent.put)
            finally:
                await sent.put(None)

        task = asyncio.create_task(work())
        try:
            while (message := await sent.get()) is not None:
                if message["type"] == "http.response.start":
                    yield message["status"], message["headers"]
                elif message.get("body"):
                    yield message["body"]
        finally:
            left.set()
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def __del__(self) -> None:
        await self._llm.shutdown()


class Front:
    """Takes HTTP requests and passes them on."""

    def __init__(self, engine: Any):
        self._engine = engine.options(stream=True)

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        call = Call(
            request.method,
            request.url.path,
            request.url.query.encode(),
            list(request.headers.raw),
            body,
            _messages(body),
        )
        pieces = self._engine.serve.remote(call)
        try:
            status, headers = await anext(pieces)
        except RayError:
            return JSONResponse(GONE.body(), GONE.status, GONE.headers)
        is_stream = any(name == b"content-type" and b"event-stream" in value for name, value in headers)
        response = StreamingResponse(_passed_on(pieces, is_stream), status)
        response.raw_headers = [(name, value) for name, value in headers if name != b"content-length"]
        return response


async def _passed_on(pieces: Any, is_stream: bool) -> AsyncIterator[bytes]:
    """The body; where the replica dies in a stream, an error is its last event."""
    try:
        async for piece in pieces:
            yield piece
    except RayError:
        if not is_stream:
            raise
        yield b"event: error\ndata: " + json.dumps(GONE.body()).encode() + b"\n\ndata: [DONE]\n\n"
    finally:
        pieces.cancel()


def _messages(body: bytes) -> list[dict[str, str]]:
    """What the router compares: the texts of the conversation or prompt; without any, what nothing equals."""
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        found = None
    given = found if isinstance(found, dict) else {}
    said = next((given[name] for name in ("messages", "input", "prompt") if given.get(name)), None)
    return [{"role": "user", "content": "\n".join(_texts(said)) or uuid.uuid4().hex}]


def _texts(said: Any) -> Iterator[str]:
    if isinstance(said, str):
        yield said
    elif isinstance(said, list):
        for part in said:
            inner = part.get("content", part.get("text")) if isinstance(part, dict) else part
            yield from _texts(inner) if isinstance(inner, (str, list)) else [str(inner)]


def _scope(call: Call) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode(),
        "query_string": call.query,
        "headers": call.headers,
        "root_path": "",
        "client": None,
        "server": None,
    }
