"""What a step does and shows beside computing logits, for the tasks that ask for it; most do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .capture import ExpertUsage, WatchedLayers
from .interventions import Slots
from .scheduler import Chunk

if TYPE_CHECKING:
    from .adapters import LoadedAdapter
    from .request import Task


class Extras:
    """Of one model. Used on the engine's thread; `usage` may be set on any.

    slots: where interventions are in the native model; None: it knows none
    """

    def __init__(self, slots: Slots | None = None):
        self._slots = slots
        self.usage: ExpertUsage | None = None  # where choices of experts are counted

    def leave(self, adapter: LoadedAdapter) -> None:
        """Let go of an adapter once no step uses it."""
        if self._slots is not None:
            self._slots.leave(adapter)

    def of_step(self, parts: Sequence[tuple[Task, Chunk]]) -> StepExtras:
        """Those of one step."""
        arguments: dict[str, Any] = {}
        if self._slots is not None:
            interventions = [task.intervention for task, _ in parts]
            slots = self._slots.rows(interventions, [chunk.count for _, chunk in parts])
            if slots is not None:
                arguments["slots"] = slots
        usage = self.usage  # read once
        watched = [task.recorder.layers for task, _ in parts if task.recorder is not None]
        if usage is not None:
            watched.append(WatchedLayers(router=tuple(range(len(usage.counts)))))
        if watched:
            arguments["watch"] = tuple(sorted(set().union(*layers)) for layers in zip(*watched, strict=True))
        return StepExtras(arguments, usage)


class StepExtras:
    """arguments: for the native forward, beyond the usual ones."""

    def __init__(self, arguments: dict[str, Any], usage: ExpertUsage | None):
        self.arguments, self._usage = arguments, usage

    def show(self, parts: Sequence[tuple[Task, Chunk]], logits: Any) -> list[tuple[Task, Exception]]:
        """Give what was watched to those who asked for it; returns whom that has failed, and why.

        The sequences' pages must be as they were in the step.
        """
        if "watch" not in self.arguments:
            return []
        failed, row, watched = [], 0, logits.watched
        for task, chunk in parts:
            rows, pages = slice(row, row + chunk.count), chunk.sequence.pages
            row += chunk.count
            try:
                if task.recorder is not None:
                    task.recorder.take(chunk.start, watched, rows, pages.full, pages.window)
            except Exception as error:
                failed.append((task, error))
        if self._usage is not None:
            self._usage.take(watched)
        return failed
