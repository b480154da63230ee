"""Reads the fields of a JSON body one by one; whatever is left at the end is unknown, and said so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..strict_json import show
from .errors import ApiError


class Fields:
    """The fields of one object. `null` counts as absent, as in OpenAI's API."""

    def __init__(self, body: Mapping[str, Any], where: str = ""):
        self._left = {name: value for name, value in body.items() if value is not None}
        self._where = where

    def take(self, name: str, kind: type | tuple[type, ...], what: str, default: Any = None) -> Any:
        """The field's value, or the default where it is absent; `what` it has to be, for the error."""
        value = self._left.pop(name, None)
        if value is None:
            return default
        is_bool = isinstance(value, bool)
        wants_bool = kind is bool
        if not isinstance(value, kind) or is_bool != wants_bool:
            raise self.error(name, f"must be {what}, found {show(value)}")
        return value

    def text(self, name: str, default: str | None = None) -> str | None:
        return self.take(name, str, "a text", default)

    def number(self, name: str, default: float | None = None) -> float | None:
        return self.take(name, (int, float), "a number", default)

    def integer(self, name: str, default: int | None = None, low: int = 0, high: int = 1 << 31) -> int | None:
        value = self.take(name, int, f"a whole number from {low} to {high}", default)
        if value is not None and not low <= value <= high:
            raise self.error(name, f"must be a whole number from {low} to {high}, found {show(value)}")
        return value

    def flag(self, name: str, default: bool | None = False) -> bool | None:
        return self.take(name, bool, "true or false", default)

    def list(self, name: str) -> list[Any] | None:
        return self.take(name, list, "a list")

    def object(self, name: str) -> dict[str, Any] | None:
        return self.take(name, dict, "an object")

    def choice(self, name: str, allowed: tuple[str, ...], default: str | None = None) -> str | None:
        value = self.text(name, default)
        if value is not None and value not in allowed:
            raise self.error(name, f"must be one of {', '.join(allowed)}, found {show(value)}")
        return value

    def any(self, name: str) -> Any:
        """The field as it is."""
        return self._left.pop(name, None)

    def ignored(self, names: tuple[str, ...]) -> list[str]:
        """Those of `names` that were sent; they change nothing."""
        return [name for name in names if self._left.pop(name, None) is not None]

    def refuse(self, name: str, why: str) -> None:
        """Raise ApiError if the field was sent: it asks for something that is not there."""
        if name in self._left:
            raise self.error(name, f"is not supported: {why}")

    def end(self) -> None:
        """Raise ApiError for a field that nobody has read."""
        if self._left:
            name = min(self._left)
            raise self.error(name, "is no field of this request; leave it out")

    def error(self, name: str, what: str) -> ApiError:
        """The error of one field."""
        return ApiError(400, f"{self._where}{name} {what}", param=f"{self._where}{name}")
