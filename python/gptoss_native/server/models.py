"""What is served and how it is: models, tokens, health, version, metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .. import __version__
from ..errors import RequestError
from .errors import ApiError
from .fields import Fields
from .service import Service


def routes(service: Service) -> list[Route]:
    def card(name: str) -> dict[str, object]:
        adapter = service.llm.numbers.adapters.get(name)
        # Where its files are is for those with the internal key.
        parent = {"root": adapter.name, "parent": service.name} if adapter else {}
        return {
            "id": name,
            "object": "model",
            "created": service.started,
            "owned_by": "gptoss-native",
            "max_model_len": service.llm.max_model_len,
            **parent,
        }

    async def models(_: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [card(name) for name in (service.name, *service.llm.numbers.adapters)]}
        )

    async def model(request: Request) -> Response:
        service.adapter_of(request.path_params["name"])
        return JSONResponse(card(request.path_params["name"]))

    async def tokenize(request: Request) -> Response:
        fields = Fields(await service.body(request))
        service.adapter_of(fields.text("model"))
        prompt = fields.text("prompt")
        fields.end()
        if prompt is None:
            raise fields.error("prompt", "must be a text, found none")
        tokens = service.llm.tokenizer.encode(prompt)
        return JSONResponse(
            {"tokens": tokens, "count": len(tokens), "max_model_len": service.llm.max_model_len}
        )

    async def detokenize(request: Request) -> Response:
        fields = Fields(await service.body(request))
        service.adapter_of(fields.text("model"))
        tokens = fields.list("tokens")
        fields.end()
        if tokens is None or not all(type(token) is int for token in tokens):
            raise fields.error("tokens", "must be a list of token ids")
        try:
            return JSONResponse({"prompt": service.llm.tokenizer.decode(tokens)})
        except RequestError as error:
            raise ApiError(400, str(error), param="tokens") from None

    async def health(_: Request) -> Response:
        """Alive as long as it answers; ready while it takes requests."""
        ready = service.llm.is_ready
        return JSONResponse({"status": "ready" if ready else "draining"}, 200 if ready else 503)

    async def version(_: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def metrics(_: Request) -> Response:
        text = service.metrics.text(service.llm.stats())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    return [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/health", health),
        Route("/version", version),
        Route("/metrics", metrics),
    ]
