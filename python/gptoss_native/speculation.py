"""Drafts without a model: guesses at coming tokens from the text itself, checked together in one step.

An answer often repeats what is in its prompt or in itself. Where its last tokens have stood before, those
that followed there are a guess at those to come (prompt_lookup.py). A step that runs some of them beside the
last known token draws a token after each, exactly as steps of one token would; those after right guesses
stand.

Whether that pays is learned, not configured. Every token drawn says whether the guess at it was right, also
where none was run; so the rate at which guesses are right is known, by how far back both places agree, before
a single row has been spent. Every step says how long so many rows take on this machine. A request runs as
many guesses as make the most tokens a second by both; where nothing repeats that is none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import RequestError
from .prompt_lookup import Match, PromptLookup
from .strict_json import show

if TYPE_CHECKING:
    from .request import Request

METHOD = "ngram"
#: Guesses of one step, of all its sequences: beyond that a row costs as much in a step as by itself.
MAX_DRAFTED = 64
# name -> (lowest, highest)
_RANGES = {
    "num_speculative_tokens": (1, MAX_DRAFTED),
    "prompt_lookup_max": (1, 32),
    "prompt_lookup_min": (1, 32),
}
#: How many tokens more than nothing a draft has to gain by the estimates: steps of a machine that others use
#: too vary by a third.
MARGIN = 0.2
#: Guesses that will hardly ever be reached are not run.
LEAST_CHANCE = 0.1
#: What a guess is taken to add to a step, as a share of one sequence's part of it, until it has been seen.
ROW_COST = 0.4


@dataclass(frozen=True)
class SpeculativeConfig:
    """num_speculative_tokens: guesses that a sequence may run in one step
    prompt_lookup_max, prompt_lookup_min: longest and shortest run of last tokens that is looked for
    """

    num_speculative_tokens: int = 16
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2


def speculative_config(given: Any) -> SpeculativeConfig | None:
    """The settings in a mapping with vLLM's names; None: no drafts. Raises RequestError for a wrong one."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise RequestError(
            f"speculative_config must be a dict, found {show(given)}; pass "
            '{"method": "ngram", "num_speculative_tokens": 16}'
        )
    known = ["method", *(field.name for field in fields(SpeculativeConfig))]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise RequestError(
            f"speculative_config has {show(unknown[0])}, expected some of {', '.join(known)}; remove it"
        )
    method = given.get("method", METHOD)
    if not isinstance(method, str) or method != METHOD:
        raise RequestError(
            f"speculative_config.method must be {METHOD!r}, found {show(method)}; there is no other"
        )
    numbers = {name: value for name, value in given.items() if name != "method"}
    for name, value in numbers.items():
        least, most = _RANGES[name]
        if type(value) is not int or not least <= value <= most:
            raise RequestError(
                f"speculative_config.{name} must be a whole number from {least} to {most}, "
                f"found {show(value)}; choose one of those"
            )
    if "prompt_lookup_max" not in numbers and "prompt_lookup_min" in numbers:
        numbers["prompt_lookup_max"] = max(numbers["prompt_lookup_min"], SpeculativeConfig.prompt_lookup_max)
    if "prompt_lookup_min" not in numbers and "prompt_lookup_max" in numbers:
        numbers["prompt_lookup_min"] = min(numbers["prompt_lookup_max"], SpeculativeConfig.prompt_lookup_min)
    config = SpeculativeConfig(**numbers)
    if config.prompt_lookup_min > config.prompt_lookup_max:
        raise RequestError(
            f"speculative_config.prompt_lookup_min is {config.prompt_lookup_min}, more than "
            f"prompt_lookup_max {config.prompt_lookup_max}; lower it"
        )
    return config


