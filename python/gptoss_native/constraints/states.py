"""An automaton over tokens. What its states allow are bit masks as the sampler reads them.

Most states are constant: free text allows the same tokens at each place, a header a few. Their masks are made
once and shared by all requests; only where a matcher binds the text is a mask computed for each token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..errors import RequestError


class Matcher(Protocol):
    """Follows a text through a grammar."""

    accepting: bool  # the text may end here
    stopped: bool  # it must

    def mask(self) -> np.ndarray:
        """uint32 [ceil(vocab / 32)]: ordinary tokens that may come next. Raises RequestError."""

    def take(self, token: int) -> None:
        """Go on with an ordinary token. Raises RequestError for one that was not allowed."""

    def copy(self) -> Matcher:
        """One in the same place, for another request."""


@dataclass(eq=False)
class State:
    """mask: what may come next; with a matcher, what may end the text once the matcher lets it
    next: where some tokens lead
    otherwise: where all others lead; with a matcher they go to it
    is_last: the answer is over, once the matcher allows nothing more, without a token that says so
    """

    mask: np.ndarray
    next: dict[int, State] = field(default_factory=dict)
    otherwise: State | None = None
    matcher: Matcher | None = None
    is_last: bool = False


class Constraint:
    """One request's way through the states."""

    def __init__(self, first: State):
        self._enter(first)

    @property
    def done(self) -> bool:
        """Whether the answer is over."""
        return self._state.is_last and (self._matcher is None or self._matcher.stopped)

    def mask(self) -> np.ndarray:
        """uint32 [ceil(vocab / 32)]: what may come next; token t is bit t % 32 of word t // 32.

        Raises RequestError where a grammar has become too complex, or allows no token at all.
        """
        if self._matcher is None:
            return self._state.mask
        found = self._matcher.mask()
        return found | self._state.mask if self._matcher.accepting else found

    def take(self, token: int) -> None:
        """Go on with a token that was drawn."""
        following = self._state.next.get(token)
        if following is not None:
            self._enter(following)
        elif self._matcher is not None:
            self._matcher.take(token)
        else:
            self._state = self._state.otherwise or self._state

    def masks_along(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """The masks of the places from here on along `tokens`, the first one included; takes none of them.

        They end where a token is not allowed, where the answer is over after it, and where a grammar cannot
        go on.
        """
        way = copy(self)
        if self._matcher is not None:
            way._matcher = self._matcher.copy()
        masks: list[np.ndarray] = []
        with suppress(RequestError):
            masks.append(way.mask())
            for token in tokens:
                if not masks[-1][token // 32] >> np.uint32(token % 32) & np.uint32(1):
                    break
                way.take(token)
                if way.done:
                    break
                masks.append(way.mask())
        return masks

    def _enter(self, state: State) -> None:
        self._state = state
        self._matcher = state.matcher.copy() if state.matcher is not None else None


def mask_of(tokens: Iterable[int], vocab_size: int) -> np.ndarray:
    """uint32 [ceil(vocab / 32)] that allows only `tokens`."""
    mask = np.zeros(-(-vocab_size // 32), np.uint32)
    ids = np.fromiter((token for token in tokens if token < vocab_size), np.int64)
    np.bitwise_or.at(mask, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
    return mask
