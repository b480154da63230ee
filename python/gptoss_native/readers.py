"""From drawn tokens to what a caller reads: plain text, or a harmony conversation parsed as it comes."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from .errors import RequestError
from .harmony import FUNCTIONS, Delta, HarmonyParser, is_tool
from .outputs import ChatCompletionOutput, CompletionOutput, Logprob, StreamDelta, ToolCall
from .sampling import SamplingParams
from .stopping import StopStrings

if TYPE_CHECKING:
    from .request import Request
    from .tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
ASSISTANT = "assistant"
#: What the messages of a chat are to the user.
ANSWER, NOTE, REASONING, CALL = "answer", "note", "reasoning", "call"


class TextReader:
    """The text of a plain completion. `deltas` grows as text becomes certain."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams):
        self.deltas: deque[StreamDelta] = deque()
        self._text: list[str] = []
        self._tokenizer, self._params = tokenizer, params
        self._decoder = tokenizer.stream()
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)

    def push(self, token_id: int, *, ends: bool, may_stop: bool) -> str | None:
        """See request.Reader."""
        self._show(self._stops.push(self._piece(token_id, ends), may_stop))
        return self._stops.matched

    def finish(self) -> None:
        """Show what was held back."""
        self._show(self._stops.push(self._decoder.flush(), armed=False))

    def output(self, request: Request, index: int) -> CompletionOutput:
        """The finished request as answer number `index`."""
        return CompletionOutput(
            index,
            "".join(self._text),
            list(request.output),
            request.cumulative_logprob,
            _named(request.logprobs, self._tokenizer) if request.params.logprobs is not None else None,
            request.finish_reason,
            request.stop_reason,
            request.failure,
            request.captured,
        )

    def _piece(self, token_id: int, ends: bool) -> str:
        if ends and not self._params.include_stop_str_in_output:
            return ""
        if not ends and self._params.skip_special_tokens and token_id in self._tokenizer.special_ids:
            return ""
        try:
            return self._decoder.push(token_id)
        except RequestError:  # the model's vocabulary is larger than the tokenizer's
            return self._decoder.flush() + REPLACEMENT

    def _show(self, text: str) -> None:
        if text:
            self._text.append(text)
            self.deltas.append(StreamDelta(text))


