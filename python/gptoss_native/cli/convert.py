"""gptoss-native convert: BF16 fine-tunes to MXFP4, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..convert import to_bf16, to_mxfp4
from ..parameters import WriteReport
from .text import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "model", help="a checkpoint's folder; for mxfp4 an unquantised one (BF16, F16 or F32)"
    )
    parser.add_argument(
        "--to", choices=("mxfp4", "bf16"), default="mxfp4", help="what the experts become; default: mxfp4"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--shard-bytes", type=int, metavar="N", default=5 << 30, help="a file's size at most; default: 5 GiB"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.to == "bf16":
        print(to_bf16(args.model, Path(args.out), args.shard_bytes))
        print("nothing was rounded: BF16 holds every MXFP4 number")
        return 0
    rows: list[tuple[str, WriteReport]] = []
    folder = to_mxfp4(
        args.model, Path(args.out), lambda name, report: rows.append((name, report)), args.shard_bytes
    )
    header = ("tensor", "relative error", "largest error", "saturated")
    cells = [
        (name, f"{each.relative_error:.2e}", f"{each.max_error:.2e}", f"{each.saturated / each.values:.2%}")
        for name, each in rows
    ]
    total = sum((each for _, each in rows), WriteReport())
    print(table(header, cells, right=(1, 2, 3)))
    print(f"\nall: {total}\n{folder}")
    return 0
