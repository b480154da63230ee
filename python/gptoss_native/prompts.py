"""From what a caller may pass to lists: of prompts as token ids, conversations and sampling settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import RequestError
from .harmony import Message
from .sampling import SamplingParams
from .strict_json import show

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

TextOrIds = str | Sequence[int] | np.ndarray
#: What a caller may pass; the dicts are vLLM's, around a text or ids.
Prompt = TextOrIds | Mapping[str, Any]
Conversation = Sequence[Mapping[str, Any] | Message]
_TEXT_KEYS = ("role", "name", "tool_call_id")


def as_prompts(prompts: Any) -> list[TextOrIds]:
    """A list of prompts, from one prompt or several, each a text, token ids or a dict that holds one."""
    one = _text_or_ids(prompts)
    if one is not None:
        return [one]
    found = [_text_or_ids(prompt) for prompt in prompts] if isinstance(prompts, (list, tuple)) else [None]
    if any(prompt is None for prompt in found):
        raise RequestError(
            "prompts must be text, a list of texts, token ids or lists of token ids, found "
            f"{_kind(prompts)}; for messages use chat()"
        )
    return found


def one_prompt(prompt: Any) -> TextOrIds:
    """`as_prompts`, of one."""
    prompts = as_prompts(prompt)
    if len(prompts) != 1:
        raise RequestError(f"this takes one prompt, found {len(prompts)}; use generate or score for several")
    return prompts[0]


def as_conversations(messages: Any) -> list[Conversation]:
    """A list of conversations, from one or several."""
    if is_conversation(messages):
        return [messages]
    if isinstance(messages, (list, tuple)) and all(map(is_conversation, messages)):
        return list(messages)
    raise RequestError(
        f"messages must be a list of messages or a list of such lists, found {_kind(messages)}; a message is "
        "{'role': 'user', 'content': 'text'}"
    )


def is_conversation(value: Any) -> bool:
    """Whether `value` is one conversation: a list of at least one message."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(message, (Mapping, Message)) for message in value)
    )


def check_messages(conversation: Conversation) -> None:
    """Raise RequestError where a message dict holds what JSON could not, or a name that is no text."""
    for n, message in enumerate(conversation):
        for key, value in message.items() if isinstance(message, Mapping) else ():
            if value is None or isinstance(value, str):
                continue
            if key in _TEXT_KEYS or not isinstance(value, (bool, int, float, list, tuple, Mapping)):
                wanted = "text" if key in _TEXT_KEYS else "text, a list or a dict"
                raise RequestError(
                    f"messages[{n}][{show(key)}] is {show(value)}, expected {wanted}; pass what JSON can hold"
                )


def token_ids(prompt: TextOrIds, tokenizer: Callable[[], Tokenizer], vocab_size: int) -> list[int]:
    """The prompt's tokens. Raises RequestError for none, or for an id that the model does not have."""
    ids = tokenizer().encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
    if not ids:
        raise RequestError("the prompt is empty, expected at least one token; give it some text")
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"token {place} of the prompt is {show(token)}, the model's vocabulary is 0 to "
                f"{vocab_size - 1}; use the tokenizer of this checkpoint"
            )
    return ids


def pair_params(params: Any, count: int, default: SamplingParams) -> list[SamplingParams]:
    """One SamplingParams for each of `count` prompts, from None, one or a list."""
    if params is None:
        return [default] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    if isinstance(params, (list, tuple)) and all(isinstance(item, SamplingParams) for item in params):
        if len(params) != count:
            raise RequestError(f"{len(params)} SamplingParams for {count} prompts; pass one, or one for each")
        return list(params)
    raise RequestError(f"sampling_params must be SamplingParams or a list of them, found {_kind(params)}")


def _text_or_ids(value: Any) -> TextOrIds | None:
    """The text or token ids that `value` is, or holds in vLLM's way; None for anything else."""
    if isinstance(value, Mapping) and value.keys() <= {"prompt", "prompt_token_ids"}:
        text, ids = value.get("prompt"), value.get("prompt_token_ids")
        if ids is None:
            return text if isinstance(text, str) else None
        return ids if _is_ids(ids) else None  # a text beside them is there for people to read
    return value if isinstance(value, str) or _is_ids(value) else None


def _is_ids(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu"
    # An empty list is no prompt: it is taken as a list of no prompts.
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in value)
    )


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return f"{kind} of {type(value[0]).__name__}" if isinstance(value, (list, tuple)) and value else kind
