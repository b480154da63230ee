"""Reads a message header: the text between `<|start|>` and `<|message|>`, special tokens by their spelling.

A header the official parser accepts gets the same fields here. What it raises on is read by the rules in
`parse.py`; each function returns what it had to do so, as a list of sentences for `HarmonyParser.recoveries`.
"""

import re
from dataclasses import dataclass

from .messages import ROLES

CHANNEL, CONSTRAIN = "<|channel|>", "<|constrain|>"

# Unicode's White_Space, which ends a channel name and is trimmed; words are split at the ASCII part of it.
# `str.isspace` also counts U+001C to U+001F, and would read some headers unlike the official parser.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_NOT_CHANNEL = re.compile(f"[{_SPACE}<]")
_EDGES = re.compile(f"^[{_SPACE}]+|[{_SPACE}]+$")
_WORDS = re.compile(r"[^ \t\n\f\r]+")


@dataclass
class Header:
    """Who says it, to whom, where and in which form; the fields of `Message` without the content."""

    role: str
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


def words(text: str) -> list[str]:
    """The words of a header: split at ASCII whitespace only."""
    return _WORDS.findall(text)


def _take_channel(text: str, rules: list[str]) -> tuple[str | None, str]:
    """(channel, the text without it). Of several, the last one with a name counts."""
    channel = None
    while (at := text.find(CHANNEL)) >= 0:
        after = text[at + len(CHANNEL) :]
        end = _NOT_CHANNEL.search(after)
        value = after[: end.start()] if end else after
        if channel is not None:
            rules.append(f"of several channels the last named one counts, not: {channel}")
        if value:
            channel = value
        else:
            rules.append("a channel marker without a name is dropped")
        text = text[:at] + after[len(value) :]
    return channel, text


def read(text: str, role: str | None) -> tuple[Header, list[str]]:
    """The header in `text`, which `<|message|>` ended. `role` is given where the prompt already held it."""
    rules: list[str] = []
    channel, rest = _take_channel(text, rules)
    rest = _EDGES.sub("", _EDGES.sub("", rest).replace(CONSTRAIN, " " + CONSTRAIN))
    parts, name = words(rest), None
    if role is None:
        role, name = _author(parts, rules)
    if parts and parts[0] == role:
        parts.pop(0)
    recipient, content_type = _official_fields(parts)
    if len(parts) > 2 or (len(parts) == 2 and parts[1].startswith("to=")) or _is_constraint(recipient):
        recipient, content_type = _recovered_fields(parts, rules)
    return Header(role, name, channel, recipient, content_type), rules


def _author(parts: list[str], rules: list[str]) -> tuple[str, str | None]:
    """(role, name) from the first word, which is removed unless it is the role itself."""
    if not parts:
        rules.append("a header without a role is the assistant's")
        return "assistant", None
    first = parts[0]
    if first in ROLES:
        return first, first if first == "tool" else None
    if len(parts) > 1 or first.startswith("to="):
        return "tool", parts.pop(0)  # an unknown name is a tool's, if something follows
    parts.pop(0)
    role, colon, name = first.partition(":")
    if colon and role in ROLES and role != "tool":
        rules.append(f"the author is read as role and name: {first}")
        return role, name
    role = "tool" if "." in first else "assistant"
    rules.append(
        f"the unknown author of a header without recipient is taken for a name of role {role}: {first}"
    )
    return role, first


def _official_fields(parts: list[str]) -> tuple[str | None, str | None]:
    """(recipient, content type) of at most two words: `[to=]recipient [content_type]`."""
    if not parts:
        return None, None
    return parts[0].removeprefix("to="), parts[1] if len(parts) > 1 else None


def _is_constraint(recipient: str | None) -> bool:
    return recipient is not None and recipient.startswith(CONSTRAIN)


def _recovered_fields(parts: list[str], rules: list[str]) -> tuple[str | None, str | None]:
    recipient, content_type, rest = None, None, []
    for i, part in enumerate(parts):
        if part.startswith("to=") and recipient is None:
            recipient = part.removeprefix("to=")
        elif content_type == CONSTRAIN and parts[i - 1] == CONSTRAIN:
            content_type += part  # "<|constrain|> json", with a space that does not belong there
        elif content_type is None and (part.startswith(CONSTRAIN) or _ends_after_recipient(parts, i)):
            content_type = part
        else:
            rest.append(part)
    rules.append(f"the header is read by its marks, without the words: {' '.join(rest)}")
    return recipient, content_type


def _ends_after_recipient(parts: list[str], i: int) -> bool:
    return i == len(parts) - 1 and i > 0 and parts[i - 1].startswith("to=")


def has_marks(text: str) -> bool:
    """Whether the text says that it is a header with a recipient or a content type, or is about to say so."""
    found = words(text)
    return CONSTRAIN in text or any(w.startswith("to=") for w in found) or found[-1:] in (["t"], ["to"])


def words_after_role(text: str, role: str | None) -> int:
    """How many words of an unfinished header must be recipient, content type or out of place."""
    parts = words(_take_channel(text, [])[1])
    return len(parts) - (1 if parts and (role is None or parts[0] == role) else 0)


_MARKS = re.compile(
    rf"(?:^|(?<=[{_SPACE}]))to=([^{_SPACE}<]*)|{re.escape(CONSTRAIN)}[{_SPACE}]*([A-Za-z0-9_]*)"
)


def salvage(text: str, role: str | None) -> tuple[Header, str, list[str]]:
    """(header, content, rules) of a header that no `<|message|>` ended: what is no mark is content."""
    rules: list[str] = []
    channel, rest = _take_channel(text, rules)
    header = Header(role or "assistant", channel=channel)
    first = _WORDS.search(rest)
    if first and (first[0] == role or (role is None and first[0] in ROLES)):
        header.role = first[0]
        header.name = "tool" if role is None and first[0] == "tool" else None
        rest = rest[: first.start()] + rest[first.end() :]
    elif first and role is None and "." in first[0] and "to=" in rest:
        header.role, header.name = "tool", first[0]
        rest = rest[: first.start()] + rest[first.end() :]

    def take(mark: re.Match[str]) -> str:
        if mark[1] is not None and header.recipient is None:
            header.recipient = mark[1]
        elif mark[1] is None and header.content_type is None:
            header.content_type = CONSTRAIN + mark[2]
        else:
            return mark[0]
        return ""

    content = _MARKS.sub(take, rest)
    if channel is not None or content != rest or header.role != "assistant" or first is None:
        content = _EDGES.sub("", content)
    return header, content, rules
