"""One line of progress for whoever waits at a terminal; silent in logs, pipes and for anything short."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO


class ProgressBar:
    """Draws what is done on a terminal's stderr, once the work has taken longer than `delay` seconds.

    Call it with the bytes done so far, or the pieces without `in_bytes`; use it as a context manager, so
    that the line is ended.
    """

    def __init__(
        self,
        total: int,
        label: str,
        stream: TextIO | None = None,
        delay: float = 1.0,
        in_bytes: bool = True,
    ):
        self.total = max(total, 1)
        self.label, self.in_bytes = label, in_bytes
        self.stream = sys.stderr if stream is None else stream
        self.start = time.monotonic()
        self.next_draw = (
            self.start + delay if self.stream is not None and self.stream.isatty() else float("inf")
        )
        self.drawn = False

    @property
    def due(self) -> bool:
        """Whether a call would draw: for work whose state takes time to find out."""
        return time.monotonic() >= self.next_draw

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now >= self.next_draw:
            self.next_draw = now + 0.1
            self._draw(done, now)

    def _draw(self, done: int, now: float) -> None:
        rate = done / max(now - self.start, 1e-9)
        width = 24
        filled = min(width, width * done // self.total)
        if self.in_bytes:
            numbers = f"{done / 1e9:.2f} of {self.total / 1e9:.2f} GB, {rate / 1e9:.2f} GB/s"
        else:
            numbers = f"{done:,} of {self.total:,}, {rate:.1f}/s"
        self.stream.write(f"\r{self.label} [{'#' * filled}{'.' * (width - filled)}] {numbers}")
        self.stream.flush()
        self.drawn = True

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.drawn:
            if kind is None:
                self._draw(self.total, time.monotonic())
            self.stream.write("\n")
            self.stream.flush()
