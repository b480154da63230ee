"""POST /v1/completions: plain text or token ids, continued."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..outputs import CompletionOutput, StreamDelta
from ..sampling import SamplingParams
from ..strict_json import show
from .fields import Fields
from .sampling_fields import read_n, read_sampling, read_stream_options, usage_of
from .service import Service, check_finished, events, until_gone

MAX_PROMPTS = 256
DEFAULT_TOKENS = 16  # OpenAI's


def routes(service: Service) -> list[Route]:
    async def create(request: Request) -> Response:
        fields = Fields(await service.body(request))
        adapter = service.adapter_of(fields.text("model"))
        ignored = fields.ignored(("user",))
        prompts, params, n, usage, stream = _read(fields, service, adapter)
        answers = service.answers(prompts, params, n)
        frame = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": params.adapter or service.name,
        }
        if stream:
            response = await events(_chunks(frame, answers, n, usage))
        else:
            response = JSONResponse(await until_gone(request, _whole(frame, answers, n)))
        if ignored:
            response.headers["x-ignored-parameters"] = ", ".join(ignored)
        return response

    return [Route("/v1/completions", create, methods=["POST"])]


def _read(
    fields: Fields, service: Service, adapter: str | None
) -> tuple[list[Any], SamplingParams, int, bool, bool]:
    prompt = fields.any("prompt")
    prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    for one in prompts:
        is_ids = isinstance(one, list) and one and all(type(token) is int for token in one)
        if not isinstance(one, str) and not is_ids:
            raise fields.error("prompt", f"must be a text, token ids, or a list of either, found {show(one)}")
    if len(prompts) > MAX_PROMPTS:
        raise fields.error("prompt", f"must hold at most {MAX_PROMPTS} prompts, found {len(prompts)}")
    for name, why in (("suffix", "the model only continues"), ("best_of", "ask for n answers and choose")):
        fields.refuse(name, why)
    if fields.flag("echo"):
        raise fields.error("echo", "must be false: only what is generated comes back")
    params = read_sampling(
        fields,
        service,
        max_tokens=fields.integer("max_tokens", DEFAULT_TOKENS, low=1),
        logprobs=fields.integer("logprobs"),
        adapter=adapter,
    )
    found = prompts, params, read_n(fields, service), read_stream_options(fields), fields.flag("stream")
    fields.end()
    return found


async def _whole(
    frame: dict[str, Any], answers: AsyncIterator[tuple[int, StreamDelta]], n: int
) -> dict[str, Any]:
    choices, counts = [], {}
    async for place, piece in answers:
        if piece.output is not None:
            check_finished(piece.output)
            counts[place] = piece.prompt_tokens, piece.cached_tokens, len(piece.output.token_ids)
            choices.append(_choice(place, piece.output.text, piece.output))
    choices.sort(key=lambda choice: choice["index"])
    return frame | {"choices": choices, "usage": usage_of(counts, n)}


async def _chunks(
    frame: dict[str, Any], answers: AsyncIterator[tuple[int, StreamDelta]], n: int, usage: bool
) -> AsyncIterator[dict[str, Any]]:
    counts = {}
    try:
        async for place, piece in answers:
            if piece.output is not None:
                check_finished(piece.output)
                counts[place] = piece.prompt_tokens, piece.cached_tokens, len(piece.output.token_ids)
            yield frame | {"choices": [_choice(place, piece.text, piece.output)]}
    finally:
        await answers.aclose()
    if usage:
        yield frame | {"choices": [], "usage": usage_of(counts, n)}


def _choice(place: int, text: str, output: CompletionOutput | None) -> dict[str, Any]:
    reason = None if output is None else "length" if output.finish_reason == "length" else "stop"
    logprobs = None
    if output is not None and output.logprobs is not None:
        chosen = [found[token] for token, found in zip(output.token_ids, output.logprobs, strict=True)]
        logprobs = {
            "tokens": [logprob.decoded_token for logprob in chosen],
            "token_logprobs": [logprob.logprob for logprob in chosen],
            "top_logprobs": [
                {logprob.decoded_token: logprob.logprob for logprob in found.values()}
                for found in output.logprobs
            ],
        }
    return {"index": place, "text": text, "logprobs": logprobs, "finish_reason": reason}
