"""What was edited, in order: to list, undo and redo, and to see what a model was before."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..errors import RequestError
from .store import Overlay, Region, Store


@dataclass
class Change:
    """An edit that was applied, or has been undone since.

    regions: while applied, what the rows were before; otherwise what they will be again
    """

    name: str
    regions: list[Region] = field(repr=False)
    applied: bool = False
    at: float = field(default_factory=time.time)

    @property
    def tensors(self) -> list[str]:
        """Stored tensors that it touches."""
        return list(dict.fromkeys(region.name for region in self.regions))

    @property
    def nbytes(self) -> int:
        """Host memory that it takes to undo or redo it."""
        return sum(region.rows.nbytes for region in self.regions)

    def swap(self, store: Store) -> None:
        """Exchange its rows with the model's. Where that fails on the way, everything is put back."""
        order = reversed(self.regions) if self.applied else self.regions
        done: list[Region] = []
        try:
            for region in order:
                _swap(region, store)
                done.append(region)
        except BaseException:
            for region in reversed(done):
                _swap(region, store)
            raise
        self.applied = not self.applied


def _swap(region: Region, store: Store) -> None:
    old = store.read(region.name, region.first, len(region.rows))
    try:
        store.write(region.name, region.first, region.rows)
    except BaseException:
        store.write(region.name, region.first, old)  # part of it may have been written
        raise
    region.rows = old


class History:
    """All changes; those applied come first. A new one drops those that were undone."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._applied = 0

    def __iter__(self):
        return iter(list(self._changes))

    def add(self, change: Change) -> None:
        """One that has just been applied."""
        self._changes[self._applied :] = [change]
        self._applied += 1

    @property
    def last(self) -> Change:
        """What undo would undo. Raises RequestError when there is nothing."""
        if not self._applied:
            raise RequestError("there is no edit to undo")
        return self._changes[self._applied - 1]

    @property
    def next(self) -> Change:
        """What redo would do again. Raises RequestError when there is nothing."""
        if self._applied == len(self._changes):
            raise RequestError("there is no edit to redo")
        return self._changes[self._applied]

    def step(self, back: bool) -> None:
        """The last was undone, or the next done again."""
        self._applied += -1 if back else 1

    def clear(self) -> None:
        """Forget all; the numbers stay as they are."""
        self._changes, self._applied = [], 0

    def original(self, store: Store) -> Overlay:
        """The numbers of `store` as they were before the first change."""
        applied = self._changes[: self._applied]
        return Overlay(store, [region for change in reversed(applied) for region in reversed(change.regions)])

    def touched(self) -> dict[str, list[tuple[int, int]]]:
        """Stored tensor -> its rows [first, end) that applied changes touch, merged, in order."""
        found: dict[str, list[tuple[int, int]]] = {}
        for change in self._changes[: self._applied]:
            for region in change.regions:
                found.setdefault(region.name, []).append((region.first, region.end))
        return {name: merged(spans) for name, spans in found.items()}


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges [first, end) without overlaps, in order."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((first, end))
    return found
