"""What the engine works on: an answer being generated, or a text whose logits are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from .capture import Captured, Recorder
from .constraints import Constraint
from .errors import RequestError
from .interventions import Intervention, kind_of
from .kv_cache import Unshared
from .outputs import Logprob
from .sampling import NO_TOKENS, Draw, SamplingParams, allowed_except
from .scheduler import Sequence as ScheduledSequence
from .speculation import Drafter

#: The sampler's status of a row that got its token; any other: its logits are not finite (csrc/model/ops.h).
DRAWN = 0
#: For a row that nobody looks at.
IDLE_DRAW = Draw(SamplingParams(temperature=0.0), 0, 0, NO_TOKENS, NO_TOKENS, None, 0)


class Reader(Protocol):
    """Turns a request's tokens into what its caller reads; told one token at a time."""

    def push(self, token_id: int, *, ends: bool, may_stop: bool) -> str | None:
        """Take a token; `ends`: it is a stop token. If it may, returns the stop string that the token
        completes, or "" where the answer ends for another reason, otherwise None."""

    def finish(self) -> None:
        """No more tokens will come."""


class Drawn(NamedTuple):
    """One row of what the sampler returns."""

    token: int
    logprob: float
    rank: int
    top_token: np.ndarray  # int32
    top_logprob: np.ndarray  # float32
    status: int


@dataclass(eq=False)
class Task:
    """What requests and scorings have in common."""

    finish_reason: str | None = field(default=None, init=False)  # "stop", "length", "error" or "abort"
    error: Exception | None = field(default=None, init=False)  # what went wrong with its step
    ended: bool = field(default=False, init=False)  # it has left the engine, and nothing of it will change
    sequence: ScheduledSequence = field(init=False)
    listener: Callable[[Any], None] = field(init=False)  # who is told of its steps; the engine says
    deadline = None  # time.monotonic() at which it ends, finished or not
    intervention = None  # what it does to the model on its way, see interventions.py
    recorder = None  # what it sees of that way, see capture.py

    @property
    def finished(self) -> bool:
        """Whether no more steps will come."""
        return self.finish_reason is not None

    def end(self) -> None:
        """It has left the engine; if it had not finished, it is aborted."""
        if not self.finished:
            self.finish_reason = "abort"
        self.ended = True


@dataclass(eq=False)
class Scoring(Task):
    """The logits after each token of a text; `take` is given them in order: float32 [some, vocab]."""

    tokens: Sequence[int]
    take: Callable[[np.ndarray], None]
    intervention: Intervention | None = None

    def __post_init__(self) -> None:
        self.sequence = ScheduledSequence(list(self.tokens), reported=0, kind=kind_of(self.intervention))

    @property
    def cached_tokens(self) -> int:
        """Tokens that need a place in the key/value cache."""
        return len(self.tokens)

    def take_logits(self, logits: np.ndarray) -> None:
        """The rows that the last step has added."""
        self.take(logits)
        if self.sequence.reported == len(self.tokens):
            self.finish_reason = "stop"


