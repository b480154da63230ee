"""When the parts of a start were done, counted from the start of the process: --startup-trace."""

from __future__ import annotations

import os
import time
from pathlib import Path

_marks: dict[str, float] = {}  # name -> seconds since boot; the first time counts


def mark(what: str) -> None:
    """Note that something is done."""
    _marks.setdefault(what, _now())


def timeline() -> list[tuple[str, float]]:
    """(what, seconds from the start of the process), in the order of time. Linux says it to 10 ms."""
    begin = _begin()
    return sorted(((what, when - begin) for what, when in _marks.items()), key=lambda entry: entry[1])


def render() -> str:
    """A line for each part: when it was done, and how long after the one before."""
    lines, before = [], 0.0
    for what, when in timeline():
        lines.append(f"{when:8.2f} s  {when - before:+7.2f}  {what}")
        before = when
    return "\n".join(lines)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _begin() -> float:
    """Of this process, in seconds since boot; where the system does not say, of the first mark."""
    try:
        # The name, in brackets, may hold blanks and brackets itself.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return min(_marks.values(), default=_now())
