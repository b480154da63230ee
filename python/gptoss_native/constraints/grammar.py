"""JSON schemas, regexes, choices and Lark grammars, compiled by llguidance to masks over the vocabulary.

llguidance (Microsoft, MIT) is an extra; it is imported when the first grammar is compiled. One mask takes it
20 to 200 µs for a vocabulary of 200,000 tokens: bench/constraints.py.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RequestError
from .params import StructuredOutputsParams, schema_text

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

MAX_KEPT = 256  # compiled grammars
MAX_LOOKS = 2000  # subschemas tried to find the one that is wrong
#: Between the parts of a JSON text; without an end to it a model can write spaces for ever.
_WHITESPACE = r"[ \n\t]{0,40}"
#: Keywords whose values are schemas, lists of schemas, and objects of schemas.
_ONE = ("items", "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else",
        "propertyNames", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_OBJECTS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")


class GrammarMatcher:
    """A compiled grammar and a place in it; see states.Matcher."""

    def __init__(self, native: Any, text: np.ndarray):
        self._native, self._text = native, text

    @property
    def accepting(self) -> bool:
        return self._native.is_accepting()

    @property
    def stopped(self) -> bool:
        return self._native.is_stopped()

    def mask(self) -> np.ndarray:
        mask = np.frombuffer(self._native.compute_bitmask(), np.uint32)[: len(self._text)] & self._text
        self._check()
        if not mask.any() and not self.accepting:
            raise RequestError(
                "the grammar allows no token here, though the text is not complete; allow ordinary text"
            )
        return mask

    def take(self, token: int) -> None:
        self._native.consume_token(token)
        self._check()

    def copy(self) -> GrammarMatcher:
        return GrammarMatcher(self._native.deep_copy(), self._text)

    def _check(self) -> None:
        if self._native.is_error():
            raise RequestError(
                f"the grammar cannot go on: {_brief(self._native.get_error())}; make it simpler"
            )


class Grammars:
    """Compiles for one vocabulary and keeps what it has compiled; usable from any thread.

    text: uint32 mask of the tokens that are ordinary text
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, text: np.ndarray):
        self._text, self._lock = text, threading.Lock()
        self._llguidance = _import()
        self._tokens = self._llguidance.LLTokenizer(_Vocabulary(tokenizer, vocab_size), n_vocab=vocab_size)
        self._kept: OrderedDict[str, GrammarMatcher] = OrderedDict()

    def of(self, params: StructuredOutputsParams) -> GrammarMatcher:
        """What a user asks for. Raises RequestError, naming the part that is wrong."""
        if params.json is not None:
            return self.schema(params.json, "structured_outputs.json")
        if params.json_object:
            return self.schema({"type": "object"}, "structured_outputs.json_object")
        native = self._llguidance.LLMatcher
        if params.regex is not None:
            return self._compile(native.grammar_from_regex(params.regex), "structured_outputs.regex")
        if params.choice is not None:
            options = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in params.choice)
            return self._compile(native.grammar_from_lark(f"start: {options}"), "structured_outputs.choice")
        return self._compile(native.grammar_from_lark(params.grammar), "structured_outputs.grammar")

    def schema(self, schema: Any, where: str, *, lenient: bool = False) -> GrammarMatcher:
        """JSON that a schema describes. Raises RequestError with the path of what is wrong in it.

        lenient: keywords that cannot be enforced are left out instead of refused
        """
        text = schema_text(schema, where)
        grammar = self._of_schema(text, lenient)
        try:
            return self._compile(grammar, where)
        except _GrammarError as error:
            path = self._place(json.loads(text), error.what, lenient)
            raise RequestError(f"{where}{path}: {error.what}; correct it") from None

    def _of_schema(self, text: str, lenient: bool) -> str:
        options = {"whitespace_pattern": _WHITESPACE, "lenient": lenient}
        return self._llguidance.LLMatcher.grammar_from_json_schema(text, overrides=options)

    def _compile(self, grammar: str, where: str) -> GrammarMatcher:
        with self._lock:
            known = self._kept.get(grammar)
            if known is not None:
                self._kept.move_to_end(grammar)
                return known
        native = self._llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if not native.is_error():
            native.compute_bitmask()  # some limits are met at the first token only
        if native.is_error():
            raise _GrammarError(where, _brief(native.get_error()))
        matcher = GrammarMatcher(native, self._text)
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return matcher

    def _place(self, schema: Any, what: str, lenient: bool) -> str:
        """The path to the innermost subschema that alone gives the same error."""
        common = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        path, looks = "", 0
        inner = _subschemas(schema)
        while (found := next(inner, None)) is not None and looks < MAX_LOOKS:
            looks += 1
            step, part = found
            if not isinstance(part, dict):
                continue
            alone = json.dumps(common | part)
            native = self._llguidance.LLMatcher(self._tokens, self._of_schema(alone, lenient), log_level=0)
            if native.is_error() and _brief(native.get_error()) == what:
                path, inner, common = path + step, _subschemas(part), common
        return path


class _GrammarError(RequestError):
    """What llguidance does not like about a grammar."""

    def __init__(self, where: str, what: str):
        super().__init__(f"{where}: {what}; correct it")
        self.what = what


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer = tokenizer
        self.tokens = [b""] * vocab_size
        for token, spelling in tokenizer.ordinary_tokens():
            if token < vocab_size:
                self.tokens[token] = spelling
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < vocab_size)
        for token in self.special_token_ids:
            self.tokens[token] = tokenizer.token_bytes(token)
        # It needs one; ours are masked and allowed by the states.
        self.eos_token_id = self.special_token_ids[0] if self.special_token_ids else vocab_size - 1

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, subschema) of those directly in a schema."""
    for name in _ONE:
        if isinstance(schema.get(name), dict):
            yield f".{name}", schema[name]
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            yield from ((f".{name}[{i}]", part) for i, part in enumerate(schema[name]))
    for name in _OBJECTS:
        if isinstance(schema.get(name), dict):
            yield from ((f".{name}.{key}", part) for key, part in schema[name].items())


def _brief(message: str) -> str:
    """The first sentences of an error, on one line, without the grammar itself."""
    return " ".join(message.partition("<state>")[0].split())[:300] or "unknown error"


def _import() -> Any:
    try:
        import llguidance
    except ImportError:
        raise RequestError(
            "structured output needs llguidance, which is not installed; "
            "pip install 'gptoss-native[structured]'"
        ) from None
    return llguidance
