"""gptoss-native diff: which numbers of two checkpoints differ, and by how much."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import CheckpointError
from ..parameters import Parameters, diff_stores
from ..parameters.store import FileStore, specs_of
from .options import MODEL_HELP
from .text import counted, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("before", help=MODEL_HELP)
    parser.add_argument("after", help="another checkpoint of the same shape")
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 0 also where numbers differ."""
    before, after = open_checkpoint(args.before), open_checkpoint(args.after)
    specs = [specs_of(checkpoint.config) for checkpoint in (before, after)]
    for name in {**specs[0], **specs[1]}:
        shapes = [list(spec[name].shape) if name in spec else None for spec in specs]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{args.before} and {args.after} are of different shapes: {name} is {shapes[0]} and "
                f"{shapes[1]}; "
                "compare checkpoints of one shape"
            )
    found = diff_stores(_parameters(before), _parameters(after))
    if args.json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return 0
    if not found:
        print("no number differs")
        return 0
    rows = [
        (each.name, f"{each.changed:,}", f"{each.values:,}", f"{each.relative:.2e}", f"{each.largest:.2e}")
        for each in found
    ]
    print(table(("parameter", "changed", "of", "relative", "largest"), rows, right=(1, 2, 3, 4)))
    changed = sum(each.changed for each in found)
    print(f"\n{changed:,} numbers in {counted(len(found), 'parameter')} differ")
    print("relative: norm of the difference, as a share of the norm before")
    return 0


def _parameters(checkpoint: Checkpoint) -> Parameters:
    return Parameters(checkpoint.config, FileStore(checkpoint.arrays(), specs_of(checkpoint.config)))
