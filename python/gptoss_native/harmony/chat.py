"""OpenAI-style chat messages and function tools, as harmony messages.

| dict message | becomes |
|---|---|
| system, developer (leading) | one developer message: "# Instructions", their texts joined by empty lines |
| system, developer (later) | a developer message in its place |
| user | a user message |
| assistant `reasoning` | an analysis message |
| assistant `content` | a final message; beside `tool_calls`, a commentary message (the preamble) |
| assistant `tool_calls` | one call each: commentary to functions.NAME, `<|constrain|>json` |
| assistant `harmony` | its messages as they are, instead of the three above (see `assistant_message`) |
| tool | functions.NAME to assistant, commentary; the name from `name`, or that of the call `tool_call_id` |

A `Message` is rendered as it is, anywhere in the list.
"""

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import RequestError
from ..strict_json import show
from .header import words
from .messages import (
    DEFAULT_CUTOFF,
    DEFAULT_IDENTITY,
    FUNCTIONS,
    PYTHON,
    DeveloperContent,
    Message,
    ResponseFormat,
    SystemContent,
    ToolDescription,
    ToolNamespace,
    is_tool,
)
from .render import CONSTRAIN, check_text, render_messages
from .special import SpecialIds
from .typescript import json_text

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# A name becomes part of a message header, where spaces and "<" separate things.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
#: Fields of a message in an assistant dict's `harmony`; only the content is a must.
_FIELDS = ("name", "channel", "recipient", "content_type")


class _Call(NamedTuple):
    """Where the answer to a tool call comes from, and on which channel."""

    author: str
    channel: str


