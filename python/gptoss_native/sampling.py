"""How the next token is chosen: SamplingParams for people, rows of plain numbers for the native sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .errors import RequestError

_UINT64 = 1 << 64

# name -> (lowest, highest, whether the lowest itself is allowed)
_NUMBERS: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, math.inf, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
    "repetition_penalty": (0.0, math.inf, False),
}
_INTEGERS: dict[str, tuple[int, int]] = {
    "n": (1, 1024),
    "top_k": (-1, (1 << 31) - 1),
    "min_tokens": (0, 1 << 31),
    "max_tokens": (1, 1 << 31),
    "seed": (0, _UINT64 - 1),
    "logprobs": (0, 1 << 20),
}
_MAY_BE_NONE = ("seed", "max_tokens", "logprobs")


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request, with vLLM's names. Raises RequestError, naming the setting, on a bad value.

    One default differs from vLLM's: `max_tokens` is None, which means until the model stops or the context is
    full; vLLM cuts after 16 tokens, in the middle of most chains of thought.
    """

    n: int = 1  # independent answers to the same prompt; answer i draws with its own seed derived from `seed`
    presence_penalty: float = 0.0  # subtracted once from the logit of every generated token
    frequency_penalty: float = 0.0  # subtracted per occurrence
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of tokens seen so far
    temperature: float = 1.0  # 0 takes the most likely token
    top_p: float = 1.0  # smallest set of tokens with at least this probability
    top_k: int = 0  # 0 or -1: all
    min_p: float = 0.0  # drop tokens less likely than this share of the most likely one
    seed: int | None = None  # None: the next one of the LLM's own stream of seeds
    stop: str | Sequence[str] | None = None  # strings that end the answer, also across token boundaries
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False  # go on after the model's end-of-sequence tokens
    max_tokens: int | None = None
    min_tokens: int = 0  # before that many tokens nothing can end the answer
    logprobs: int | None = None  # report the token's log-probability and that many most likely ones
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] | None = None  # token id -> number added to its logit

    def __post_init__(self) -> None:
        for name, bounds in _NUMBERS.items():
            _set(self, name, _checked_number(name, getattr(self, name), *bounds))
        for name, (low, high) in _INTEGERS.items():
            value = getattr(self, name)
            if not (value is None and name in _MAY_BE_NONE):
                _set(self, name, _checked_integer(name, value, low, high))
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise RequestError(
                    f"{name} must be True or False, found {getattr(self, name)!r}; pass a bool"
                )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}; lower min_tokens"
            )
        _set(self, "stop", _checked_stops(self.stop))
        _set(self, "stop_token_ids", _checked_ids("stop_token_ids", self.stop_token_ids))
        _set(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def uses_penalties(self) -> bool:
        """Whether the sampler has to see earlier tokens."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise RequestError for a token id outside the model's vocabulary or more logprobs than tokens."""
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            for token in ids:
                if token >= vocab_size:
                    raise RequestError(
                        f"{name} holds token id {token}, the vocabulary ends at {vocab_size - 1}; remove it"
                    )
        if self.logprobs is not None and self.logprobs > vocab_size:
            raise RequestError(
                f"logprobs must not exceed the vocabulary, found {self.logprobs} and {vocab_size}; lower it"
            )


def derive_seed(seed: int, index: int) -> int:
    """Seed number `index` of the stream that starts at `seed`; index 0 is `seed` itself.

    The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), so that neighbouring streams share nothing.
    """
    if index == 0:
        return seed % _UINT64
    z = (seed + index * 0x9E3779B97F4A7C15) % _UINT64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _UINT64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _UINT64
    return z ^ (z >> 31)


class Draw(NamedTuple):
    """One token to be drawn: whose settings, after which tokens."""

    params: SamplingParams
    seed: int
    prompt: Sequence[int]
    output: Sequence[int]
    allowed: np.ndarray | None  # uint32 [ceil(vocab / 32)], see allowed_except


class SampleArrays(NamedTuple):
    """What the native sampler reads: one row per draw and ragged lists that the rows point into."""

    rows: np.ndarray  # structured, dtype of the native module, [draws]
    bias_token: np.ndarray  # int32
    bias_value: np.ndarray  # float32
    history: np.ndarray  # int32
    allowed: np.ndarray | None  # uint32 [mask rows, ceil(vocab / 32)]
    logprobs: int


def sample_arrays(draws: Sequence[Draw], dtype: np.dtype) -> SampleArrays:
    """Pack draws for `Backend.sample`. A draw depends on nothing but its own row's seed and position."""
    rows = np.zeros(len(draws), dtype)
    biases: list[tuple[int, float]] = []
    history: list[int] = []
    masks: list[np.ndarray] = []
    for row, draw in zip(rows, draws, strict=True):
        params = draw.params
        for name in _NUMBERS:
            row[name] = getattr(params, name)
        row["top_k"] = max(params.top_k, 0)
        row["seed"], row["position"] = draw.seed, len(draw.output)
        row["bias_start"] = len(biases)
        biases += params.logit_bias.items()
        row["bias_end"] = len(biases)
        for part, tokens in (("prompt", draw.prompt), ("output", draw.output)):
            row[f"{part}_start"] = len(history)
            if params.uses_penalties:
                history += tokens
            row[f"{part}_end"] = len(history)
        row["mask_row"] = -1
        if draw.allowed is not None:
            row["mask_row"] = len(masks)
            masks.append(draw.allowed)
    return SampleArrays(
        rows,
        np.array([token for token, _ in biases], np.int32),
        np.array([value for _, value in biases], np.float32),
        np.array(history, np.int32),
        np.stack(masks) if masks else None,
        max((draw.params.logprobs or 0 for draw in draws), default=0),
    )


def allowed_except(forbidden: Sequence[int], vocab_size: int) -> np.ndarray:
    """Bit mask uint32 [ceil(vocab / 32)] of all but `forbidden`; token t is bit t % 32 of word t // 32."""
    mask = np.full(-(-vocab_size // 32), 0xFFFFFFFF, np.uint32)
    for token in forbidden:
        mask[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
    return mask


def _set(params: SamplingParams, name: str, value: Any) -> None:
    object.__setattr__(params, name, value)  # the dataclass is frozen; this runs only while it is built


def _checked_number(name: str, value: Any, low: float, high: float, low_allowed: bool) -> float:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    fits = is_number and low <= value <= high and math.isfinite(value) and (low_allowed or value > low)
    if not fits:
        least = "at least" if low_allowed else "above"
        most = "" if high == math.inf else f" and at most {high:g}"
        raise RequestError(
            f"{name} must be a number {least} {low:g}{most}, found {value!r}; choose one in that range"
        )
    return float(value)


def _checked_integer(name: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(
            f"{name} must be a whole number from {low} to {high}, found {value!r}; choose one in that range"
        )
    return int(value)


def _checked_stops(stop: Any) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, (list, tuple)) or not all(isinstance(item, str) and item for item in stops):
        raise RequestError(
            f"stop must be a string or a list of strings, none of them empty, found {stop!r}; correct it"
        )
    return tuple(stops)


def _checked_ids(name: str, ids: Any) -> tuple[int, ...]:
    if ids is None:
        return ()
    if isinstance(ids, (str, bytes, Mapping)) or not hasattr(ids, "__iter__"):
        raise RequestError(f"{name} must be a list of token ids, found {ids!r}; pass a list of whole numbers")
    return tuple(_checked_integer(f"each of {name}", token, 0, (1 << 31) - 1) for token in ids)


def _checked_bias(bias: Any) -> dict[int, float]:
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        raise RequestError(
            f"logit_bias must map token ids to numbers, found {bias!r}; pass a dict such as {{42: -5.0}}"
        )
    tokens = _checked_ids("logit_bias", list(bias))
    return {
        token: _checked_number(f"logit_bias[{token}]", value, -math.inf, math.inf, True)
        for token, value in zip(tokens, bias.values(), strict=True)
    }
