"""Two reports of the same bench, line by line: what changed, and what is noise.

Each line has values of several repeats. Its spread is the distance between their quartiles over their median.
A change counts when the ratio of the medians is further from 1 than the two spreads together, and than LEAST:
that much differs between runs of one program on one machine, however little the repeats of one run do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError
from .report import Line, Report

LEAST = 0.03
FEWEST = 3  # values of a line that have a spread

SAME, BETTER, WORSE, UNKNOWN, NEW, GONE = "same", "better", "worse", "unknown", "new", "gone"
CONDITIONS = ("device", "name", "isa", "threads", "cores")


@dataclass(frozen=True)
class Change:
    """ratio: new over old. band: how far from 1 is noise. A line on one side only has no ratio."""

    name: str
    unit: str
    old: float | None
    new: float | None
    ratio: float | None
    band: float | None
    verdict: str


def compare_lines(old: Sequence[Line], new: Sequence[Line]) -> list[Change]:
    """In the order of the new ones; then what is gone."""
    before = {line.name: line for line in old}
    found = []
    for line in new:
        other = before.pop(line.name, None)
        if other is None:
            found.append(Change(line.name, line.unit, None, line.median, None, None, NEW))
        else:
            found.append(_change(other, line))
    gone = [Change(line.name, line.unit, line.median, None, None, None, GONE) for line in before.values()]
    return found + gone


def compare(old: Report, new: Report) -> tuple[list[Change], list[Change], list[str]]:
    """Changes of lines, changes of limits, and what differs in the conditions.

    Raises RequestError for reports of different benches.
    """
    if old.bench != new.bench:
        raise RequestError(f"--compare has results of `bench {old.bench}`, these are of `bench {new.bench}`")
    differs = [
        f"{name} was {old.machine.get(name)}, is {new.machine.get(name)}"
        for name in CONDITIONS
        if old.machine.get(name) != new.machine.get(name)
    ]
    return compare_lines(old.lines, new.lines), compare_lines(old.limits, new.limits), differs


def regressions(changes: Sequence[Change]) -> list[str]:
    """The names of the lines that got worse."""
    return [change.name for change in changes if change.verdict == WORSE]


def _change(old: Line, new: Line) -> Change:
    if old.unit != new.unit or old.median <= 0:
        return Change(new.name, new.unit, old.median, new.median, None, None, UNKNOWN)
    ratio, band = new.median / old.median, max(LEAST, old.spread + new.spread)
    # In logarithms: half as fast is as far from 1 as twice as fast.
    beyond = max(ratio, 1 / ratio) > 1 + band if ratio > 0 else True
    if min(len(old.values), len(new.values)) < FEWEST:
        verdict = UNKNOWN
    elif not beyond:
        verdict = SAME
    else:
        verdict = BETTER if (ratio > 1) == (new.better == "more") else WORSE
    return Change(new.name, new.unit, old.median, new.median, ratio, band, verdict)
