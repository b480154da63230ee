"""Where a text has been before: the place after the latest earlier occurrence of its last tokens.

What is there is a guess at what follows, the better the longer the text before both places agrees. Texts may
have 100,000 tokens and more, so their n-grams lie in sorted arrays, 12 bytes each, and only those of the
latest tokens in a dictionary, which is cheap to add to; when it has grown, all are sorted anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: n-grams that are kept in a dictionary until they are sorted in with the others; a quarter of those are
#: more.
UNSORTED = 4096
#: How far back the agreement of two places is counted.
MAX_AGREEMENT = 32
# Odd, so that no information is lost: a polynomial of tokens modulo 2^64. Places with equal values are
# compared.
_FACTOR = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Match(NamedTuple):
    """place: the token there is the guess at the next; agreement: so many before it are the last ones"""

    place: int
    agreement: int


class PromptLookup:
    """Looks up the end of one growing text in itself.

    longest, shortest: n-grams that are looked for, longer ones first
    """

    def __init__(self, tokens: Sequence[int], longest: int, shortest: int):
        self.sizes = range(longest, shortest - 1, -1)
        self._text = list(tokens)
        self._sorted: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # n -> values of n-grams, where they end
        self._latest: dict[int, dict[int, int]] = {}  # likewise, of those that are not sorted in
        self._known = 0  # n-grams that end here or before can be found

    def __len__(self) -> int:
        return len(self._text)

    def append(self, token: int) -> None:
        """The text goes on with this token."""
        self._text.append(token)

    def find(self) -> Match | None:
        """The latest earlier occurrence of the last n tokens, for the largest n that has one."""
        self._learn(len(self._text) - 1)
        for size in self.sizes:
            if size < len(self._text):
                place = self._place_of(size)
                if place is not None:
                    return Match(place, self._agreement(place, size))
        return None

    def guess(self, place: int, count: int) -> tuple[int, ...]:
        """`count` tokens from `place` on; where the text ends, it goes on as it would by repeating itself."""
        period = len(self._text) - place
        once = self._text[place : place + count]
        return tuple((once * -(-count // period))[:count])

    def agrees(self, place: int, token: int) -> bool:
        """Whether `token` is the one at `place`."""
        return self._text[place] == token

    def _learn(self, end: int) -> None:
        """Make the n-grams that end at `end` or before known."""
        unsorted = end - self._known + sum(map(len, self._latest.values()))
        if unsorted > UNSORTED + self._known // 4:
            text = np.array(self._text[:end], np.uint64)
            for size in self.sizes:
                self._sorted[size] = _sorted_grams(text, size)
            self._latest = {}
        else:
            for last in range(self._known + 1, end + 1):
                for size in self.sizes:
                    if last >= size:
                        self._latest.setdefault(size, {})[self._value(last, size)] = last
        self._known = max(self._known, end)

    def _value(self, end: int, size: int) -> int:
        value = 0
        for token in self._text[end - size : end]:
            value = (value * _FACTOR + token + 1) & _MASK
        return value

    def _place_of(self, size: int) -> int | None:
        end = len(self._text)
        value = self._value(end, size)
        place = self._latest.get(size, {}).get(value)
        if place is None and size in self._sorted:
            values, places = self._sorted[size]
            row = int(np.searchsorted(values, np.uint64(value)))
            place = int(places[row]) if row < len(values) and int(values[row]) == value else None
        if place is not None and self._text[place - size : place] == self._text[end - size : end]:
            return place
        return None

    def _agreement(self, place: int, size: int) -> int:
        end, text = len(self._text), self._text
        while size < min(place, MAX_AGREEMENT) and text[place - size - 1] == text[end - size - 1]:
            size += 1
        return size


def _sorted_grams(text: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of all n-grams, each once and sorted: uint64; where each ends for the last time: int32."""
    count = max(len(text) - size + 1, 0)
    values = np.zeros(count, np.uint64)
    for place in range(size):
        values = values * np.uint64(_FACTOR) + text[place : place + count] + np.uint64(1)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)[:count]
    return ordered[is_last], (order[is_last] + size).astype(np.int32)