class ChatReader:
    """A harmony answer. Stop strings are looked for in the final channel, not in reasoning or calls.

    The answer ends where the model begins to write for another role, such as the user: what follows that is
    no part of it, even where more tokens are drawn because of min_tokens or ignore_eos.

    call_id: what the ids of its tool calls begin with
    role: the one that the prompt ended with; None: the model has to write one
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, call_id: str, role: str | None = ASSISTANT
    ):
        self.deltas: deque[StreamDelta] = deque()
        # What was shown: kind -> place of the message -> its pieces.
        self._shown: dict[str, dict[int, list[str]]] = {ANSWER: {}, NOTE: {}, REASONING: {}}
        self._tokenizer, self._params, self._call_id = tokenizer, params, call_id
        self._parser = HarmonyParser(tokenizer, role)
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self._place = 0  # in the parser's messages, of the one being read
        self._end: int | None = None  # place of the first message of another role
        self._other_role = ""

    def push(self, token_id: int, *, ends: bool, may_stop: bool) -> str | None:
        """See request.Reader."""
        self._take(self._parser.push(token_id), may_stop)
        if self._stops.matched is None and self._end is not None and may_stop:
            return None if self._params.ignore_eos else ""
        return self._stops.matched

    def finish(self) -> None:
        """Show what was held back and close an unfinished message."""
        self._take(self._parser.finish(), may_stop=False)

    def output(self, request: Request, index: int) -> ChatCompletionOutput:
        """The finished request as answer number `index`."""
        messages, recoveries = self._parser.messages[: self._end], list(self._parser.recoveries)
        if self._stops.matched is not None:
            shown = self._shown[ANSWER].get(len(messages) - 1, [])
            messages[-1] = replace(messages[-1], content="".join(shown))
        if self._end is not None:
            recoveries.append(
                f"message {self._end}: the model writes as {self._other_role}, so its answer ends before"
            )
        content = self._text(ANSWER) or self._text(NOTE)
        return ChatCompletionOutput(
            index,
            content,
            list(request.output),
            request.cumulative_logprob,
            _named(request.logprobs, self._tokenizer) if request.params.logprobs is not None else None,
            request.finish_reason,
            request.stop_reason,
            request.failure,
            request.captured,
            reasoning=self._text(REASONING),
            content=content,
            tool_calls=[
                ToolCall(
                    self._id_of(place), str(message.recipient).removeprefix(FUNCTIONS), str(message.content)
                )
                for place, message in enumerate(messages)
                if is_tool(message.recipient)
            ],
            messages=messages,
            recoveries=recoveries,
        )

    def _text(self, kind: str) -> str:
        return "\n".join("".join(pieces) for pieces in self._shown[kind].values())

    def _id_of(self, place: int) -> str:
        """The id of the call that the message at `place` is; the harmony format has none."""
        return f"{self._call_id}_{place}"

    def _take(self, deltas: Iterable[Delta], may_stop: bool) -> None:
        self._find_end()
        for delta in deltas:
            self._go_to(delta.message_index)
            if self._end is not None and delta.message_index >= self._end:
                continue
            kind, text = _kind(delta), delta.text
            if kind == ANSWER:
                self._show_answer(self._stops.push(text, may_stop))
            else:
                self._show(kind, text, delta.channel, delta.recipient, delta.content_type)
        self._go_to(len(self._parser.messages))

    def _find_end(self) -> None:
        messages = self._parser.messages
        roles = [message.role for message in messages[self._place :]] + [self._parser.role or ASSISTANT]
        for place, role in enumerate(roles, self._place):
            if role != ASSISTANT and self._end is None:
                self._end, self._other_role = place, role

    def _go_to(self, place: int) -> None:
        """The message at `place` is read from here on: in another one no stop string can go on."""
        if place != self._place:
            self._show_answer(self._stops.flush())
            self._place = place

    def _show_answer(self, text: str) -> None:
        self._show(ANSWER, text, "final")

    def _show(
        self,
        kind: str,
        text: str,
        channel: str | None,
        recipient: str | None = None,
        content_type: str | None = None,
    ) -> None:
        if text and kind == CALL:
            self.deltas.append(StreamDelta(text, channel, recipient, content_type, self._id_of(self._place)))
        elif text:
            shown = self._shown[kind]
            separator = "\n" if shown and self._place not in shown else ""
            shown.setdefault(self._place, []).append(text)
            self.deltas.append(StreamDelta(separator + text, channel, content_type=content_type))


def call_id(request_id: str, prompt: Iterable[int], index: int) -> str:
    """What the ids of the calls in answer number `index` begin with.

    They repeat with the program, as everything does, and differ from those of earlier turns, also of a
    conversation that another program began.
    """
    known = hashlib.blake2b(repr((request_id, list(prompt))).encode(), digest_size=12).hexdigest()
    return f"call_{known}_{index}"


def _kind(delta: Delta) -> str:
    """What a message is to the user. One that names neither channel nor recipient can only be an answer."""
    if is_tool(delta.recipient):
        return CALL
    if delta.channel == "analysis":
        return REASONING
    return ANSWER if delta.channel in ("final", None) else NOTE


def _named(logprobs: list[dict[int, Logprob]], tokenizer: Tokenizer) -> list[dict[int, Logprob]]:
    """The same with each token's text."""

    def text(token: int) -> str:
        try:
            return tokenizer.decode([token])
        except RequestError:
            return REPLACEMENT

    return [
        {token: replace(found, decoded_token=text(token)) for token, found in place.items()}
        for place in logprobs
    ]
