"""Stages that are run once for each commit and device, in calls of limited length."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = dict[str, dict[str, Any]]  # by stage


@dataclass(frozen=True)
class Stage:
    """One piece of the check; `run` gets the results of those before it and returns its own.

    seconds: about how long it takes; it is begun only when so much is left
    """

    name: str
    seconds: float
    run: Callable[[Results], dict[str, Any]]


class Record:
    """Results of one commit on one device, in a file that is written after each stage."""

    def __init__(self, folder: Path, facts: Mapping[str, str]):
        name = "-".join(facts[key].replace(" ", "_").replace("/", "_") for key in ("device", "commit"))
        self.path, self.facts = folder / f"gpu_check-{name}.json", dict(facts)
        self.results: Results = {}
        if self.path.exists():
            stored = json.loads(self.path.read_text())
            self.results, self.facts = stored["stages"], stored["facts"] | self.facts

    def keep(self, stage: str, result: dict[str, Any]) -> None:
        self.results[stage] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"facts": self.facts, "stages": self.results}, indent=1)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text + "\n")
        partial.replace(self.path)  # a call that is cut off leaves the old one whole

    def is_done(self, stage: str) -> bool:
        """Whether it has run and succeeded; one that failed runs again."""
        return self.results.get(stage, {}).get("ok", False)


def run_stages(
    stages: Sequence[Stage],
    record: Record,
    budget: float,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run what has not been done, as far as the budget (seconds) goes; returns the names of what is left.

    A stage that raises is kept as failed, and the others go on.
    """
    end, left = clock() + budget, []
    for stage in stages:
        if record.is_done(stage.name):
            say(f"== {stage.name}: done before")
            continue
        if clock() + stage.seconds > end:
            left.append(stage.name)
            continue
        say(f"== {stage.name}")
        begin = clock()
        try:
            result = {"ok": True} | stage.run(record.results)
        except Exception as error:
            result = {"ok": False, "error": f"{type(error).__name__}: {error}"[-4000:]}
            say(traceback.format_exc())
        result["seconds"] = round(clock() - begin, 1)
        record.keep(stage.name, result)
        say(f"== {stage.name}: {'ok' if result['ok'] else 'FAILED'}, {result['seconds']} s")
    return left
