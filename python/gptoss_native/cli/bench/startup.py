"""gptoss-native bench startup."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...bench import startup
from ...bench.model_source import FOLDER_HELP, MODEL_HELP, model_folder
from ...bench.report import Report, machine_facts
from ...checkpoint import open_checkpoint
from ...errors import RequestError
from .. import UsageError, tell
from . import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="demo", help=f"{MODEL_HELP}; default: demo"
    )
    parser.add_argument("--folder", type=Path, help=FOLDER_HELP)
    parser.add_argument(
        "--max-model-len", type=int, default=4096, metavar="N", help="the context; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    options.add_result_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    options.check_counts(args, 8, "max_model_len")
    options.check_counts(args, 1, "rounds", most=1000)
    old = options.check_results(args, "startup")
    settings = {"model": args.model, "rounds": args.rounds, "max_model_len": args.max_model_len}
    report = Report("startup", settings, machine_facts("cpu", args.load))
    try:
        with model_folder(args.model, args.folder, tell) as model:
            open_checkpoint(model)  # what is wrong with it is better said here than by a process
            report.lines += startup.measure(model, args.max_model_len, args.rounds)
    except RequestError as error:
        raise UsageError(str(error)) from None
    print(f"{'':48}{'ms':>9} {'spread':>7} {'since exec':>11}")
    for line in report.lines:
        at = line.facts.get("at")
        since = f"{sorted(at)[len(at) // 2]:11.1f}" if at else ""
        print(f"{line.name:48}{line.median:9.1f} {line.spread:7.1%} {since}")
    return options.finish(args, report, old)