def speculative_json(text: str | None) -> dict[str, Any] | None:
    """The value of --speculative-config. Raises RequestError for what is no such setting."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(
            f"speculative_config must be JSON, found {show(text)}; pass "
            '{"method": "ngram", "num_speculative_tokens": 16}'
        ) from None
    speculative_config(found)
    return found


class HitRates:
    """How often guesses are right, by how far back the text agrees with the place that they come from.

    The classes are powers of two, since a rate changes more from 2 tokens to 4 than from 30 to 32. Old tokens
    fade: the last `memory` of a class count most.
    """

    #: Before anything is known: agreement of 0, 1, 2, 4, 8, 16 and 32 tokens or more.
    FIRST = (0.3, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9)

    WEIGHT = 4

    def __init__(self, memory: int, below: HitRates | None = None):
        self._memory, self._below = memory, below
        self._right, self._all = [0.0] * len(self.FIRST), [0.0] * len(self.FIRST)

    def saw(self, agreement: int, right: bool) -> None:
        """A token has been drawn that there was a guess at."""
        place = self._class(agreement)
        fading = 1 - 1 / self._memory
        self._right[place] = self._right[place] * fading + right
        self._all[place] = self._all[place] * fading + 1
        if self._below is not None:
            self._below.saw(agreement, right)

    def of(self, agreement: int) -> float:
        """The chance of the next guess; that of all requests, or the first, counts as WEIGHT tokens seen."""
        place = self._class(agreement)
        before = self.FIRST[place] if self._below is None else self._below.of(agreement)
        return (self._right[place] + self.WEIGHT * before) / (self._all[place] + self.WEIGHT)

    def _class(self, agreement: int) -> int:
        return min(agreement.bit_length(), len(self.FIRST) - 1)


class StepCosts:
    """How much longer a step takes with guesses, from the times between the ends of steps: all is in them.

    Times are of steps of so many sequences; the factors that guesses make of them are kept by classes, powers
    of two of sequences and of guesses, since single steps are noisy. Between classes seen a factor lies on a
    line.
    """

    #: Guessing steps after which one without guesses is due, to compare with.
    COMPARE = 64
    #: Steps without guesses that are seen first.
    BEFORE = 4
    #: Steps after which a factor seen once is doubted: what was too dear may have been slowed by others, and
    #: is tried again; one seen n times stands n times as long.
    DOUBT = 64

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._last = clock, None
        self._steps = 0
        self._plain: dict[int, _Mean] = {}  # sequences -> seconds
        self._factors: dict[tuple[int, int], tuple[_Mean, _Mean]] = {}  # classes -> guesses, factor

    @property
    def seconds(self) -> dict[int, float]:
        """Of steps without guesses, by sequences."""
        return {sequences: mean.value for sequences, mean in sorted(self._plain.items())}

    def factors(self, sequences: int) -> list[tuple[float, float]]:
        """(guesses, factor) of steps of about so many sequences, from (0, 1) on; factors never fall."""
        found, of = [(0.0, 1.0)], _class(sequences)
        for guesses in range(_class(MAX_DRAFTED) + 1):
            seen = self._factors.get((of, guesses))
            if seen is not None and self._steps - seen[1].latest < self.DOUBT * seen[1].count:
                found.append((seen[0].value, max(seen[1].value, found[-1][1])))
        return found

    def rested(self) -> None:
        """The time until the next step ends is not that step's alone."""
        self._last = None

    def finished(self, sequences: int | None, guesses: int) -> None:
        """A step has ended; None: one that says nothing about sequences that decode."""
        now, last = self._clock(), self._last
        self._last = now
        if sequences is not None and last is not None:
            self.saw(sequences, guesses, now - last)

    def saw(self, sequences: int, guesses: int, seconds: float) -> None:
        """A step of so many sequences and guesses took so long."""
        self._steps += 1
        plain = self._plain.setdefault(sequences, _Mean())
        if guesses == 0:
            plain.add(seconds, self._steps)
        elif plain.count:
            key = _class(sequences), _class(guesses)
            mean_guesses, factor = self._factors.setdefault(key, (_Mean(), _Mean()))
            mean_guesses.add(guesses, self._steps)
            factor.add(seconds / plain.value, self._steps)

    def needs_plain(self, sequences: int) -> bool:
        """Whether the next step of so many sequences should have no guesses, to compare others with."""
        plain = self._plain.get(sequences)
        return plain is None or plain.count < self.BEFORE or self._steps - plain.latest > self.COMPARE

    def of(self, sequences: int, most: int) -> list[float]:
        """The factors of a step of so many sequences with 0 to `most` guesses."""
        known = self.factors(sequences)
        places, factors = zip(*known, strict=True)
        last, end = known[-1]
        row = (end - 1) / last if last else ROW_COST / sequences
        found = np.interp(np.arange(most + 1), places, factors)
        return (found + row * np.maximum(np.arange(most + 1) - last, 0)).tolist()


