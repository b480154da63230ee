"""The API's machine-readable description, at /openapi.json: OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from .service import Service

TEXT: dict[str, Any] = {"type": "string"}
FLAG: dict[str, Any] = {"type": ["boolean", "null"]}
NUMBER: dict[str, Any] = {"type": ["number", "null"]}
OBJECT: dict[str, Any] = {"type": ["object", "null"]}
OBJECTS: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
TOKENS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def count(low: int = 1) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": low}


def texts(*kinds: str) -> dict[str, Any]:
    return {"enum": [*kinds, None]}


MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [TEXT, OBJECTS, {"type": "null"}]},
        "tool_calls": {"anyOf": [OBJECTS, {"type": "null"}]},
    },
    "required": ["role"],
}
MESSAGES = {"type": "array", "items": MESSAGE, "minItems": 1}
SAMPLING = {
    "model": {"type": ["string", "null"]},
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": count(-1),
    "min_p": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "repetition_penalty": NUMBER,
    "seed": {"type": ["integer", "null"]},
    "min_tokens": count(0),
    "stop": {"anyOf": [TEXT, {"type": "array", "items": TEXT}, {"type": "null"}]},
    "stop_token_ids": {"anyOf": [TOKENS, {"type": "null"}]},
    "ignore_eos": FLAG,
    "logit_bias": OBJECT,
    "structured_outputs": OBJECT,
    "experts": {"anyOf": [{"type": "object"}, OBJECTS, {"type": "null"}]},
    "steering": OBJECT,
    "stream": FLAG,
}
TOOLS = {
    "tools": {"anyOf": [OBJECTS, {"type": "null"}]},
    "tool_choice": {"anyOf": [texts("none", "auto", "required"), {"type": "object"}]},
    "parallel_tool_calls": FLAG,
}
BODIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "/v1/chat/completions": (
        {
            **SAMPLING,
            **TOOLS,
            "messages": MESSAGES,
            "max_tokens": count(),
            "max_completion_tokens": count(),
            "n": count(),
            "logprobs": FLAG,
            "top_logprobs": count(0),
            "reasoning_effort": texts("low", "medium", "high"),
            "include_reasoning": FLAG,
            "response_format": OBJECT,
            "stream_options": OBJECT,
            "modalities": {"enum": [["text"], None]},
        },
        ["messages"],
    ),
    "/v1/completions": (
        {
            **SAMPLING,
            "prompt": {"anyOf": [TEXT, TOKENS, {"type": "array", "items": {"anyOf": [TEXT, TOKENS]}}]},
            "max_tokens": count(),
            "n": count(),
            "logprobs": count(0),
            "stream_options": OBJECT,
        },
        ["prompt"],
    ),
    "/v1/responses": (
        {
            **SAMPLING,
            **TOOLS,
            "input": {"anyOf": [TEXT, {**OBJECTS, "minItems": 1}]},
            "instructions": {"type": ["string", "null"]},
            "max_output_tokens": count(),
            "metadata": OBJECT,
            "previous_response_id": {"type": ["string", "null"]},
            "reasoning": OBJECT,
            "store": FLAG,
            "background": FLAG,
            "text": OBJECT,
        },
        ["input"],
    ),
    "/v1/messages": (
        {
            "model": {"type": ["string", "null"]},
            "messages": MESSAGES,
            "max_tokens": {"type": "integer", "minimum": 1},
            "system": {"anyOf": [TEXT, OBJECTS, {"type": "null"}]},
            "stop_sequences": {"anyOf": [{"type": "array", "items": TEXT}, {"type": "null"}]},
            "temperature": NUMBER,
            "top_p": NUMBER,
            "top_k": count(-1),
            "stream": FLAG,
            "thinking": OBJECT,
            "tools": {"anyOf": [OBJECTS, {"type": "null"}]},
            "tool_choice": OBJECT,
            "output_config": OBJECT,
        },
        ["messages", "max_tokens"],
    ),
    "/v1/messages/count_tokens": ({"messages": MESSAGES}, ["messages"]),
    "/tokenize": ({"prompt": TEXT}, ["prompt"]),
    "/detokenize": ({"tokens": TOKENS}, ["tokens"]),
}
ONE_RESPONSE = "/v1/responses/{response_id}"
READS = {
    "get": ("/v1/models", "/v1/models/{name}", "/health", "/version", "/metrics", ONE_RESPONSE,
            f"{ONE_RESPONSE}/input_items"),
    "delete": (ONE_RESPONSE,),
    "post": (f"{ONE_RESPONSE}/cancel",),
}  # fmt: skip


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {}
    for path, (properties, required) in BODIES.items():
        schema = {"type": "object", "properties": properties, "required": required}
        content = {"application/json": {"schema": schema}}
        paths.setdefault(path, {})["post"] = _operation(path) | {
            "requestBody": {"required": True, "content": content}
        }
    for method, given in READS.items():
        for path in given:
            paths.setdefault(path, {})[method] = _operation(path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gptoss-native", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _operation(path: str) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    places = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
    responses = {"200": {"description": "done"}, "default": {"description": "an error, said in words"}}
    return {"responses": responses} | ({"parameters": places} if places else {})


def routes(_: Service) -> list[Route]:
    async def openapi(_: Request) -> Response:
        return JSONResponse(document())

    return [Route("/openapi.json", openapi)]
