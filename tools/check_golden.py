"""Compare the native code with golden logits, of the repository or of anyone else's checkpoints.

    python -m tools.check_golden tests/golden/*

A folder holds a checkpoint and golden.npz (format: tests/model/golden.py). Exits with 1 when one is off.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gptoss_native import _native

from tests.model.golden import SCHEDULES, TOLERANCE, load_case


def check(folder: Path, checkpoint: Path, isa: str) -> bool:
    """Print a line per length and way of feeding; returns whether all are within the tolerance."""
    case, rng, good = load_case(folder, checkpoint), np.random.default_rng(), True
    backend = _native.Backend(isa=isa)
    for length in case.lengths:
        for schedule in SCHEDULES:
            found = case.differences(case.logits(rng, backend, length, schedule), length)
            right = all(d.relative <= TOLERANCE and not d.nan_mismatches for d in found.values())
            errors = "  ".join(f"{oracle} {d.relative:.1e}" for oracle, d in found.items())
            print(f"{isa:9} {length:5} tokens {schedule:11} {errors}  {'ok' if right else 'WRONG'}")
            good = good and right
    ours, expected = case.greedy(rng, backend)
    same = sum(a == b for a, b in zip(ours, expected, strict=True))
    print(f"{isa:9} greedy: {same} of {len(expected)} tokens  {'ok' if ours == expected else 'WRONG'}")
    return good and ours == expected


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder")
    results = []
    for folder in parser.parse_args().folders:
        for checkpoint in (folder, folder / "original"):
            if (checkpoint / "config.json").exists():
                print(f"{checkpoint}: largest error over the largest logit, {TOLERANCE:.0e} allowed")
                results += [check(folder, checkpoint, isa) for isa in _native.cpu_isas()]
    raise SystemExit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
