"""What generation returns, with vLLM's names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .capture import Captured
from .harmony import Message, assistant_message


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability under the model, before any sampling setting; rank 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass(frozen=True)
class ToolCall:
    """A tool the model wants called.

    id: differs from all others of its conversation, also between the n answers; the same in every run
    name: the function's, without the "functions." namespace, or that of a built-in tool: "browser.open"
    arguments: as the model wrote them: JSON, maybe invalid; for python, the code
    """

    id: str
    name: str
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """The form of OpenAI's chat completions."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True)
class StreamDelta:
    """The next piece of a streamed answer.

    channel: "analysis", "commentary" or "final" in a chat; None in a plain completion
    recipient: the tool that a message calls, such as "functions.calculator"; None for what is no call
    tool_call_id: the call's, as in the ToolCall that it becomes
    output: the whole answer; set on the last delta only
    prompt_tokens, cached_tokens: the prompt's, and those found in the cache; on AsyncLLM's last delta
    """

    text: str = ""
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    tool_call_id: str | None = None
    output: CompletionOutput | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass
class CompletionOutput:
    """One answer.

    token_ids: every token drawn, the one that ended it included
    cumulative_logprob: sum over the drawn tokens; None unless `logprobs` are asked for, as in vLLM: the
        sampler then need not sum the vocabulary's weights
    logprobs: per token, token id -> Logprob of the most likely ones and of itself; None unless asked for
    finish_reason: "stop", "length" (max_tokens or the end of the context), "error" or "abort"
    stop_reason: the stop string or stop token that ended it, None for the model's own end
    error: what went wrong when the finish reason is "error"; the text is what came before
    captured: what SamplingParams.capture has asked for
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    error: str | None = None
    captured: Captured | None = None


@dataclass
class ChatCompletionOutput(CompletionOutput):
    """One answer in a conversation, parsed; `text` is the same as `content`.

    reasoning: the analysis channel, without what was sent to a tool
    content: the final channel; when there is none, what commentary says to the user, such as why a tool is
        called. Several messages are separated by a newline
    tool_calls: one for each message to a tool
    messages: harmony messages as the model wrote them, up to the stop string, if one ended the answer
    recoveries: what had to be mended, one sentence each; empty for well-formed output
    """

    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    recoveries: list[str] = field(default_factory=list)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message to append to the conversation; see harmony.assistant_message."""
        return assistant_message(
            self.messages, self.content, self.reasoning, [call.to_dict() for call in self.tool_calls]
        )


@dataclass
class RequestOutput:
    """All answers to one prompt; `outputs` has SamplingParams.n of them."""

    request_id: str
    prompt: str | None  # None when token ids were given
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.outputs[0].text


@dataclass
class ChatOutput(RequestOutput):
    """All answers to one conversation; the properties are the first answer's."""

    outputs: list[ChatCompletionOutput]

    @property
    def content(self) -> str:
        """What the first answer says to the user."""
        return self.outputs[0].content

    @property
    def reasoning(self) -> str:
        """The first answer's analysis channel."""
        return self.outputs[0].reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tools that the first answer calls."""
        return self.outputs[0].tool_calls

    @property
    def message(self) -> dict[str, Any]:
        """The first answer as a message to append to the conversation."""
        return self.outputs[0].message


@dataclass
class ScoreOutput:
    """How likely the model finds a text.

    logprobs: float32-valued, one per token from the second on: log p(token i | tokens before i)
    """

    prompt_token_ids: list[int]
    logprobs: list[float]

    @property
    def total(self) -> float:
        """Log-probability of the whole text after its first token."""
        return sum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; 1 for a text of one token, infinity beyond 1e308."""
        try:
            return math.exp(-self.total / max(len(self.logprobs), 1))
        except OverflowError:
            return math.inf
