"""Work that somebody else has the engine's thread do between two steps."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .errors import GptossError


class Visit:
    """One piece of work, and how its owner hears of its end.

    waits: for tasks that have begun; outdates: what was computed before is never reused for another task
    """

    def __init__(self, work: Callable[[], None], waits: bool, outdates: bool):
        self._work, self.waits, self.outdates = work, waits, outdates
        self._done, self._error = threading.Event(), None

    def work(self) -> bool:
        """On the engine's thread: do it, and tell; False when it has failed."""
        try:
            self._work()
        except BaseException as error:
            self._error = error
        self._done.set()
        return self._error is None

    def give_up(self, begun: int) -> None:
        """On the engine's thread: it is not going to happen."""
        self._error = GptossError(
            f"{begun} requests were still running when the time was up, so nothing was changed; wait "
            "longer, cancel "
            'them, or pass running="continue"'
        )
        self._done.set()

    def wait(self, timeout: float | None, withdraw: Callable[[], None]) -> None:
        """Until it is done; after `timeout` seconds `withdraw` is called. Raises what went wrong."""
        try:
            if not self._done.wait(timeout):
                withdraw()
                self._done.wait()
        except BaseException:  # Ctrl+C: it must not happen behind the back of whoever has given up
            withdraw()
            self._done.wait()
            raise
        if self._error is not None:
            raise self._error
