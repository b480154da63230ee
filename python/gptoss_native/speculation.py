"""Drafts without a model: guesses at coming tokens from the text itself, checked together in one step.

An answer often repeats what is in its prompt or in itself. Where its last tokens have stood before, those that
followed there are a guess at those to come (prompt_lookup.py). A step that runs some of them beside the last
known token draws a token after each, exactly as steps of one token would; those after right guesses stand.

Whether that pays is learned, not configured. Every token drawn says whether the guess at it was right, also
where none was run; so the rate at which guesses are right is known, by how far back both places agree, before
a single row has been spent. Every step says how long so many rows take on this machine. A request runs as many
guesses as make the most tokens a second by both; where nothing repeats that is none.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .errors import RequestError
from .prompt_lookup import Match, PromptLookup
from .strict_json import show

if TYPE_CHECKING:
    from .request import Request

METHOD = "ngram"
#: Guesses of one step, of all its sequences: more rows than that make no step of a CPU or GPU cheaper by the row.
MAX_DRAFTED = 64
# name -> (lowest, highest)
_RANGES = {"num_speculative_tokens": (1, MAX_DRAFTED), "prompt_lookup_max": (1, 32), "prompt_lookup_min": (1, 32)}
#: How much faster a draft has to make a step by the estimates, which are not exact.
MARGIN = 1.05
#: Guesses that will hardly ever be reached are not run.
LEAST_CHANCE = 0.1
#: What a row more is taken to cost, as a share of a row, until it has been seen.
ROW_COST = 0.3


@dataclass(frozen=True)
class SpeculativeConfig:
    """num_speculative_tokens: guesses that a sequence may run in one step
    prompt_lookup_max, prompt_lookup_min: longest and shortest run of last tokens that is looked for
    """

    num_speculative_tokens: int = 16
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2


def speculative_config(given: Any) -> SpeculativeConfig | None:
    """The settings in a mapping with vLLM's names; None: no drafts. Raises RequestError, naming what is wrong."""
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
                f"speculative_config.{name} must be a whole number from {least} to {most}, found {show(value)}; "
                "choose one of those"
            )
    if "prompt_lookup_max" not in numbers and "prompt_lookup_min" in numbers:
        numbers["prompt_lookup_max"] = max(numbers["prompt_lookup_min"], SpeculativeConfig.prompt_lookup_max)
    if "prompt_lookup_min" not in numbers and "prompt_lookup_max" in numbers:
        numbers["prompt_lookup_min"] = min(numbers["prompt_lookup_max"], SpeculativeConfig.prompt_lookup_min)
    config = SpeculativeConfig(**numbers)
    if config.prompt_lookup_min > config.prompt_lookup_max:
        raise RequestError(
            f"speculative_config.prompt_lookup_min is {config.prompt_lookup_min}, more than prompt_lookup_max "
            f"{config.prompt_lookup_max}; lower it"
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
        """The chance of the next guess; that of all requests, or the first one, counts as 4 tokens seen."""
        place = self._class(agreement)
        before = self.FIRST[place] if self._below is None else self._below.of(agreement)
        return (self._right[place] + 4 * before) / (self._all[place] + 4)

    def _class(self, agreement: int) -> int:
        return min(agreement.bit_length(), len(self.FIRST) - 1)


class StepCosts:
    """Seconds of a step by its rows, from the times between the ends of steps, so that nothing is left out.

    Between rows seen they lie on a line; beyond, a row more costs ROW_COST of one.
    """

    #: Steps after which a cost that was too high to be tried again is forgotten: it may have been another's noise.
    MEMORY = 512

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._last = clock, None
        self._steps = 0
        self._seconds: dict[int, tuple[float, int, int]] = {}  # rows -> mean, how often seen, when last
        self._rows: list[int] = []  # sorted

    @property
    def seen(self) -> dict[int, float]:
        """Rows and the seconds that steps of so many take."""
        return {rows: self._seconds[rows][0] for rows in self._rows}

    def rested(self) -> None:
        """The time until the next step ends is not that step's alone."""
        self._last = None

    def finished(self, rows: int | None) -> None:
        """A step has ended; None: one that says nothing about rows that decode."""
        now, last = self._clock(), self._last
        self._last = now
        if rows is not None and last is not None:
            self.saw(rows, now - last)

    def saw(self, rows: int, seconds: float) -> None:
        """A step of `rows` decoded rows took so long."""
        self._steps += 1
        mean, count, _ = self._seconds.get(rows, (seconds, 0, 0))
        # The first step of a shape may have prepared things; one that was interrupted says little.
        mean = min(mean, seconds) if count == 1 else mean + (min(seconds, 2 * mean) - mean) * max(1 / (count + 1), 0.1)
        self._seconds[rows] = mean, count + 1, self._steps
        if self._steps % 64 == 0:
            for other in [other for other in self._seconds if other > rows and self._is_old(other)]:
                del self._seconds[other]
        if len(self._rows) != len(self._seconds) or count == 0:
            self._rows = sorted(self._seconds)

    def of(self, rows: int) -> float:
        """What a step of `rows` rows will take; 1 is the unit while nothing is known."""
        known = self._rows
        if not known:
            return 1 + ROW_COST * (rows - 1)
        place = bisect_left(known, rows)
        if place < len(known) and known[place] == rows:
            return self._seconds[rows][0]
        if place == len(known):
            last = known[-1]
            first = known[0]
            return self._seconds[last][0] + ROW_COST * self._seconds[first][0] / first * (rows - last)
        above = self._seconds[known[place]][0]
        if place == 0:
            return above
        low, high = known[place - 1], known[place]
        below = self._seconds[low][0]
        return below + (above - below) * (rows - low) / (high - low)

    def _is_old(self, rows: int) -> bool:
        return self._steps - self._seconds[rows][2] > self.MEMORY


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

    def __init__(self, config: SpeculativeConfig):
        self.config = config
        self.rates, self.costs = HitRates(memory=512), StepCosts()
        self.drafted = self.accepted = self.drafts = 0

    def plan(self, requests: list[Request], allowed: bool) -> None:
        """Give the requests that decode next the drafts that make the most of the step."""
        rows = expected = len(requests)
        best = expected / self.costs.of(rows) if rows else 0.0
        left = MAX_DRAFTED
        for request in requests:
            sequence = request.sequence
            sequence.draft, sequence.awaited = (), False
            # One that looks inside sees the tokens that stand, each once.
            if not allowed or request.recorder is not None or sequence.paused:
                continue
            if request.drafter is None:
                request.drafter = Drafter(sequence.tokens, self.config, self.rates)
            request.drafter.follow(sequence.tokens)
            room = request.max_tokens - len(request.output) - 1
            most = min(self.config.num_speculative_tokens, room, left)
            count, value, gained = self._best(request.drafter, most, rows, expected, best)
            if sequence.drawn is not None:
                # Its next token is on its way; worth waiting for only where more than that one is gained.
                sequence.awaited = count >= 2
                continue
            request.plan_draft(request.drafter.guess(count))
            if sequence.draft:
                rows, expected, best = rows + count, expected + gained, value
                left -= len(sequence.draft)

    def count(self, drafted: int, right: int) -> None:
        """A draft has been checked."""
        self.drafts += 1
        self.drafted += drafted
        self.accepted += right

    def _best(
        self, drafter: Drafter, most: int, rows: int, expected: float, best: float
    ) -> tuple[int, float, float]:
        """How many guesses make the most tokens a second of a step of `rows` rows that makes `expected` tokens;
        how many tokens a second that is, and how many tokens they add."""
        found, chance, gained = (0, best, 0.0), 1.0, 0.0
        best *= MARGIN
        for count, rate in enumerate(drafter.chances(most), 1):
            chance *= rate
            if chance < LEAST_CHANCE:
                break
            gained += chance
            value = (expected + gained) / self.costs.of(rows + count)
            if value > best:
                found, best = (count, value, gained), value
        return found
