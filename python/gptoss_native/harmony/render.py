"""Messages to token ids, the same ids as openai-harmony 0.0.8.

    <|start|>role[:name][ to=recipient]<|channel|>channel[ content_type]<|message|>content<|end|>

Every text, headers included, goes through `Tokenizer.encode`, which knows no special tokens, so "<|end|>"
typed by a user, a tool or a developer stays ordinary text.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..strict_json import show
from .messages import (
    ROLES,
    ChannelConfig,
    Content,
    DeveloperContent,
    Message,
    ResponseFormat,
    SystemContent,
    ToolDescription,
    ToolNamespace,
)
from .special import SpecialIds
from .typescript import json_text, to_typescript

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

CONSTRAIN = "<|constrain|>"
EFFORTS = ("low", "medium", "high")


def render_messages(
    messages: Sequence[Message], tokenizer: "Tokenizer", *, auto_drop_analysis: bool = True
) -> list[int]:
    """Ids of exactly these messages, nothing added.

    With `auto_drop_analysis`, analysis before the first final message is left out once the last assistant
    message is a final one: a finished turn's chain of thought is not shown to the model again.
    Raises RequestError for a message that harmony cannot express.
    """
    assistant = [message for message in messages if message.role == "assistant"]
    finished = bool(assistant) and assistant[-1].channel == "final"
    first_final = next((i for i, message in enumerate(messages) if message.channel == "final"), 0)
    dropped = first_final if auto_drop_analysis and finished else 0
    has_functions = any(
        namespace.name == "functions" and namespace.tools
        for message in messages
        for part in _parts(message)
        if isinstance(part, DeveloperContent)
        for namespace in _checked(part.tools)
    )
    ids: list[int] = []
    for i, message in enumerate(messages):
        if i >= dropped or message.channel != "analysis":
            ids += render_message(message, tokenizer, has_functions=has_functions)
    return ids


def render_message(message: Message, tokenizer: "Tokenizer", *, has_functions: bool = False) -> list[int]:
    """Ids of one message; `has_functions` adds the line on function calls to a system message."""
    special, encode = SpecialIds.of(tokenizer), tokenizer.encode
    for name in ("name", "channel", "recipient", "content_type"):
        check_text(getattr(message, name), f"the {name} of a message")
    ids = [special.start, *encode(_author(message))]
    if message.recipient is not None and message.recipient != "all":
        ids += encode(f" to={message.recipient}")
    if message.channel is not None:
        ids += [special.channel, *encode(message.channel)]
    if message.content_type is not None:
        if message.content_type.startswith(CONSTRAIN):
            ids += [*encode(" "), special.constrain, *encode(message.content_type[len(CONSTRAIN) :])]
        else:
            ids += encode(f" {message.content_type}")
    ids.append(special.message)
    for part in _parts(message):
        ids += encode(_content(part, message.role, has_functions))
    is_call = message.role == "assistant" and message.recipient is not None
    return [*ids, special.call if is_call else special.end]


def check_text(value: Any, what: str) -> None:
    """Raise RequestError for what is neither text nor None."""
    if not isinstance(value, str | None):
        raise RequestError(f"{what} is {show(value)}, expected text or None; pass a str")


def _check_name(value: Any, of: str) -> None:
    if not isinstance(value, str):
        raise RequestError(f"the name of {of} is {show(value)}, expected text; pass a str")


def _check_list(found: Any, kind: type, what: str) -> None:
    if not isinstance(found, list | tuple) or not all(isinstance(item, kind) for item in found):
        raise RequestError(f"{what} is {show(found)}, expected a list of {kind.__name__}; pass one")


def _parts(message: Message) -> list[Content]:
    return message.content if isinstance(message.content, list) else [message.content]


def _author(message: Message) -> str:
    if message.role not in ROLES:
        raise RequestError(f"a message has role {show(message.role)}, expected one of {', '.join(ROLES)}")
    if message.role == "tool":
        if message.name is None:
            raise RequestError("a tool message has no name; give the name of the tool that answered")
        return message.name
    return message.role if message.name is None else f"{message.role}:{message.name}"


def _content(part: Content, role: str, has_functions: bool) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, SystemContent) and role == "system":
        return _system(part, has_functions)
    if isinstance(part, DeveloperContent) and role == "developer":
        return _developer(part)
    raise RequestError(
        f"a {role} message holds a {type(part).__name__}, expected text "
        "(SystemContent belongs in a system message, DeveloperContent in a developer message)"
    )


def _system(content: SystemContent, has_functions: bool) -> str:
    for name in ("model_identity", "knowledge_cutoff", "conversation_start_date"):
        check_text(getattr(content, name), name)
    facts = [] if content.model_identity is None else [content.model_identity]
    if content.knowledge_cutoff is not None:
        facts.append(f"Knowledge cutoff: {content.knowledge_cutoff}")
    if content.conversation_start_date is not None:
        facts.append(f"Current date: {content.conversation_start_date}")
    sections = ["\n".join(facts)] if facts else []
    if content.reasoning_effort is not None:
        if not isinstance(content.reasoning_effort, str) or content.reasoning_effort not in EFFORTS:
            raise RequestError(
                f"reasoning_effort is {show(content.reasoning_effort)}, expected one of {', '.join(EFFORTS)}"
            )
        sections.append(f"Reasoning: {content.reasoning_effort}")
    if tools := _tools(content.tools):
        sections.append(tools)
    channels = content.channel_config
    if not isinstance(channels, ChannelConfig | None):
        raise RequestError(f"channel_config is {show(channels)}, expected a ChannelConfig or None")
    if channels is not None:
        _check_list(channels.valid_channels, str, "valid_channels")
    if channels is not None and channels.valid_channels:
        line = f"# Valid channels: {', '.join(channels.valid_channels)}."
        if channels.channel_required:
            line += " Channel must be included for every message."
        if has_functions:
            line += "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(line)
    return "\n\n".join(sections)


def _developer(content: DeveloperContent) -> str:
    check_text(content.instructions, "instructions")
    _check_list(content.response_formats, ResponseFormat, "response_formats")
    sections = [] if content.instructions is None else ["# Instructions", content.instructions]
    if tools := _tools(content.tools):
        sections.append(tools)
    if content.response_formats:
        sections.append("# Response Formats")
    for response in content.response_formats:
        _check_name(response.name, "a response format")
        check_text(response.description, "the description of a response format")
        about = [f"// {line}" for line in _lines(response.description or "")]
        sections += [f"## {response.name}", "\n".join([*about, json_text(response.schema)])]
    return "\n\n".join(sections)


def _tools(namespaces: list[ToolNamespace]) -> str:
    by_name = {namespace.name: namespace for namespace in _checked(namespaces)}
    if not by_name:
        return ""
    return "\n\n".join(["# Tools", *(_namespace(by_name[name]) for name in sorted(by_name))])


def _checked(namespaces: Any) -> list[ToolNamespace]:
    """The namespaces, when that is what they are. Raises RequestError."""
    _check_list(namespaces, ToolNamespace, "the tools of a message")
    for namespace in namespaces:
        _check_name(namespace.name, "a ToolNamespace")
        check_text(namespace.description, f"the description of {namespace.name}")
        _check_list(namespace.tools, ToolDescription, f"the tools of {namespace.name}")
    return namespaces


def _namespace(namespace: ToolNamespace) -> str:
    lines, comment = [f"## {namespace.name}\n"], "// " if namespace.tools else ""
    lines += [comment + line for line in _lines(namespace.description or "")]
    if namespace.tools:
        lines.append(f"namespace {namespace.name} {{\n")
        for tool in namespace.tools:
            _check_name(tool.name, f"a tool of {namespace.name}")
            check_text(tool.description, f"the description of {tool.name}")
            lines += [f"// {line}" for line in _lines(tool.description or "")]
            arguments = "" if tool.parameters is None else f"_: {to_typescript(tool.parameters)}"
            lines.append(f"type {tool.name} = ({arguments}) => any;\n")
        lines.append(f"}} // namespace {namespace.name}")
    return "\n".join(lines)


def _lines(text: str) -> list[str]:
    """Lines without their "\\n" or "\\r\\n"; no empty line after the last (`str.splitlines` cuts at more)."""
    pieces = text.split("\n")
    last = pieces.pop()
    return [piece.removesuffix("\r") for piece in pieces] + ([last] if last else [])