class _Mean:
    """Of numbers of which the later ones count more.

    The first is replaced by the second, since the first step of a shape may have prepared things; one that is
    far above counts as twice the mean, since the step was interrupted.
    """

    def __init__(self) -> None:
        self.value, self.count, self.latest = 0.0, 0, 0

    def add(self, number: float, when: int) -> None:
        if self.count < 2:
            self.value = number
        else:
            self.value += (min(number, 2 * self.value) - self.value) * max(1 / self.count, 0.1)
        self.count, self.latest = self.count + 1, when


def _class(number: int) -> int:
    return (number - 1).bit_length()


class Drafter:
    """Follows one request's text and guesses how it goes on."""

    def __init__(self, prompt: Iterable[int], config: SpeculativeConfig, rates: HitRates):
        self._lookup = PromptLookup(list(prompt), config.prompt_lookup_max, config.prompt_lookup_min)
        self.rates = HitRates(memory=64, below=rates)
        self._match = self._lookup.find()

    def follow(self, tokens: list[int]) -> None:
        """The text is now `tokens`, which begin with those of before."""
        for place in range(len(self._lookup), len(tokens)):
            self._see(tokens[place])

    @property
    def has_guess(self) -> bool:
        return self._match is not None

    def chances(self, count: int) -> Iterable[float]:
        """Of the next `count` guesses: how likely each is right, if those before it are."""
        if self._match is not None:
            for ahead in range(count):
                yield self.rates.of(self._match.agreement + ahead)

    def guess(self, count: int) -> tuple[int, ...]:
        """The next `count` tokens, none without a place to take them from."""
        return self._lookup.guess(self._match.place, count) if self._match is not None and count else ()

    def _see(self, token: int) -> None:
        match = self._match
        right = match is not None and self._lookup.agrees(match.place, token)
        if match is not None:
            self.rates.saw(match.agreement, right)
        self._lookup.append(token)
        if right:
            self._match = Match(match.place + 1, match.agreement + 1)
            return
        self._match = self._lookup.find()
        if self._match is None and match is not None and match.agreement:
            self._match = Match(match.place + 1, 0)  # perhaps this one token was changed


class Speculation:
    """Of one engine: who drafts how much, and what came of it. Used on the engine's thread.

    drafted, accepted: guesses that were run, and those of them that were right, of all time
    """

    def __init__(self, config: SpeculativeConfig, costs: StepCosts | None = None):
        self.config, self.costs = config, costs or StepCosts()
        self.rates = HitRates(memory=512)
        self.drafted = self.accepted = self.drafts = 0

    def plan(self, requests: list[Request], allowed: bool) -> None:
        """Give the requests that decode next the drafts that make the most of the step."""
        count = len(requests)
        if self.costs.needs_plain(count):
            allowed = False
        factors, planned, expected = None, 0, float(count)
        for request in requests:
            sequence = request.sequence
            sequence.draft, sequence.awaited = (), False
            # One that looks inside sees the tokens that stand, each once.
            if request.recorder is not None or sequence.paused:
                continue
            if request.drafter is None:
                request.drafter = Drafter(sequence.tokens, self.config, self.rates)
            request.drafter.follow(sequence.tokens)
            room = request.max_tokens - len(request.output) - 1
            most = min(self.config.num_speculative_tokens, room, MAX_DRAFTED - planned)
            if not allowed or most <= 0 or not request.drafter.has_guess:
                continue
            factors = factors or self.costs.of(count, MAX_DRAFTED)
            guesses, gained = self._best(request.drafter, expected, factors[planned:][: most + 1])
            if sequence.drawn is not None:
                # Its next token is on its way; worth waiting for only where more than that one is gained.
                sequence.awaited = guesses >= 2
                continue
            request.plan_draft(request.drafter.guess(guesses))
            if sequence.draft:
                planned, expected = planned + len(sequence.draft), expected + gained

    def count(self, drafted: int, right: int) -> None:
        """A draft has been checked."""
        self.drafts += 1
        self.drafted += drafted
        self.accepted += right

    def _best(self, drafter: Drafter, expected: float, factors: Sequence[float]) -> tuple[int, float]:
        """How many guesses make the most tokens a second, and how many tokens they add.

        expected: tokens of the step without them; factors: what 0, 1, … of them make of its time
        """
        found, chance, gained = (0, 0.0), 1.0, 0.0
        best = (expected + MARGIN) / factors[0]
        for count, rate in enumerate(drafter.chances(len(factors) - 1), 1):
            chance *= rate
            if chance < LEAST_CHANCE:
                break
            gained += chance
            value = (expected + gained) / factors[count]
            if value > best:
                found, best = (count, gained), value
        return found
