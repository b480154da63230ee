"""From a body of the Responses API to a conversation and its settings, and back to input items."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..sampling import SamplingParams
from ..strict_json import show
from .errors import ApiError
from .fields import Fields
from .sampling_fields import read_sampling
from .service import Service
from .store import Store

IGNORED = (
    "user",
    "include",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "stream_options",
)
REFUSED = {
    "conversation": "go on with previous_response_id",
    "prompt": "there are no stored prompts; send the input",
    "max_tool_calls": "there are no built-in tools",
    "context_management": "the context is never shortened",
    "moderation": "nothing is moderated",
    "background_options": "background takes no options",
    "access_programs": "there are none",
    "image": "the model speaks text only",
    "top_logprobs": "log-probabilities come with /v1/chat/completions",
}
MAX_METADATA = 16
#: What errors call a field -> its name here.
NAMES = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "messages": "input",
}


@dataclass
class Asked:
    """messages: the whole conversation; echo: the settings as the response repeats them"""

    messages: list[dict[str, Any]]
    params: SamplingParams
    options: dict[str, Any]
    stream: bool
    background: bool
    store: bool
    echo: dict[str, Any]
    ignored: list[str]


def read_response(body: dict[str, Any], service: Service, store: Store) -> Asked:
    """A checked body. Raises ApiError, naming the field."""
    fields = Fields(body)
    adapter = service.adapter_of(fields.text("model"))
    for name, why in REFUSED.items():
        fields.refuse(name, why)
    earlier = fields.text("previous_response_id")
    messages = [*_earlier(earlier, store), *_input(fields)]
    instructions = fields.text("instructions")
    effort = _effort(fields)
    form = _format(fields)
    tools = _tools(fields)
    options = {
        "instructions": instructions,
        "reasoning_effort": effort,
        "response_format": form,
        "tools": tools,
        "tool_choice": fields.any("tool_choice"),
        "parallel_tool_calls": fields.flag("parallel_tool_calls", None),
    }
    if fields.choice("truncation", ("auto", "disabled"), "disabled") != "disabled":
        raise fields.error("truncation", "must be disabled: the context is never shortened")
    limit = fields.integer("max_output_tokens", low=1)
    metadata = fields.object("metadata") or {}
    if len(metadata) > MAX_METADATA or not all(isinstance(value, str) for value in metadata.values()):
        raise fields.error(
            "metadata", f"must map at most {MAX_METADATA} names to texts, found {show(metadata)}"
        )
    params = read_sampling(fields, service, max_tokens=limit, adapter=adapter)
    stream, background = fields.flag("stream"), fields.flag("background")
    keep = fields.flag("store", True)
    if background and stream:
        raise fields.error("background", "cannot be streamed; retrieve the response instead")
    if background and not keep:
        raise fields.error("background", "needs store to be true, or nobody could retrieve the response")
    echo = {
        "instructions": instructions,
        "max_output_tokens": limit,
        "metadata": metadata,
        "parallel_tool_calls": options["parallel_tool_calls"] is not False,
        "previous_response_id": earlier,
        "reasoning": {"effort": effort or "medium", "summary": None},
        "store": keep,
        "background": background,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "text": {"format": form or {"type": "text"}},
        "tool_choice": options["tool_choice"] or "auto",
        "tools": tools or [],
        "truncation": "disabled",
    }
    ignored = fields.ignored(IGNORED)
    fields.end()
    given = {name: value for name, value in options.items() if value is not None}
    return Asked(messages, params, given, stream, background, keep, echo, ignored)


def _earlier(response_id: str | None, store: Store) -> list[dict[str, Any]]:
    if response_id is None:
        return []
    stored = store.get(response_id)
    if stored is None:
        raise ApiError(
            400,
            f"there is no response {show(response_id)}; it was not stored, or is gone by now",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if stored.response["status"] in ("queued", "in_progress"):
        raise ApiError(
            400, f"the response {response_id} is not finished; wait for it", param="previous_response_id"
        )
    return stored.conversation


def _effort(fields: Fields) -> str | None:
    reasoning = fields.object("reasoning")
    if reasoning is None:
        return None
    inner = Fields(reasoning, "reasoning.")
    effort = inner.choice("effort", ("minimal", "low", "medium", "high"))
    inner.ignored(("summary", "generate_summary"))
    inner.end()
    return "low" if effort == "minimal" else effort


def _format(fields: Fields) -> dict[str, Any] | None:
    text = fields.object("text")
    if text is None:
        return None
    inner = Fields(text, "text.")
    form = inner.object("format")
    inner.ignored(("verbosity",))
    inner.end()
    return form


def _tools(fields: Fields) -> list[Any] | None:
    tools = fields.list("tools")
    for number, tool in enumerate(tools or []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise fields.error(
                f"tools[{number}].type",
                f"must be 'function', found {show(kind)}: there are no built-in tools",
            )
    return tools


def _input(fields: Fields) -> list[dict[str, Any]]:
    given = fields.any("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise fields.error("input", f"must be a text or a list of items, found {show(given)}")
    return [_message(item, f"input[{number}]", fields) for number, item in enumerate(given)]


def _message(item: Any, where: str, fields: Fields) -> dict[str, Any]:
    """A message of ours for an input item."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "message":
        content = item.get("content")
        return {"role": item.get("role"), "content": _text(content, f"{where}.content", fields)}
    if kind == "function_call":
        call = {"name": item.get("name"), "arguments": item.get("arguments", "")}
        calls = [{"id": item.get("call_id"), "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    if kind == "function_call_output":
        output = _text(item.get("output"), f"{where}.output", fields)
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
    if kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        return {"role": "assistant", "reasoning": _text(parts, f"{where}.content", fields), "content": None}
    raise fields.error(
        f"{where}.type",
        f"must be message, function_call, function_call_output or reasoning, found {show(kind)}",
    )


def _text(content: Any, where: str, fields: Fields) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    for part, text in zip(parts, texts, strict=True):
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise fields.error(where, f"must be a text or parts with a text, found {show(kind)}")
    return "".join(texts)


def input_items(conversation: list[dict[str, Any]], response_id: str) -> list[dict[str, Any]]:
    """The items of a conversation, as the API lists them; the answer at its end is the response's own."""
    items: list[dict[str, Any]] = []
    given = conversation[:-1] if conversation[-1].get("role") == "assistant" else conversation
    for message in given:
        role = message["role"]
        if role == "tool":
            output = {"call_id": message["tool_call_id"], "output": message["content"]}
            items.append({"type": "function_call_output", **output})
            continue
        if message.get("reasoning"):
            text = {"type": "reasoning_text", "text": message["reasoning"]}
            items.append({"type": "reasoning", "summary": [], "content": [text]})
        for call in message.get("tool_calls") or []:
            function = call["function"]
            arguments = function["arguments"]
            arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
            named = {"call_id": call["id"], "name": function["name"], "arguments": arguments}
            items.append({"type": "function_call", "status": "completed", **named})
        if message.get("content"):
            kind = "output_text" if role == "assistant" else "input_text"
            content = [{"type": kind, "text": message["content"]}]
            if role == "assistant":
                content[0] |= {"annotations": [], "logprobs": []}
            items.append({"type": "message", "role": role, "status": "completed", "content": content})
    return [{"id": f"item_{number}_{response_id}"} | item for number, item in enumerate(items)]
