"""The sampling settings of a request body, as chat and completions share them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..constraints import StructuredOutputsParams
from ..errors import RequestError
from ..interventions import ExpertControl, SteeringVector
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
    given["experts"] = _experts(fields)
    given["steering"] = _steering(fields, service)
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


def _experts(fields: Fields) -> list[ExpertControl] | None:
    """One control or several: {"mask": [3], "force": [], "boost": {"5": 1.5}, "layers": [0, 1]}."""
    given = fields.any("experts")
    controls = []
    for place, each in enumerate(given if isinstance(given, list) else [] if given is None else [given]):
        where = f"experts[{place}]" if isinstance(given, list) else "experts"
        if not isinstance(each, dict):
            raise fields.error("experts", f"must be an object or a list of them, found {show(each)}")
        inner = Fields(each, f"{where}.")
        lists = {name: inner.list(name) for name in ("mask", "force", "layers")}
        boost = inner.object("boost") or {}
        inner.end()
        try:
            pairs = {int(expert): amount for expert, amount in boost.items()}
            controls.append(ExpertControl(boost=pairs, **{k: v for k, v in lists.items() if v is not None}))
        except ValueError as error:
            raise ApiError(400, f"{where}: {error}", param=where) from None
    return controls or None


def _steering(fields: Fields, service: Service) -> list[SteeringVector] | None:
    """Names of vectors that this server has, and their strengths: {"calm": 2.0}."""
    given, vectors = fields.object("steering"), []
    for name, strength in (given or {}).items():
        if name not in service.steering:
            known = ", ".join(sorted(service.steering)) or "none"
            raise fields.error("steering", f"names {show(name)}, this server has: {known}")
        try:
            vectors.append(service.steering[name] * strength)
        except RequestError as error:
            raise ApiError(400, f"steering.{name}: {error}", param=f"steering.{name}") from None
    return vectors or None


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
