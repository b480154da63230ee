"""Whose turn it is to edit: one at a time, first come, first served, on whatever thread or asyncio task."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import ContextVar
from typing import Any

from .errors import RequestError


class Turns:
    """The line, and who is at its head."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of the two below; nobody waits while holding it
        self._waiting: deque[tuple[Turn, Future[None]]] = deque()
        self._holder: Turn | None = None

    def holder(self) -> Turn | None:
        """Whose turn it is."""
        return self._holder

    def line_up(self, turn: Turn) -> Future[None]:
        """Done once it is its turn; cancelled by whoever does not want it any more."""
        future: Future[None] = Future()
        with self._lock:
            self._waiting.append((turn, future))
        self._advance()
        return future

    def end(self, turn: Turn) -> None:
        """It has had its turn."""
        with self._lock:  # _advance may have told it already, and not yet noted it as the holder
            assert self._holder is turn, "a turn ends once, and only its holder's"
            self._holder = None
        self._advance()

    def _advance(self) -> None:
        with self._lock:
            while self._holder is None and self._waiting:
                turn, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():  # from here on it cannot be cancelled
                    self._holder = turn
                    future.set_result(None)


#: Turns that this thread, or this asyncio task and what it has started, has had.
_mine: ContextVar[tuple[Turn, ...]] = ContextVar("turns", default=())


class Turn:
    """A place in the line; `take` or `wait` for it, then `give` it up, on any thread."""

    def __init__(self, turns: Turns, patience: float):
        self._turns, self._patience = turns, patience

    @property
    def is_held(self) -> bool:
        """Whether it is this one's turn."""
        return self._turns.holder() is self

    def take(self) -> None:
        """Block until it is. Raises RequestError for one that waits for itself, or for too long."""
        if self.is_held:  # `wait` has been there before
            return
        self._check_not_mine()
        future = self._turns.line_up(self)
        try:
            future.result(self._patience)
        except BaseException as error:
            self._leave(future)
            raise self._too_long() if isinstance(error, FutureTimeoutError) else error from None
        self._is_mine()

    async def wait(self) -> None:
        """The same, blocking nobody. One that is cancelled has left the line."""
        self._check_not_mine()
        future = self._turns.line_up(self)
        try:
            await asyncio.wait_for(asyncio.wrap_future(future), self._patience)
        except BaseException as error:
            self._leave(future)
            raise self._too_long() if isinstance(error, asyncio.TimeoutError) else error from None
        self._is_mine()

    def give(self) -> None:
        """Let the next one begin."""
        self._turns.end(self)

    def _leave(self, future: Future[Any]) -> None:
        if not future.cancel():  # it has just become its turn
            self.give()

    def _check_not_mine(self) -> None:
        holder = self._turns.holder()
        if holder is not None and holder in _mine.get():
            raise RequestError("an edit is open on this thread or task; end its with block first")

    def _is_mine(self) -> None:
        _mine.set((*(turn for turn in _mine.get() if turn.is_held), self))

    def _too_long(self) -> RequestError:
        return RequestError(f"another edit has been open for {self._patience:.0f} s; end it first")
