"""How the next token is chosen: SamplingParams for people, rows of plain numbers for the native sampler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .capture import Capture, checked_capture
from .constraints.params import StructuredOutputsParams
from .errors import RequestError
from .interventions import ExpertControl, SteeringVector, intervention_of
from .strict_json import show

_UINT64 = 1 << 64
_FEW = 1000  # likeliest tokens

# name -> (lowest, highest, whether the lowest itself is allowed). All limits are finite, and far inside what
# float32 holds: a logit divided by the smallest or multiplied by the largest stays a number.
_NUMBERS: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 1e6, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
    "repetition_penalty": (1e-3, 1e3, True),
}
# The range of OpenAI's API: its ends forbid a token, or force it.
_BIAS = (-100.0, 100.0, True)
_INTEGERS: dict[str, tuple[int, int]] = {
    "n": (1, 1024),
    "top_k": (-1, (1 << 31) - 1),
    "min_tokens": (0, 1 << 31),
    "max_tokens": (1, 1 << 31),
    "seed": (0, _UINT64 - 1),
    "logprobs": (-1, 1 << 20),
}
_MAY_BE_NONE = ("seed", "max_tokens", "logprobs")


class LogitBias(Mapping[int, float]):
    """What is added to the logits of some tokens: a mapping that cannot change, so that it stays checked.

    tokens: int32 [n]; numbers: float32 [n]; both as the native sampler reads them
    """

    def __init__(self, bias: Mapping[int, float]):
        self._bias = dict(bias)
        self.tokens = np.array(list(self._bias), np.int32)
        self.numbers = np.array(list(self._bias.values()), np.float32)

    def __getitem__(self, token: int) -> float:
        return self._bias[token]

    def __iter__(self) -> Iterator[int]:
        return iter(self._bias)

    def __len__(self) -> int:
        return len(self._bias)

    def __hash__(self) -> int:
        return hash(frozenset(self._bias.items()))

    def __repr__(self) -> str:
        return repr(self._bias)


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
    logprobs: int | None = None  # report the token's log-probability and that many most likely; -1: all
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] | None = None  # token id -> number from -100 to 100 added to its logit
    structured_outputs: StructuredOutputsParams | None = None  # binds the text; of a chat, the final channel
    steering: SteeringVector | Sequence[SteeringVector] | None = None  # added to the residual stream
    experts: ExpertControl | Sequence[ExpertControl] | None = None  # which experts its tokens go to
    adapter: str | None = None  # name of a loaded LoRA adapter, see LLM.adapters
    capture: Capture | None = None  # what to keep of its way through the model

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
                    f"{name} must be True or False, found {show(getattr(self, name))}; pass a bool"
                )
        wanted = self.structured_outputs
        if not isinstance(wanted, (StructuredOutputsParams, type(None))):
            raise RequestError(
                f"structured_outputs must be StructuredOutputsParams, found {show(wanted)}; pass "
                "StructuredOutputsParams(json=…), or regex, choice or grammar"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}; lower min_tokens"
            )
        _set(self, "steering", intervention_of(self.steering, None).steering)
        _set(self, "experts", intervention_of(None, self.experts).experts)
        if not isinstance(self.adapter, (str, type(None))):
            raise RequestError(
                f"adapter must be the name of a loaded adapter, found {show(self.adapter)}; see LLM.adapters"
            )
        checked_capture(self.capture)
        _set(self, "stop", _checked_stops(self.stop))
        _set(self, "stop_token_ids", _checked_ids("stop_token_ids", self.stop_token_ids))
        _set(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def uses_penalties(self) -> bool:
        """Whether the sampler has to see earlier tokens."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def needs_all_logits(self) -> bool:
        """Whether a draw depends on more than the largest logits."""
        many = self.temperature != 0 and (self.top_p < 1 if self.top_k <= 0 else self.top_k > _FEW)
        return many or self.logprobs is not None

    def check_vocabulary(self, vocab_size: int, max_logprobs: int) -> None:
        """Raise RequestError for a token id outside the vocabulary, or more logprobs than `max_logprobs`.

        max_logprobs: -1 for any number
        """
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
        if max_logprobs >= 0 and (self.logprob_count(vocab_size) or 0) > max_logprobs:
            raise RequestError(
                f"logprobs must be at most max_logprobs, found {self.logprobs} and {max_logprobs}; lower it, "
                "or make the LLM with a larger max_logprobs"
            )

    def logprob_count(self, vocab_size: int) -> int | None:
        """How many most likely tokens to report; None: report nothing."""
        return vocab_size if self.logprobs == -1 else self.logprobs


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
    position: int  # how many tokens were drawn before
    prompt: np.ndarray  # int32: what the repetition penalty has to know; may be empty otherwise
    output: np.ndarray  # int32: likewise, for any penalty
    allowed: np.ndarray | None  # uint32 [ceil(vocab / 32)], see allowed_except
    logprobs: int  # how many most likely tokens to report


class SampleArrays(NamedTuple):
    """What the native sampler reads: one row per draw and ragged lists that the rows point into."""

    rows: np.ndarray  # structured, dtype of the native module, [draws]
    bias_token: np.ndarray  # int32
    bias_value: np.ndarray  # float32
    history: np.ndarray  # int32
    allowed: np.ndarray | None  # uint32 [mask rows, ceil(vocab / 32)]
    logprobs: int


NO_TOKENS, _NO_NUMBERS = np.empty(0, np.int32), np.empty(0, np.float32)
NO_TOKENS.flags.writeable = _NO_NUMBERS.flags.writeable = False  # everybody shares them


