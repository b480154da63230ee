"""From drawn tokens to what a caller reads: plain text, or a harmony conversation parsed as it comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from .errors import RequestError
from .harmony import Delta, HarmonyParser
from .outputs import ChatCompletionOutput, CompletionOutput, Logprob, StreamDelta, ToolCall
from .sampling import SamplingParams
from .stopping import StopStrings

if TYPE_CHECKING:
    from .request import Request
    from .tokenizer import Tokenizer

FUNCTIONS = "functions."
REPLACEMENT = "\ufffd"


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
    """A harmony answer. Stop strings are looked for in the final channel, not in reasoning or calls."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, request_id: str):
        self.deltas: deque[StreamDelta] = deque()
        self._content: list[str] = []
        self._tokenizer, self._request_id = tokenizer, request_id
        self._parser = HarmonyParser(tokenizer)
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)

    def push(self, token_id: int, *, ends: bool, may_stop: bool) -> str | None:
        """See request.Reader."""
        self._take(self._parser.push(token_id), may_stop)
        return self._stops.matched

    def finish(self) -> None:
        """Show what was held back and close an unfinished message."""
        self._take(self._parser.finish(), may_stop=False)
        self._show(self._stops.flush())

    def output(self, request: Request, index: int) -> ChatCompletionOutput:
        """The finished request as answer number `index`."""
        content, messages = "".join(self._content), self._parser.messages
        calls = [message for message in messages if (message.recipient or "").startswith(FUNCTIONS)]
        return ChatCompletionOutput(
            index,
            content,
            list(request.output),
            request.cumulative_logprob,
            _named(request.logprobs, self._tokenizer) if request.params.logprobs is not None else None,
            request.finish_reason,
            request.stop_reason,
            request.failure,
            reasoning="\n".join(
                str(message.content) for message in messages if message.channel == "analysis"
            ),
            content=content,
            tool_calls=[
                # The harmony format has no ids; these tell calls of one conversation apart.
                ToolCall(
                    f"call_{self._request_id}_{number}",
                    str(call.recipient)[len(FUNCTIONS) :],
                    str(call.content),
                )
                for number, call in enumerate(calls)
            ],
            messages=list(messages),
            recoveries=list(self._parser.recoveries),
        )

    def _take(self, deltas: Iterable[Delta], may_stop: bool) -> None:
        for delta in deltas:
            # A message that names neither channel nor recipient can only be meant for the user.
            if delta.channel in ("final", None) and delta.recipient is None:
                self._show(self._stops.push(delta.text, may_stop))
            else:
                self.deltas.append(
                    StreamDelta(delta.text, delta.channel, delta.recipient, delta.content_type)
                )

    def _show(self, text: str) -> None:
        if text:
            self._content.append(text)
            self.deltas.append(StreamDelta(text, "final"))


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
