"""--startup-trace. Oracle: the clock of whoever starts the process."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from gptoss_native import startup

from tests.python.command import COMMAND

PARTS = ["modules imported", "checkpoint opened", "weights in memory", "first token"]


@pytest.fixture
def marks(monkeypatch):
    monkeypatch.setattr(startup, "_marks", {})


def test_a_start_is_told_in_the_order_of_time():
    command = [*COMMAND, "generate", "demo", "Hi", "--max-tokens", "2"]
    begin = time.monotonic()
    done = subprocess.run(
        [*command, "--device", "cpu", "--startup-trace"], capture_output=True, text=True, check=False
    )
    wall = time.monotonic() - begin
    lines = [re.fullmatch(r" *(\d+\.\d\d) s +[+-]\d+\.\d\d  (.+)", line) for line in done.stderr.splitlines()]
    found = {line[2]: float(line[1]) for line in lines if line}
    assert [name for name in found if name in PARTS] == PARTS, done.stderr
    assert list(found.values()) == sorted(found.values())
    assert 0 < found["first token"] <= wall + 0.02  # the system counts in steps of 10 ms


def test_the_first_time_counts(marks):
    startup.mark("one")
    first = dict(startup.timeline())["one"]
    startup.mark("one")
    startup.mark("two")
    found = startup.timeline()
    assert [name for name, _ in found] == ["one", "two"]
    assert found[0][1] == first <= found[1][1]
