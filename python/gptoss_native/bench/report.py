"""What a bench found, as JSON that says how it was found, so that another run can be compared with it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import RequestError

SCHEMA = 1


@dataclass
class Line:
    """One thing measured several times. `better`: whether "more" or "less" of it is."""

    name: str
    unit: str
    values: list[float]
    better: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def spread(self) -> float:
        """From the first to the third quartile, as a share of the median; 0 of a single value."""
        low, high = np.percentile(self.values, [25, 75])
        return float(high - low) / abs(self.median) if self.median else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "better": self.better,
            "median": self.median,
            "spread": self.spread,
            "values": self.values,
            **self.facts,
        }


@dataclass
class Report:
    """settings: what was asked for. machine: on what. limits and lines: what was measured."""

    bench: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    limits: list[Line] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "bench": self.bench,
            "settings": self.settings,
            "machine": self.machine,
            "limits": [line.to_dict() for line in self.limits],
            "lines": [line.to_dict() for line in self.lines],
        }

    def save(self, path: Path) -> None:
        """Raises OSError."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")


def machine_facts(device: str, load: float, **more: Any) -> dict[str, Any]:
    """Where, when and with what. load: the load average before. more: what else the bench knows."""
    return {
        "device": device,
        "name": gpu_name() if device == "cuda" else cpu_name(),
        **more,
        "cores": cores(),
        "last-level cache": last_level_cache(),
        "load average": load,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["gptoss-native", *sys.argv[1:]]),
        "commit": commit(),
        "versions": {
            "gptoss-native": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "platform": platform.platform(),
    }


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name(root: Path = Path("/proc")) -> str:
    with contextlib.suppress(OSError):
        for line in (root / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_name() -> str:
    """The first GPU's, as its driver's tool says."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
    return _output(command) or "unknown GPU"


def last_level_cache(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Bytes; None where the system does not say."""
    sizes = []
    for size in root.glob("index*/size"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = size.read_text().strip()
            sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]])
    return max(sizes, default=None)


def commit() -> str | None:
    """Of the repository these sources are part of, with "-changed" where they were; None if installed."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    if _output([*git, "ls-files", "--error-unmatch", here.name]) is None:
        return None
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no", ":/"])
    found = _output([*git, "rev-parse", "--short", "HEAD"])
    return f"{found}-changed" if found and changed else found


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def load_report(path: Path) -> Report:
    """Read what `save` wrote. Raises RequestError for anything else, OSError for no file."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON ({error}); give a file that --json wrote") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        schema = found.get("schema") if isinstance(found, dict) else None
        raise RequestError(
            f"{path} has schema {schema!r}, expected {SCHEMA}; give a file that --json of this version wrote"
        )
    try:
        return Report(
            found["bench"] + "",
            dict(found["settings"]),
            dict(found["machine"]),
            [_line(each) for each in found["limits"]],
            [_line(each) for each in found["lines"]],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(f"{path} is damaged ({error!r}); write it again with --json") from None


def _line(found: dict[str, Any]) -> Line:
    names = ("name", "unit", "values", "better")
    values = [float(value) for value in found["values"]]
    if not values or not np.isfinite(values).all() or found["better"] not in ("more", "less"):
        raise ValueError(f"line {found['name']!r}: values {values[:3]}, better {found['better']!r}")
    facts = {k: v for k, v in found.items() if k not in (*names, "median", "spread")}
    return Line(found["name"] + "", found["unit"] + "", values, found["better"], facts)
