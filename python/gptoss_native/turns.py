"""Whose turn it is to run a step: one thread at a time; the others sleep until there is news for them.

A finalizer may call `leave` and ring bells in the middle of any Python code, this module's too. So there is
no lock here that one waits for while holding another, and only what C does in one go is relied on: a deque's
append and popleft, a lock's acquire and release.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any


class Caller:
    """A thread that waits for the tasks it gave the engine.

    unfinished: those that go on; error: what this thread has to raise
    every_step: it wants to know of each step that moved one of its tasks, not just of their end
    news: there is something to know since it was last told
    """

    def __init__(self, tasks: Iterable[Any], every_step: bool):
        self.unfinished, self.every_step = set(tasks), every_step
        self.error: BaseException | None = None
        self.news = False
        self._bell = threading.Lock()
        self._bell.acquire()

    @property
    def waits(self) -> bool:
        """Whether there is something to wait for."""
        return bool(self.unfinished) and self.error is None

    def ring(self) -> None:
        """Wake it; when it is awake, its next sleep ends at once."""
        with suppress(RuntimeError):  # has been rung before
            self._bell.release()

    def tell(self) -> None:
        """Say that one of its tasks has moved."""
        if self.every_step or not self.waits:
            self.news = True
            self.ring()

    def sleep(self) -> None:
        """Until it is rung."""
        self._bell.acquire()


class Turns:
    """Hands the turn from thread to thread: whoever sleeps longest is woken to take it."""

    def __init__(self) -> None:
        self._held = threading.Lock()
        self._asleep: deque[Caller] = deque()

    def take(self, caller: Caller) -> bool:
        """Wait for the turn (True; call `leave` afterwards), or for news of the caller's tasks (False)."""
        taken = False
        try:
            while caller.waits and not caller.news:
                # In this order: whoever leaves after the attempt has failed finds the caller asleep.
                self._asleep.append(caller)
                try:
                    if taken := self.take_if_free():
                        caller.news = False
                        return True
                    caller.sleep()
                finally:
                    with suppress(ValueError):  # woken by `leave`, which has taken it off the list
                        self._asleep.remove(caller)
            caller.news = False
            return False
        finally:
            if not taken:
                self._wake_next()  # it may have been woken for the turn, which another one must take now

    def take_if_free(self) -> bool:
        """Take the turn without waiting."""
        return self._held.acquire(blocking=False)

    def leave(self) -> None:
        """Give the turn back."""
        self._held.release()
        self._wake_next()

    def _wake_next(self) -> None:
        if not self._held.locked():
            with suppress(IndexError):
                self._asleep.popleft().ring()
