"""The simulated GPU finds the mistakes it is there to find, and no others.

Oracles: for right forms a plain computation of the same output; for wrong forms the mistake itself,
whose line is marked in the source. `make simt-asan` and `make simt-tsan` run what only a sanitizer can see.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from . import programs
from .programs import Case

SCHEDULES = 20

# Of 20 schedules, how many must find a wrong result, where it is not all. This mistake shows only when a
# warp outruns another, in 699 of 1000 schedules tried: fewer than 4 of 20 is less than one run in a million.
AT_LEAST = {"reused_scratch": 4}

CASES = programs.listed_cases()
RIGHT = [case for case in CASES if case.form == "right"]
WRONG = [case for case in CASES if case.finder in ("simulator", "result")]


@pytest.fixture(scope="module")
def folder():
    return programs.build("simt_bugs", "simt_bugs_ucontext")


def errors(program, case: Case, seed: int) -> dict[int, str]:
    """Error by seed, of the schedules under which the case failed."""
    command = [program, case.name, case.form, str(seed), str(SCHEDULES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), f"{case} exited with {done.returncode}: {done.stdout}{done.stderr}"
    found = {int(s): text for s, text in re.findall(r"^(\d+): (.*)$", done.stdout, re.MULTILINE)}
    assert (done.returncode == 1) == bool(found)
    return found


def test_sources_and_program_list_the_same_cases(folder):
    listed = subprocess.run([folder / "simt_bugs"], capture_output=True, text=True, check=True).stdout
    assert sorted(listed.splitlines()) == sorted(f"{c.name} {c.form} {c.finder}" for c in CASES)


@pytest.mark.parametrize("program", ["simt_bugs", "simt_bugs_ucontext"])
@pytest.mark.parametrize("case", RIGHT, ids=str)
def test_right_form_passes_under_every_schedule(folder, program, case, rng):
    assert errors(folder / program, case, int(rng.integers(2**32))) == {}


@pytest.mark.parametrize("program", ["simt_bugs", "simt_bugs_ucontext"])
@pytest.mark.parametrize("case", WRONG, ids=str)
def test_wrong_form_is_found_and_its_line_named(folder, program, case, rng):
    found = errors(folder / program, case, int(rng.integers(2**32)))
    assert len(found) >= AT_LEAST.get(case.name, SCHEDULES)
    line = programs.named_line(case.name)
    unnamed = [text for text in found.values() if not re.search(rf"\b{re.escape(line)}\b", text)]
    assert unnamed == []
