"""Stop strings in streamed text: nothing is shown that may turn out to be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first of `stops` to be completed in text that comes in pieces, however it is cut.

    include: the stop string itself belongs to the text.
    """

    def __init__(self, stops: Sequence[str], include: bool = False):
        self.stops, self.include = tuple(stops), include
        self.matched: str | None = None
        self._held = ""

    def push(self, piece: str, armed: bool = True) -> str:
        """Text that can be shown now. Unless `armed`, the piece is passed on unseen."""
        if self.matched is not None:
            return ""
        self._held += piece
        if armed and self.stops:
            found = self._first_match()
            if found is not None:
                start, self.matched = found
                end = start + len(self.matched) if self.include else start
                shown, self._held = self._held[:end], ""
                return shown
        keep = self._possible_beginning() if armed else 0
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        shown, self._held = self._held, ""
        return shown

    def _first_match(self) -> tuple[int, str] | None:
        """(start, stop) of the match that ends first; of those, the longest."""
        places = [
            (start + len(stop), start, stop) for stop in self.stops if (start := self._held.find(stop)) >= 0
        ]
        return min(places)[1:] if places else None

    def _possible_beginning(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                return length
        return 0
