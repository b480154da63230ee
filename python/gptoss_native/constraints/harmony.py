"""The states of an assistant's turn in the harmony format.

`Harmony.any_turn` only keeps special tokens in their places. `Harmony.turn` also spells out the headers: the
channels, and the tools that may be called, each in the ways the model writes them:

    <|channel|>analysis<|message|> … <|end|>
    <|channel|>commentary<|message|> … <|end|>                                      a note beside calls
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|> … <|call|>
     to=functions.NAME<|channel|>commentary <|constrain|>json<|message|> … <|call|>
    <|channel|>final<|message|> … <|return|>

Calls may also stand in analysis, and leave out the content type or its space, as the model sometimes does;
masking that would not make it write another call, but its call as a thought. Where several calls may be
made, one may end with <|end|>, and only further calls follow it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..harmony.messages import FUNCTIONS
from ..harmony.special import SpecialIds
from .states import Matcher, State, mask_of

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

_SPECIAL = re.compile(r"(<\|[a-z]+\|>)")
_TYPES = (" <|constrain|>json", "<|constrain|>json", "")


class Harmony:
    """States for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._ids = SpecialIds.of(tokenizer)
        ordinary = (token for token, _ in tokenizer.ordinary_tokens())
        #: uint32 mask of all tokens that are text.
        self.text = mask_of(ordinary, vocab_size)
        ids = self._ids
        start, header = self._only(ids.start), self._text(ids.channel, ids.constrain, ids.message)
        start.next[ids.start] = header
        body = self._text(ids.end, ids.return_, ids.call)
        header.next[ids.message] = body
        body.next = dict.fromkeys((ids.end, ids.return_, ids.call), start)
        self._any = {True: header, False: start}

    def any_turn(self, role_written: bool) -> State:
        """The first state of a turn whose special tokens stand where the format has them.

        role_written: the prompt ended with `<|start|>assistant`
        """
        return self._any[role_written]

    def turn(
        self,
        role_written: bool,
        *,
        tools: Mapping[str, Matcher | None],
        final: Matcher | None,
        must_call: bool,
        parallel: bool,
    ) -> State:
        """The first state of a turn whose headers are spelled out.

        tools: function names, and what binds their arguments; None: nothing does
        final: what binds the answer
        must_call: there is no answer but calls
        parallel: more than one may be made
        """
        ids, calls_follow = self._ids, self._only(ids_start := self._ids.start)
        message_follows, over = self._only(ids_start), self._only(ids_start)
        call_headers: dict[tuple[int, ...], State] = {}
        for name, matcher in tools.items():
            ends = {ids.call: over} | ({ids.end: calls_follow} if parallel else {})
            body = self._body(matcher, ends)
            for header in _call_headers(name):
                call_headers[self._encode(header)] = body
        headers = dict(call_headers)
        remark = self._body(None, {ids.end: message_follows})
        headers[self._encode("<|channel|>analysis<|message|>")] = remark
        if tools:
            headers[self._encode("<|channel|>commentary<|message|>")] = remark
        if not must_call:
            headers[self._encode("<|channel|>final<|message|>")] = self._body(final, {ids.return_: over})
        assistant = self._encode("assistant")
        everything = {assistant + header: body for header, body in headers.items()}
        message_follows.next[ids.start] = over.next[ids.start] = self._spell(everything)
        if call_headers:
            calls = {assistant + header: body for header, body in call_headers.items()}
            calls_follow.next[ids.start] = self._spell(calls)
        return self._spell(headers) if role_written else message_follows

    def _body(self, matcher: Matcher | None, ends: dict[int, State]) -> State:
        if matcher is not None:
            return State(mask_of(ends, self._vocab_size), ends, matcher=matcher)
        body = self._text(*ends)
        body.next = ends
        return body

    def _spell(self, sequences: Mapping[tuple[int, ...], State]) -> State:
        """Ways through tokens, each to its own state; none is the beginning of another."""
        following: dict[int, dict[tuple[int, ...], State]] = {}
        for tokens, state in sequences.items():
            following.setdefault(tokens[0], {})[tokens[1:]] = state
        steps = {token: rest[()] if () in rest else self._spell(rest) for token, rest in following.items()}
        return State(mask_of(steps, self._vocab_size), steps)

    def _encode(self, header: str) -> tuple[int, ...]:
        specials, ids = self._tokenizer.specials, []
        for piece in filter(None, _SPECIAL.split(header)):
            ids += [specials[piece]] if piece in specials else self._tokenizer.encode(piece)
        return tuple(ids)

    def _only(self, *tokens: int) -> State:
        return State(mask_of(tokens, self._vocab_size))

    def _text(self, *ends: int) -> State:
        """Any text, and `ends`."""
        return State(self._with(ends))

    def _with(self, tokens: Iterable[int]) -> np.ndarray:
        return self.text | mask_of(tokens, self._vocab_size)


def _call_headers(name: str) -> list[str]:
    recipient = f" to={FUNCTIONS}{name}"
    return [
        f"{before}<|channel|>{channel}{after}{kind}<|message|>"
        for channel in ("commentary", "analysis")
        for before, after in (("", recipient), (recipient, ""))
        for kind in _TYPES
    ]
