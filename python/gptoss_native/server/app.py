"""The application: all paths, the key in front of them, errors in OpenAI's shape."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import GptossError
from . import chat, completions, models
from .errors import ApiError
from .service import Service, api_error


def make_app(service: Service) -> Starlette:
    """An ASGI application that shuts the model down when it ends."""

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        await service.llm.shutdown()

    app = Starlette(
        routes=[route for module in (chat, completions, models) for route in module.routes(service)],
        exception_handlers={
            ApiError: _api_error,
            GptossError: _api_error,
            HTTPException: _http_error,
            Exception: _mistake,
        },
        lifespan=life,
    )
    app.add_middleware(Gate, service=service)
    return app


class Gate:
    """Lets in who has the key, and counts responses by status."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service
        key = service.settings.api_key
        self._key = key.encode() if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.responses[message["status"]] += 1
            await send(message)

        app = self._app if self._may_enter(Headers(scope=scope)) else _NO_KEY
        await app(scope, receive, count)

    def _may_enter(self, headers: Headers) -> bool:
        if self._key is None:
            return True
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        shown = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(shown.encode(), self._key)


_NO_KEY = Response(
    json.dumps(
        ApiError(
            401,
            "the API key is missing or wrong; send the server's as `Authorization: Bearer KEY`",
            code="invalid_api_key",
        ).body()
    ),
    401,
    {"WWW-Authenticate": "Bearer"},
    "application/json",
)


async def _api_error(_: Request, error: Exception) -> Response:
    found = api_error(error)
    return JSONResponse(found.body(), found.status, found.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    message = {404: f"there is no {what}", 405: f"{what} is not allowed"}.get(error.status_code, error.detail)
    return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, error.headers)


async def _mistake(_: Request, error: Exception) -> Response:
    message = f"a mistake in gptoss-native ({type(error).__name__}); its log says more, please report it"
    return JSONResponse(ApiError(500, message, kind="server_error").body(), 500)
