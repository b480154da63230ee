"""The application: all paths, the key in front of them, errors in OpenAI's shape."""

from __future__ import annotations

import base64
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import GptossError
from . import chat, completions, internal, messages, models, openapi, page, responses
from .errors import ApiError
from .service import Service, api_error


def make_app(service: Service) -> Starlette:
    """An ASGI application that shuts the model down when it ends."""

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        await service.llm.shutdown()

    app = Starlette(
        routes=[
            route
            for module in (chat, completions, responses, messages, models, internal, openapi, page)
            for route in module.routes(service)
        ],
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
        self._key = _bytes(service.settings.api_key)
        self._internal_key = _bytes(service.settings.internal_api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.responses[message["status"]] += 1
            await send(message)

        app = self._app
        if not self._may_enter(scope["path"], Headers(scope=scope)):
            app = _refusal(scope["path"])
        await app(scope, receive, count)

    def _may_enter(self, path: str, headers: Headers) -> bool:
        key = self._internal_key if path.startswith(internal.PATH) and self._internal_key else self._key
        return key is None or hmac.compare_digest(_shown_key(headers), key)


def _bytes(key: str | None) -> bytes | None:
    return key.encode() if key is not None else None


def _shown_key(headers: Headers) -> bytes:
    """As a bearer token, as the password that a browser asks for, or as x-api-key."""
    kind, _, rest = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return rest.strip().encode()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return headers.get("x-api-key", "").encode()


def _refusal(path: str) -> Response:
    error = ApiError(
        401,
        "the API key is missing or wrong; send the server's as `Authorization: Bearer KEY` or as `x-api-key`",
        code="invalid_api_key",
        headers={
            "WWW-Authenticate": 'Basic realm="API key as the password"' if path in page.PATHS else "Bearer"
        },
    )
    return _response(path, error)


def _response(path: str, error: ApiError) -> Response:
    """The error in the shape of the API that was called."""
    body = messages.error_body(error) if path.startswith(messages.PATH) else error.body()
    return JSONResponse(body, error.status, error.headers)


async def _api_error(request: Request, error: Exception) -> Response:
    return _response(request.url.path, api_error(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    message = {404: f"there is no {what}", 405: f"{what} is not allowed"}.get(error.status_code, error.detail)
    return _response(request.url.path, ApiError(error.status_code, message, headers=error.headers))


async def _mistake(request: Request, error: Exception) -> Response:
    message = f"a mistake in gptoss-native ({type(error).__name__}); its log says more, please report it"
    return _response(request.url.path, ApiError(500, message, kind="server_error"))
