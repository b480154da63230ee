"""From the options of a request to the first state of its answer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RequestError
from ..harmony import functions_of
from ..strict_json import show
from .grammar import GrammarMatcher, Grammars
from .harmony import Harmony
from .params import StructuredOutputsParams
from .states import State, mask_of

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

#: What a chat may ask of its answer beside `response_format` and `tools`.
OPTIONS = frozenset({"tool_choice", "parallel_tool_calls"})
_ANY_OBJECT = {"type": "object"}


class Constraints:
    """Makes first states for one model; usable from any thread. Every method raises RequestError.

    tokenizer: read when first needed
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], vocab_size: int):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    def text(self, wanted: StructuredOutputsParams, ends: Collection[int]) -> State:
        """A plain completion that only `ends` may end, once the grammar lets them."""
        mask = mask_of(ends, self._vocab_size)
        over = State(mask, is_last=True)
        return State(mask, dict.fromkeys(ends, over), matcher=self._grammars.of(wanted), is_last=True)

    def chat(self, options: Mapping[str, Any], wanted: StructuredOutputsParams | None) -> State:
        """A turn of a conversation with `options`, those of harmony.render_conversation and of OPTIONS."""
        role_written = options.get("add_generation_prompt", True)
        functions = functions_of(options.get("tools") or [])
        names = list(functions)
        choice, named = _tool_choice(options.get("tool_choice"), names)
        parallel = _flag(options, "parallel_tool_calls", True)
        final = self._final(options.get("response_format"), wanted)
        if choice == "none":
            functions = {}
        if final is None and not functions:
            return self._harmony.any_turn(role_written)
        if final is None and choice == "auto" and parallel and not _installed():
            return self._harmony.any_turn(role_written)
        offered = {named: functions[named]} if named else functions
        tools = {name: self._arguments(function, names.index(name)) for name, function in offered.items()}
        return self._harmony.turn(
            role_written,
            tools=tools,
            final=final,
            must_call=choice == "required",
            parallel=parallel,
        )

    def _final(self, form: Any, wanted: StructuredOutputsParams | None) -> GrammarMatcher | None:
        kind = form.get("type") if isinstance(form, Mapping) else None
        if kind not in ("json_object", "json_schema"):
            return self._grammars.of(wanted) if wanted is not None else None
        if wanted is not None:
            raise RequestError(
                "response_format and structured_outputs both bind the answer; give one of them"
            )
        if kind == "json_object":
            return self._grammars.schema(_ANY_OBJECT, "response_format")
        given = form.get("json_schema", form)
        return self._grammars.schema(
            given.get("schema") if isinstance(given, Mapping) else None, "response_format.json_schema.schema"
        )

    def _arguments(self, function: Mapping[str, Any], number: int) -> GrammarMatcher:
        """What binds a tool's arguments: its schema, all of it when the tool says that it is strict."""
        where = f"tools[{number}].function.parameters"
        lenient = not _flag(function, "strict", False)
        return self._grammars.schema(function.get("parameters") or _ANY_OBJECT, where, lenient=lenient)

    @cached_property
    def _harmony(self) -> Harmony:
        return Harmony(self._tokenizer(), self._vocab_size)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._tokenizer(), self._vocab_size, self._text)

    @cached_property
    def _text(self) -> np.ndarray:
        return mask_of((token for token, _ in self._tokenizer().ordinary_tokens()), self._vocab_size)


def _tool_choice(choice: Any, names: list[str]) -> tuple[str, str | None]:
    """("none", "auto" or "required", the one function that may be called)."""
    if choice is None:
        return "auto" if names else "none", None
    named = None
    # Compared as texts only: == of an array, say, is no truth value.
    if isinstance(choice, Mapping) and str(choice.get("type")) == "function":
        inner = choice.get("function", choice)
        named = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(named, str) or named not in names:
            offered = ", ".join(names) or "none"
            raise RequestError(f"tool_choice names the function {show(named)}, tools has {offered}; offer it")
        return "required", named
    if not isinstance(choice, str) or choice not in ("none", "auto", "required"):
        raise RequestError(
            "tool_choice must be 'none', 'auto', 'required' or {'type': 'function', "
            f"'function': {{'name': …}}}}, found {show(choice)}; choose one of those"
        )
    if choice == "required" and not names:
        raise RequestError("tool_choice is 'required' and there are no tools; offer one")
    return (choice if names else "none"), named


def _flag(options: Mapping[str, Any], name: str, default: bool) -> bool:
    value = options.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be True or False, found {show(value)}; pass a bool")
    return value


def _installed() -> bool:
    return importlib.util.find_spec("llguidance") is not None