def render_conversation(
    messages: Sequence[Message | dict[str, Any]],
    tokenizer: "Tokenizer",
    *,
    reasoning_effort: str | None = "medium",
    current_date: str | None = None,
    model_identity: str | None = DEFAULT_IDENTITY,
    knowledge_cutoff: str | None = DEFAULT_CUTOFF,
    tools: Sequence[dict[str, Any]] | None = None,
    instructions: str | None = None,
    response_format: dict[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Ids of a whole prompt: system message, developer message if there is anything to say, conversation.

    messages:         dicts in the style of OpenAI's chat completions, or `Message`s
    reasoning_effort: "low", "medium" or "high"; None: no such line; likewise model_identity, knowledge_cutoff
    current_date:     printed as given; None or "": today, in ISO form
    tools:            OpenAI function tools: `{"type": "function", "function": {"name", ...}}` as in chat
                      completions, or `{"type": "function", "name", ...}` as in the responses API
    instructions:     put before those of leading system and developer dicts
    response_format:  OpenAI's: of type "text", "json_object" or "json_schema"
    add_generation_prompt: end with `<|start|>assistant`, for the model to go on

    A `Message` of role system replaces the system message made from the settings above.
    Raises RequestError for a malformed conversation, CheckpointError if a harmony special is missing.
    """
    check_text(current_date, "current_date")
    if not isinstance(add_generation_prompt, bool):
        raise RequestError(
            f"add_generation_prompt is {show(add_generation_prompt)}, expected True or False; pass a bool"
        )
    conversation = to_messages(
        messages,
        system=SystemContent(
            model_identity=model_identity,
            reasoning_effort=reasoning_effort,
            conversation_start_date=current_date or datetime.date.today().isoformat(),
            knowledge_cutoff=knowledge_cutoff,
        ),
        developer=DeveloperContent(
            instructions,
            function_namespaces([] if tools is None else tools),
            response_formats(response_format),
        ),
    )
    ids = render_messages(conversation, tokenizer)
    if add_generation_prompt:
        ids += [SpecialIds.of(tokenizer).start, *tokenizer.encode("assistant")]
    return ids


def to_messages(
    messages: Sequence[Message | dict[str, Any]], system: SystemContent, developer: DeveloperContent
) -> list[Message]:
    """The harmony messages of a conversation: see the module's table. Raises RequestError."""
    check_text(developer.instructions, "instructions")
    if isinstance(messages, str | dict) or not isinstance(messages, Sequence):
        raise RequestError(f"messages is a {type(messages).__name__}, expected a list of messages")
    head, texts, start = [], [developer.instructions] if developer.instructions else [], 0
    for message in messages:
        if isinstance(message, Message) and message.role == "system":
            head.append(message)
        elif isinstance(message, dict) and message.get("role") in ("system", "developer"):
            texts.append("".join(_texts(message, start)))
        else:
            break
        start += 1
    own = [m.role for m in messages if isinstance(m, Message)]
    merged = DeveloperContent("\n\n".join(texts) or None, developer.tools, developer.response_formats)
    out = head if "system" in own else [Message("system", system)]
    if merged != DeveloperContent():
        if "developer" in own:
            raise RequestError(
                "a developer Message was given together with instructions, tools, response_format or a "
                "system dict, which make another one; put them all in the Message's DeveloperContent"
            )
        out.append(Message("developer", merged))
    calls: dict[str, _Call] = {}
    for n in range(start, len(messages)):
        message = messages[n]
        if isinstance(message, Message):
            out.append(message)
        elif isinstance(message, dict):
            out += _from_dict(message, n, calls)
        else:
            raise RequestError(f"messages[{n}] is a {type(message).__name__}, expected a dict or a Message")
    return out


def assistant_message(
    written: Sequence[Message], content: str, reasoning: str, tool_calls: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the assistant wrote, as a dict to append to a conversation; it can be sent as JSON.

    content, reasoning, tool_calls: its keys, as in OpenAI's chat completions. Where they cannot say all that
    was written (several thoughts with notes in between, a call of a built-in tool), a key `harmony` holds the
    messages themselves, and the prompt of the next turn is made of those.
    """
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning"] = reasoning
    if tool_calls:
        message["tool_calls"] = list(tool_calls)
    if written and not _says_all(message, written):
        message["harmony"] = [
            {
                **{name: value for name in _FIELDS if (value := getattr(part, name)) is not None},
                "content": part.content,
            }
            for part in written
        ]
    return message


def _says_all(message: dict[str, Any], written: Sequence[Message]) -> bool:
    try:
        found = list(_assistant(message, 0, {}))
    except RequestError:  # a model may call a function by a name that none can have
        return False
    return [replace(part, content="".join(part.content)) for part in found] == list(written)


def _from_dict(message: dict[str, Any], n: int, calls: dict[str, _Call]) -> Iterator[Message]:
    role = message.get("role")
    if role in ("system", "developer"):
        yield Message("developer", DeveloperContent("".join(_texts(message, n))))
    elif role == "user":
        name = message.get("name")
        yield Message("user", _texts(message, n), _name(name, f"messages[{n}].name") if name else None)
    elif role == "assistant":
        yield from _assistant(message, n, calls)
    elif role == "tool":
        given = message.get("tool_call_id")
        call = calls.get(given if isinstance(given, str) else show(given))
        if message.get("name"):
            call = _Call(_qualified(_name(message["name"], f"messages[{n}].name")), "commentary")
        if call is None:
            raise RequestError(
                f"messages[{n}] answers tool_call_id {show(given)}, but no earlier tool call has it; send "
                "the assistant message with that call too, or give the tool message a name"
            )
        yield Message("tool", _texts(message, n), call.author, channel=call.channel, recipient="assistant")
    else:
        raise RequestError(
            f"messages[{n}].role is {show(role)}, expected system, developer, user, assistant or tool"
        )


def _assistant(message: dict[str, Any], n: int, known: dict[str, _Call]) -> Iterator[Message]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise RequestError(f"messages[{n}].tool_calls is a {type(calls).__name__}, expected a list")
    if message.get("harmony") is not None:
        written = _written(message["harmony"], f"messages[{n}].harmony")
    else:
        written = [*_said(message, n, bool(calls)), *_called(calls, f"messages[{n}].tool_calls")]
    yield from written
    for call, part in zip(calls, [part for part in written if is_tool(part.recipient)], strict=False):
        if isinstance(call, dict) and isinstance(call.get("id"), str):
            known[call["id"]] = _Call(_author(str(part.recipient)), part.channel or "commentary")


def _said(message: dict[str, Any], n: int, calls: bool) -> Iterator[Message]:
    """Reasoning and content; beside `calls`, the content is their preamble."""
    reasoning = next((message[key] for key in REASONING_KEYS if message.get(key)), None)
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise RequestError(f"messages[{n}]: the reasoning is a {type(reasoning).__name__}, expected text")
        yield Message("assistant", reasoning, channel="analysis")
    if message.get("content") is not None:
        texts = _texts(message, n)
        if any(texts) or not (calls or reasoning):
            yield Message("assistant", texts, channel="commentary" if calls else "final")
    elif not calls and reasoning is None:
        raise RequestError(f"messages[{n}] has neither content nor tool_calls; give an assistant message one")


def _called(calls: Sequence[Any], where: str) -> Iterator[Message]:
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise RequestError(
                f"{where}[{i}] has no function, expected {{'function': {{'name', 'arguments'}}}}"
            )
        name = _name(function.get("name"), f"{where}[{i}].function.name")
        arguments = function.get("arguments", "")
        yield Message(
            "assistant",
            arguments if isinstance(arguments, str) else json_text(arguments),
            channel="commentary",
            recipient=_qualified(name),
            content_type=f"{CONSTRAIN}json",
        )


def _written(given: Any, where: str) -> list[Message]:
    """The messages of an assistant dict's `harmony`."""
    if not isinstance(given, list) or not given:
        raise RequestError(f"{where} is {show(given)}, expected a list of messages as chat gave it")
    out = []
    for i, part in enumerate(given):
        fields = dict(part) if isinstance(part, dict) else {}
        content = fields.pop("content", None)
        if not isinstance(content, str) or not all(
            name in _FIELDS and isinstance(value, str) and "".join(words(value)) == value
            for name, value in fields.items()
        ):
            raise RequestError(
                f"{where}[{i}] is {show(part)}, expected a text as its content and single words as "
                f"{', '.join(_FIELDS)}; send it as chat gave it"
            )
        out.append(Message("assistant", content, **fields))
    return out


def _author(recipient: str) -> str:
    """Who answers a call to `recipient`: a name without a namespace is a function's, but for python."""
    return recipient if "." in recipient or recipient == PYTHON.name else _qualified(recipient)


def _qualified(name: str) -> str:
    return name if name.startswith(FUNCTIONS) else FUNCTIONS + name


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where} is {show(name)}, expected 1 to 128 letters, digits, '_', '-' or '.'")
    return name


def _texts(message: dict[str, Any], n: int) -> list[str]:
    """The text parts of a message's content."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RequestError(
                f"messages[{n}].content holds a part of type {show(kind)}, expected text; "
                "gpt-oss reads text only"
            )
        texts.append(text)
    return texts


def function_namespaces(tools: Sequence[dict[str, Any]]) -> list[ToolNamespace]:
    """The `functions` namespace of OpenAI function tools; none for no tools. Raises RequestError."""
    if not isinstance(tools, list | tuple):
        raise RequestError(f"tools is of type {type(tools).__name__}, expected a list of function tools")
    functions = [_function(tool, f"tools[{n}]") for n, tool in enumerate(tools)]
    return [ToolNamespace("functions", None, functions)] if functions else []


def functions_of(tools: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By name, what function tools say of themselves: name, description, parameters, strict. RequestError."""
    function_namespaces(tools)
    functions = [tool.get("function", tool) for tool in tools]
    named = {function["name"]: function for function in functions}
    if len(named) < len(functions):
        names = [function["name"] for function in functions]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(
            f"tools has the function {twice!r} {names.count(twice)} times; give each its own name"
        )
    return named


def _function(tool: Any, where: str) -> ToolDescription:
    """A function tool, nested under "function" (chat completions) or flat (responses API)."""
    if not isinstance(tool, dict):
        raise RequestError(
            f"{where} is of type {type(tool).__name__}, expected a dict {{'type': 'function', …}}"
        )
    if tool.get("type") != "function":
        found = show(tool["type"]) if "type" in tool else "missing"
        raise RequestError(f"{where}.type is {found}, expected 'function', the only kind of tool there is")
    function = tool
    if "function" in tool:
        function, where = tool["function"], f"{where}.function"
        if not isinstance(function, dict):
            raise RequestError(f"{where} is of type {type(function).__name__}, expected a dict with a name")
    name = _name(function.get("name"), f"{where}.name")
    description, parameters = function.get("description"), function.get("parameters")
    if not isinstance(description, str | None):
        raise RequestError(f"{where}.description is of type {type(description).__name__}, expected text")
    if not isinstance(parameters, dict | None):
        raise RequestError(
            f"{where}.parameters is of type {type(parameters).__name__}, expected a JSON schema as a dict"
        )
    return ToolDescription(name, description or "", parameters)


def response_formats(response_format: dict[str, Any] | None) -> list[ResponseFormat]:
    """The developer message's section for OpenAI's `response_format`. Raises RequestError."""
    if response_format is None:
        return []
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return []
    if kind == "json_object":
        return [ResponseFormat("json_object", {"type": "object"})]
    if kind != "json_schema":
        raise RequestError(
            f"response_format.type is {show(kind)}, expected 'text', 'json_object' or 'json_schema'"
        )
    given = response_format.get("json_schema", response_format)
    schema, about = (
        (given.get("schema"), given.get("description")) if isinstance(given, dict) else (None, None)
    )
    if not isinstance(schema, dict) or not isinstance(about, str | None):
        raise RequestError(
            "response_format.json_schema needs a 'schema' object and, if any, a text description"
        )
    name = _name(given.get("name", "response"), "response_format.json_schema.name")
    return [ResponseFormat(name, schema, about)]
