"""What only a sanitizer can see: `python -m tests.simt.sanitizers address|thread`.

Runs the seeded mistakes that this sanitizer must find and every right form, which it must not complain
about; then each op's kernels on random shapes under several schedules. The program of the seeded
mistakes and that of the ops are compiled with the same flags: a sanitizer that finds nothing in the first
would prove nothing in the second.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

from . import programs
from .programs import Case

# Seeded mistakes with a finder of their own that are races too.
RACES = {
    "missing_barrier",
    "reused_buffer",
    "reused_scratch",
    "missing_syncwarp",
    "stage_refilled_early",
    "copy_without_barrier",
    "bulk_refilled_early",
}
REPORT = {
    "address": r"ERROR: AddressSanitizer|runtime error",
    "thread": r"WARNING: ThreadSanitizer: data race",
}

# Threads that a failed launch gave up own memory that nobody frees.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1 history_size=0",
}


def run(*command: object) -> tuple[int, str]:
    """Exit status and everything printed."""
    done = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        env={**os.environ, **OPTIONS},
    )
    return done.returncode, done.stdout


def must_find(case: Case, sanitizer: str) -> bool:
    return case.finder == sanitizer or (sanitizer == "thread" and case.form == "wrong" and case.name in RACES)


def check_cases(program: Path, sanitizer: str, seeds: list[int]) -> list[str]:
    """Prints a line a case; returns what went wrong."""
    failures = []
    for case in programs.listed_cases():
        expected = must_find(case, sanitizer)
        if case.form == "wrong" and not expected:
            continue
        found = 0
        for seed in seeds:
            status, output = run(program, case.name, case.form, seed)
            reported = re.search(REPORT[sanitizer], output) is not None
            found += reported
            if not expected and status != 0:
                failures.append(f"{case}, seed {seed}: status {status}, expected no complaint\n{output}")
            elif reported and not re.search(r"\bbugs_\w+\.cpp:\d+", output):
                failures.append(f"{case}, seed {seed}: the report names no line of the kernel\n{output}")
            elif reported and case.finder == sanitizer and programs.named_line(case.name) not in output:
                failures.append(
                    f"{case}, seed {seed}: {programs.named_line(case.name)} is not named\n{output}"
                )
        if expected and found == 0:
            failures.append(f"{case}: found under none of {len(seeds)} schedules")
        if expected:
            print(f"  {case}: found under {found} of {len(seeds)} schedules", flush=True)
    return failures


def check_ops(program: Path, seeds: list[int], schedules: int) -> list[str]:
    """Runs every op on a shape a seed; returns what went wrong."""
    failures = []
    for op in run(program)[1].split():
        for seed in seeds:
            status, output = run(program, op, seed, schedules)
            if status != 0:
                failures.append(f"{op}, seed {seed}: status {status}\n{output}")
        print(f"  {op}: {len(seeds)} shapes, {schedules} schedules each", flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sanitizer", choices=("address", "thread"))
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="repeats a run (default: a fresh one)"
    )
    parser.add_argument("--schedules", type=int, default=5, help="schedules of each seeded mistake")
    parser.add_argument("--shapes", type=int, default=6, help="random shapes of each op")
    options = parser.parse_args()
    print(f"==> compiling the simulated GPU and the kernels with -fsanitize={options.sanitizer}", flush=True)
    folder = programs.build("simt_bugs", "simt_ops", sanitize=options.sanitizer)
    print(f"==> seeded mistakes, --seed {options.seed}", flush=True)
    seeds = [options.seed + i for i in range(options.schedules)]
    failures = check_cases(folder / "simt_bugs", options.sanitizer, seeds)
    print(f"==> kernels of csrc/cuda, --seed {options.seed}", flush=True)
    shapes = [options.seed + i for i in range(options.shapes)]
    failures += check_ops(folder / "simt_ops", shapes, schedules=4)
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"==> {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
