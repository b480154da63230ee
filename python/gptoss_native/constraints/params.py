"""What a user wants an answer to look like."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError
from ..strict_json import show

MAX_BYTES = 1 << 18  # of a schema, regex, grammar or all choices together


@dataclass(frozen=True)
class StructuredOutputsParams:
    """One of these binds the whole text of a completion, or the final channel of a chat (vLLM's names).

    json: a JSON schema, as a dict or as JSON text; kept as text
    regex: in the syntax of Rust's regex crate; matches the whole text
    choice: the text is one of these
    grammar: in llguidance's dialect of Lark; its first rule is `start`
    json_object: True: any JSON object

    Raises RequestError unless exactly one is given, and for one of more than 256 KiB.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)
        given = [name for name in _CHECKS if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise RequestError(
                f"structured_outputs takes exactly one of {', '.join(_CHECKS)}, found {found}; give one"
            )
        name = given[0]
        object.__setattr__(self, name, _CHECKS[name](getattr(self, name)))


def schema_text(schema: Any, where: str) -> str:
    """A JSON schema as compact JSON text. Raises RequestError."""
    if isinstance(schema, str):
        try:
            schema = json_module.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where} is no JSON ({error}); pass a schema") from None
    if not isinstance(schema, Mapping):
        raise RequestError(f"{where} must be a JSON schema, an object, found {show(schema)}; pass a dict")
    try:
        text = json_module.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} cannot be written as JSON ({error}); correct it") from None
    return _short(text, where)


def _short(text: str, where: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where} holds half of a UTF-16 pair at character {error.start}, which no text has; remove it"
        ) from None
    if size > MAX_BYTES:
        raise RequestError(f"{where} has {size} bytes, the most is {MAX_BYTES}; make it smaller")
    return text


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(
            f"structured_outputs.{name} must be a text, not empty, found {show(value)}; pass one"
        )
    return _short(value, f"structured_outputs.{name}")


def _choices(value: Any) -> tuple[str, ...]:
    if (
        not isinstance(value, (list, tuple))
        or not value
        or not all(isinstance(one, str) and one for one in value)
    ):
        raise RequestError(
            f"structured_outputs.choice must be a list of texts, none empty, found {show(value)}; pass one"
        )
    _short("".join(value), "structured_outputs.choice")
    return tuple(value)


def _true(value: Any) -> bool:
    if value is not True:
        raise RequestError(f"structured_outputs.json_object must be True or False, found {show(value)}")
    return True


_CHECKS = {
    "json": lambda value: schema_text(value, "structured_outputs.json"),
    "regex": lambda value: _text("regex", value),
    "choice": _choices,
    "grammar": lambda value: _text("grammar", value),
    "json_object": _true,
}
