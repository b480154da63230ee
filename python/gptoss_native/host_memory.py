"""How much memory this machine, or the container it runs in, can still give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostMemory:
    """Bytes; `available` counts what the kernel can free at once, such as the page cache."""

    total: int
    available: int


def host_memory(root: Path = Path("/")) -> HostMemory | None:
    """This host's memory from /proc/meminfo, lowered to the control group's limit; None where there is none.

    `root` is where /proc and /sys are mounted.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {}
    for line in lines:
        words = line.replace(":", " ").split()
        if len(words) == 3 and words[2] == "kB" and words[1].isdigit():
            found[words[0]] = int(words[1]) * 1024
    if "MemTotal" not in found or "MemAvailable" not in found:
        return None
    total, available = found["MemTotal"], found["MemAvailable"]
    limit = _number(root / "sys/fs/cgroup/memory.max")
    if limit is not None and limit < total:
        # The page cache a group uses counts as used but can be freed, so it is added back.
        used = (_number(root / "sys/fs/cgroup/memory.current") or 0) - _cached(root)
        total, available = limit, min(available, limit - max(used, 0))
    return HostMemory(total, max(available, 0))


def _number(path: Path) -> int | None:
    """The number in a control file; None when it is absent or says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cached(root: Path) -> int:
    try:
        lines = (root / "sys/fs/cgroup/memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("file ")), 0)