@dataclass(eq=False)
class Request(Task):
    """One answer being generated."""

    prompt: Sequence[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    stop_ids: frozenset[int]  # tokens that end the answer
    reader: Reader
    eos_ids: frozenset[int] = frozenset()  # those of them that are the model's own end, not a stop reason
    output: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)  # per output token, when asked for
    cumulative_logprob: float | None = None  # likewise
    constraint: Constraint | None = None  # what may come next
    intervention: Intervention | None = None
    recorder: Recorder | None = None
    priority: int = 0  # lower goes first
    deadline: float | None = None  # time.monotonic() at which it ends, finished or not
    stop_reason: int | str | None = None  # the stop token or string, None for the model's own end
    drafter: Drafter | None = None  # where guesses at its coming tokens come from
    failure: str | None = None  # what went wrong with this answer alone, when the finish reason is "error"
    _masks: list[np.ndarray] = field(default_factory=list)  # of the constraint, along the planned draft
    _min_tokens_mask: np.ndarray | None = None
    _seen: _Tokens | None = None  # prompt and output, as penalties read them

    def __post_init__(self) -> None:
        self.sequence = ScheduledSequence(
            list(self.prompt), limit=self.cached_tokens, priority=self.priority, kind=self._kind
        )
        # Only the repetition penalty looks at the prompt.
        self._seen_prompt = len(self.prompt) if self.params.repetition_penalty != 1.0 else 0
        if self.params.uses_penalties:
            self._seen = _Tokens(self.prompt[: self._seen_prompt])

    @property
    def penalised(self) -> int:
        """How many tokens' logits penalties change."""
        return len(self._seen.different) if self._seen is not None else 0

    @property
    def _kind(self) -> Any:
        """Texts of one kind may share pages; one that looks inside runs every token itself."""
        return Unshared() if self.recorder is not None else kind_of(self.intervention)

    @property
    def cached_tokens(self) -> int:
        """Tokens that need a place in the key/value cache; the last is drawn but never run."""
        return len(self.prompt) + self.max_tokens - 1

    def plan_draft(self, tokens: Sequence[int]) -> None:
        """Have `tokens` checked as guesses at what comes next, as far as they could be drawn.

        A guess at the answer's last token is of no use, since the row before it draws that token anyway.
        """
        end = next((place for place, token in enumerate(tokens) if token in self.stop_ids), len(tokens))
        tokens = tokens[:end]
        if self.constraint is not None and tokens:
            self._masks = self.constraint.masks_along(tokens)
            tokens = tokens[: max(len(self._masks) - 1, 0)]
        self.sequence.draft = tuple(tokens)

    def draws(self, vocab_size: int, draft: Sequence[int] = ()) -> list[Draw]:
        """What the sampler has to know about the next token and about those after each token of a draft.

        draft: a beginning of what plan_draft was given, as though it had been drawn already
        """
        masks = [None]
        if self.constraint is not None:
            masks = self._masks if draft else [self.constraint.mask()]
        elif draft:
            masks = masks * (len(draft) + 1)
        seen, known = NO_TOKENS, 0
        if self._seen is not None:
            seen = self._seen.array()
            known = len(seen)
            seen = np.concatenate([seen, np.array(draft, np.int32)]) if draft else seen
        return [
            Draw(
                self.params,
                self.seed,
                len(self.output) + ahead,
                seen[: self._seen_prompt],
                seen[self._seen_prompt : known + ahead],
                self._longer(len(self.output) + ahead, masks[ahead], vocab_size),
                self.params.logprob_count(vocab_size) or 0,
            )
            for ahead in range(len(draft) + 1)
        ]

    def _longer(self, drawn: int, allowed: np.ndarray | None, vocab_size: int) -> np.ndarray | None:
        """The mask after `drawn` tokens: stop tokens are out before min_tokens."""
        if drawn >= self.params.min_tokens or not self.stop_ids:
            return allowed
        if self._min_tokens_mask is None:
            self._min_tokens_mask = allowed_except(self.stop_ids, vocab_size)
            if not self._min_tokens_mask.any():
                raise RequestError(
                    f"the {len(self.stop_ids)} stop tokens are the whole vocabulary, so none of "
                    f"{vocab_size} tokens could be drawn before min_tokens; lower it or stop at fewer"
                )
        longer = self._min_tokens_mask if allowed is None else allowed & self._min_tokens_mask
        # Where the format allows nothing but an end, the answer is shorter than min_tokens.
        return longer if longer.any() else allowed

    def take_draws(self, drawn: Sequence[Drawn], draft: Sequence[int]) -> int:
        """Take what was drawn after the known tokens and after each guess, as long as the guesses are right.

        Returns how many were; the token drawn where the first one is wrong is right itself, since it was
        drawn after right ones only.
        """
        for right, found in enumerate(drawn):
            self.take_draw(found)
            if self.finished or right == len(draft) or draft[right] != self.output[-1]:
                break
        return right

    def take_draw(self, drawn: Drawn) -> None:
        """Append the token that was drawn, or end the answer where its logits do not allow one."""
        if drawn.status != DRAWN:
            self.fail(
                f"the logits after {len(self.prompt)} prompt and {len(self.output)} answer tokens "
                "hold NaN or infinity, expected finite numbers; check the weights and any edits of them"
            )
            return
        token = int(drawn.token)
        if self.params.logprobs is not None:
            self.cumulative_logprob = (self.cumulative_logprob or 0.0) + float(drawn.logprob)
            count = len(drawn.top_token) if self.params.logprobs == -1 else self.params.logprobs
            top = zip(drawn.top_token[:count].tolist(), drawn.top_logprob[:count].tolist(), strict=True)
            found = {top_id: Logprob(value, place + 1) for place, (top_id, value) in enumerate(top)}
            found.setdefault(token, Logprob(float(drawn.logprob), int(drawn.rank)))
            self.logprobs.append(found)
        self.accept(token)

    def accept(self, token: int) -> None:
        """Append a drawn token and decide whether it was the last."""
        self.output.append(token)
        self.sequence.tokens.append(token)
        if self._seen is not None:
            self._seen.append(token)
        if self.constraint is not None:
            self.constraint.take(token)
        ends = token in self.stop_ids
        stop = self.reader.push(token, ends=ends, may_stop=len(self.output) > self.params.min_tokens)
        if ends:
            self.finish_reason = "stop"
            self.stop_reason = None if token in self.eos_ids else token
        elif stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop or None
        elif self.constraint is not None and self.constraint.done:
            self.finish_reason = "stop"
        elif len(self.output) >= self.max_tokens:
            self.finish_reason = "length"

    @property
    def captured(self) -> Captured | None:
        """What it has seen of the model's inside, where it asked for that."""
        return self.recorder.captured() if self.recorder is not None else None

    def fail(self, message: str) -> None:
        """End the answer where it is; what has been drawn stays."""
        self.finish_reason, self.failure = "error", message

    def end(self) -> None:
        """See Task."""
        self.reader.finish()
        super().end()


class _Tokens:
    """Tokens that grow at the end without all being copied for each new one. different: those among them"""

    def __init__(self, tokens: Sequence[int]):
        self._array, self._length = np.array(tokens, np.int32), len(tokens)
        self.different = set(tokens)

    def append(self, token: int) -> None:
        if self._length == len(self._array):
            self._array = np.concatenate([self._array, np.empty(max(self._length, 64), np.int32)])
        self._array[self._length] = token
        self._length += 1
        self.different.add(token)

    def array(self) -> np.ndarray:
        """int32 [tokens]; a view."""
        return self._array[: self._length]