class _Ragged:
    """Arrays end to end, and where each begins and ends."""

    def __init__(self, nothing: np.ndarray):
        self.parts, self.length, self.nothing = [], 0, nothing

    def add(self, part: np.ndarray) -> tuple[int, int]:
        start, self.length = self.length, self.length + len(part)
        if self.length > start:
            self.parts.append(part)
        return start, self.length

    def array(self) -> np.ndarray:
        return np.concatenate(self.parts) if self.parts else self.nothing


class SampleRow(NamedTuple):
    """One row of `SampleArrays`: the native SampleRow's fields in their order (csrc/model/ops.h)."""

    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    top_k: int
    seed: int
    position: int
    bias_start: int
    bias_end: int
    prompt_start: int
    prompt_end: int
    output_start: int
    output_end: int
    mask_row: int
    skip_report: bool


def sample_arrays(draws: Sequence[Draw], dtype: np.dtype) -> SampleArrays:
    """Pack draws for `Backend.sample`. A draw depends on nothing but its own row's seed and position.

    dtype: of the native SampleRow. This runs between two steps, whose weights have driven all else out of the
    caches: a tuple for each row, turned into an array by one call, touches least.
    """
    rows: list[SampleRow] = []
    biases, values, history = _Ragged(NO_TOKENS), _Ragged(_NO_NUMBERS), _Ragged(NO_TOKENS)
    masks: dict[int, tuple[int, np.ndarray]] = {}  # by identity: many requests share the constant ones
    for params, seed, position, prompt, output, allowed, _ in draws:
        bias_start, bias_end = biases.add(params.logit_bias.tokens)
        values.add(params.logit_bias.numbers)
        prompt_start, prompt_end = history.add(prompt)
        output_start, output_end = history.add(output)
        rows.append(
            SampleRow(
                temperature=params.temperature,
                top_p=params.top_p,
                min_p=params.min_p,
                repetition_penalty=params.repetition_penalty,
                presence_penalty=params.presence_penalty,
                frequency_penalty=params.frequency_penalty,
                top_k=max(params.top_k, 0),
                seed=seed,
                position=position,
                bias_start=bias_start,
                bias_end=bias_end,
                prompt_start=prompt_start,
                prompt_end=prompt_end,
                output_start=output_start,
                output_end=output_end,
                mask_row=-1 if allowed is None else masks.setdefault(id(allowed), (len(masks), allowed))[0],
                skip_report=params.logprobs is None,
            )
        )
    return SampleArrays(
        np.array(rows, dtype),
        biases.array(),
        values.array(),
        history.array(),
        np.stack([mask for _, mask in masks.values()]) if masks else None,
        max((draw.logprobs for draw in draws), default=0),
    )


def allowed_except(forbidden: Sequence[int], vocab_size: int) -> np.ndarray:
    """Bit mask uint32 [ceil(vocab / 32)] of all but `forbidden`; token t is bit t % 32 of word t // 32."""
    mask = np.full(-(-vocab_size // 32), 0xFFFFFFFF, np.uint32)
    for token in forbidden:
        mask[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
    if vocab_size % 32:
        mask[-1] &= np.uint32((1 << vocab_size % 32) - 1)
    return mask


def _set(params: SamplingParams, name: str, value: Any) -> None:
    object.__setattr__(params, name, value)  # the dataclass is frozen; this runs only while it is built


def _checked_number(name: str, value: Any, low: float, high: float, low_allowed: bool) -> float:
    """The value, when it is in range both as given and as the float32 that the sampler gets."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if isinstance(value, np.number):
        value = value.item()  # NumPy would compare in the number's own type, which the limits may not fit
    # A whole number beyond the range may be too large to become a float at all, so it is compared first.
    number = float(value) if is_number and low <= value <= high else None
    if number is None or (not low_allowed and np.float32(number) <= low):
        least = "at least" if low_allowed else "above"
        raise RequestError(
            f"{name} must be a number {least} {low:g} and at most {high:g}, found {show(value)}; choose one "
            "in that range" + (" that a 32-bit float can tell from it" if number else "")
        )
    return number


def _checked_integer(name: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(
            f"{name} must be a whole number from {low} to {high}, found {show(value)}; choose one of those"
        )
    return int(value)


def _checked_stops(stop: Any) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, (list, tuple)) or not all(isinstance(item, str) and item for item in stops):
        raise RequestError(
            f"stop must be a string or a list of strings, none of them empty, found {show(stop)}; correct it"
        )
    return tuple(stops)


def _checked_ids(name: str, ids: Any) -> tuple[int, ...]:
    if ids is None:
        return ()
    is_list = isinstance(ids, (Sequence, Set)) and not isinstance(ids, (str, bytes))
    if not is_list and not (isinstance(ids, np.ndarray) and ids.ndim == 1):  # an iterator may never end
        raise RequestError(
            f"{name} must be a list of token ids, found {show(ids)}; pass a list of whole numbers"
        )
    return tuple(_checked_integer(f"each of {name}", token, 0, (1 << 31) - 1) for token in ids)


def _checked_bias(bias: Any) -> LogitBias:
    if bias is None:
        return LogitBias({})
    if not isinstance(bias, Mapping):
        raise RequestError(
            f"logit_bias must map token ids to numbers, found {show(bias)}; pass a dict such as {{42: -5.0}}"
        )
    tokens = _checked_ids("logit_bias", list(bias))
    return LogitBias(
        {
            token: _checked_number(f"logit_bias[{token}]", value, *_BIAS)
            for token, value in zip(tokens, bias.values(), strict=True)
        }
    )
