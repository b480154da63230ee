"""The sampling settings of a request body, as chat and completions share them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..constraints import StructuredOutputsParams
from ..errors import RequestError
from ..outputs import ChatCompletionOutput
from ..sampling import SamplingParams
from ..strict_json import show
from ..tokenizer import Tokenizer
from .errors import ApiError
from .fields import Fields
from .service import Service

_MESSAGE_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


def read_sampling(fields: Fields, service: Service, **own: Any) -> SamplingParams:
    """SamplingParams of one answer; `own` are settings that the caller has read."""
    given: dict[str, Any] = {name: fields.number(name) for name in NUMBERS}
    given["top_k"] = fields.integer("top_k", low=-1)
    given["seed"] = fields.integer("seed", low=-(1 << 63), high=(1 << 64) - 1)
    if given["seed"] is not None:
        given["seed"] %= 1 << 64
    given["min_tokens"] = fields.integer("min_tokens")
    given["stop"] = fields.any("stop")
    given["stop_token_ids"] = fields.list("stop_token_ids")
    given["logit_bias"] = _bias(fields)
    given["structured_outputs"] = _structured_outputs(fields)
    if fields.flag("ignore_eos"):
        given["ignore_eos"] = True
    given |= own
    try:
        return replace(service.llm.default_params, **{k: v for k, v in given.items() if v is not None})
    except RequestError as error:
        raise ApiError(400, str(error), param=str(error).split()[0].split("[")[0]) from None


def read_n(fields: Fields, service: Service) -> int:
    """How many answers to each prompt."""
    return fields.integer("n", 1, low=1, high=service.settings.max_n)


def read_stream_options(fields: Fields) -> bool:
    """Whether the usage is to be streamed at the end."""
    options = fields.object("stream_options")
    if options is None:
        return False
    inner = Fields(options, "stream_options.")
    usage = inner.flag("include_usage")
    inner.ignored(("include_obfuscation", "continuous_usage_stats"))
    inner.end()
    return usage


def _structured_outputs(fields: Fields) -> StructuredOutputsParams | None:
    given = fields.object("structured_outputs")
    if given is None:
        return None
    inner = Fields(given, "structured_outputs.")
    kinds = {name: inner.any(name) for name in ("json", "regex", "choice", "grammar", "json_object")}
    inner.end()
    try:
        return StructuredOutputsParams(**kinds)
    except RequestError as error:
        raise ApiError(400, str(error), param=str(error).split()[0]) from None


def _bias(fields: Fields) -> dict[int, float] | None:
    given = fields.object("logit_bias")
    if given is None:
        return None
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise fields.error("logit_bias", f"must map token ids to numbers, found {show(given)}") from None


def reasoning_tokens(tokenizer: Tokenizer, output: ChatCompletionOutput) -> int:
    """How many of an answer's tokens are the text of its analysis messages."""
    specials = tokenizer.specials
    message, marks = specials["<|message|>"], {specials[name] for name in _MESSAGE_ENDS}
    total, place, inside = 0, -1, False
    for token in output.token_ids:
        if token == message:
            place, inside = place + 1, True
        elif token in marks:
            inside = False
        elif inside and place < len(output.messages):
            total += output.messages[place].channel == "analysis"
    return total


def usage_of(counts: dict[int, tuple[int, int, int]], n: int) -> dict[str, Any]:
    """OpenAI's usage object from (prompt, cached, completion) tokens by place; n answers share a prompt."""
    prompts = [count for place, count in counts.items() if place % n == 0]
    prompt, completion = sum(p for p, _, _ in prompts), sum(c for _, _, c in counts.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(cached for _, cached, _ in prompts)},
    }
