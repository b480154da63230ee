"""From a body of Anthropic's Messages API to a conversation and its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..harmony.typescript import json_text
from ..sampling import SamplingParams
from ..strict_json import show
from .fields import Fields
from .sampling_fields import read_sampling
from .service import Service

IGNORED = (
    "metadata",
    "service_tier",
    "cache_control",
    "inference_geo",
    "speed",
    "user_profile_id",
    "workspace_id",
)
REFUSED = {
    "container": "there are none",
    "diagnostics": "there are none",
    "mcp_servers": "call tools of your own",
    "context_management": "the context is never shortened",
    "prefill": "an answer cannot be begun for the model",
}
#: What errors call a field -> its name here.
NAMES = {
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@dataclass
class Asked:
    """thinking: whether the thoughts are to be shown"""

    messages: list[dict[str, Any]]
    params: SamplingParams
    options: dict[str, Any]
    stream: bool
    thinking: bool
    ignored: list[str]


def read_message(body: dict[str, Any], service: Service, counting: bool = False) -> Asked:
    """A checked body. Raises ApiError, naming the field."""
    fields = Fields(body)
    adapter = service.adapter_of(fields.text("model"))
    for name, why in REFUSED.items():
        fields.refuse(name, why)
    limit = fields.integer("max_tokens", low=1)
    if limit is None and not counting:
        raise fields.error("max_tokens", "is missing; say how many tokens the answer may have")
    given = fields.list("messages")
    if not given:
        raise fields.error("messages", "must hold at least one message")
    messages = [
        message
        for number, one in enumerate(given)
        for message in _messages(one, f"messages[{number}]", fields)
    ]
    if messages and messages[-1]["role"] == "assistant":
        raise fields.error("messages", "must not end with the assistant's: an answer cannot be begun for it")
    options: dict[str, Any] = {}
    if (system := fields.any("system")) is not None:
        options["instructions"] = _texts(system, "system", fields)
    options |= _tools(fields) | _tool_choice(fields) | _output_config(fields)
    thinking = _thinking(fields)
    stops = fields.list("stop_sequences")
    params = read_sampling(fields, service, max_tokens=limit, stop=stops, adapter=adapter)
    ignored = fields.ignored(IGNORED)
    stream = fields.flag("stream")
    fields.end()
    return Asked(messages, params, options, stream, thinking, ignored)


def _messages(message: Any, where: str, fields: Fields) -> Iterator[dict[str, Any]]:
    """Messages of ours for one of theirs: results of tools stand before a user's text."""
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("user", "assistant", "system"):
        raise fields.error(f"{where}.role", f"must be user or assistant, found {show(role)}")
    content = message.get("content")
    if isinstance(content, str):
        yield {"role": role, "content": content}
        return
    if not isinstance(content, list) or not content:
        raise fields.error(f"{where}.content", f"must be a text or a list of blocks, found {show(content)}")
    for number, block in enumerate(content):
        yield _block(role, block, f"{where}.content[{number}]", fields)


def _block(role: str, block: Any, where: str, fields: Fields) -> dict[str, Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return {"role": role, "content": _texts([block], where, fields)}
    if kind == "tool_result" and role == "user":
        content = block.get("content") or ""
        return {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": _texts(content, f"{where}.content", fields) if content else "",
        }
    if kind == "tool_use" and role == "assistant":
        given = block.get("input", {})
        if not isinstance(given, dict):
            raise fields.error(f"{where}.input", f"must be an object, found {show(given)}")
        call = {"name": block.get("name"), "arguments": json_text(given)}
        calls = [{"id": block.get("id"), "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    if kind == "thinking" and role == "assistant" and isinstance(block.get("thinking"), str):
        return {"role": "assistant", "reasoning": block["thinking"], "content": None}
    raise fields.error(
        f"{where}.type",
        f"must be text, tool_result (of a user), tool_use or thinking (of an assistant), found {show(kind)}",
    )


def _texts(content: Any, where: str, fields: Fields) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise fields.error(where, f"must be a text or blocks of type text, found {show(part)}")
        texts.append(text)
    return "\n".join(texts)


def _tools(fields: Fields) -> dict[str, Any]:
    tools = fields.list("tools")
    if not tools:
        return {}
    found = []
    for number, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else show(tool)
        if kind not in (None, "custom"):
            raise fields.error(
                f"tools[{number}].type", f"must be custom, found {show(kind)}: there are no built-in tools"
            )
        function = {
            "name": tool.get("name"),
            "description": tool.get("description") or "",
            "parameters": tool.get("input_schema"),
            "strict": tool.get("strict"),
        }
        found.append({"type": "function", "function": function})
    return {"tools": found}


def _tool_choice(fields: Fields) -> dict[str, Any]:
    given = fields.object("tool_choice")
    if given is None:
        return {}
    inner = Fields(given, "tool_choice.")
    kind = inner.choice("type", (*_CHOICES, "tool"))
    name = inner.text("name")
    single = inner.flag("disable_parallel_tool_use")
    inner.end()
    if kind is None or (kind == "tool") != (name is not None):
        raise inner.error("type", "must be auto, any, none, or tool with the name of one")
    choice = _CHOICES[kind] if name is None else {"type": "function", "function": {"name": name}}
    return {"tool_choice": choice} | ({"parallel_tool_calls": False} if single else {})


def _output_config(fields: Fields) -> dict[str, Any]:
    given = fields.object("output_config")
    if given is None:
        return {}
    inner, found = Fields(given, "output_config."), {}
    if (effort := inner.choice("effort", ("low", "medium", "high"))) is not None:
        found["reasoning_effort"] = effort
    if (form := inner.object("format")) is not None:
        found["response_format"] = form
    inner.end()
    return found


def _thinking(fields: Fields) -> bool:
    given = fields.object("thinking")
    if given is None:
        return False
    inner = Fields(given, "thinking.")
    kind = inner.choice("type", ("enabled", "adaptive", "disabled"))
    inner.ignored(("budget_tokens", "display"))
    inner.end()
    return kind != "disabled"
