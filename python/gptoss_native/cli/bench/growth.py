"""gptoss-native bench growth."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from ...bench import growth, whole_model
from ...bench.model_source import model_folder
from ...bench.report import Report, cores, machine_facts
from ...errors import RequestError
from .. import UsageError, tell
from . import options

CONTEXTS, BATCHES, EXPERTS = (0, 1024, 2048, 4096, 8192), (1, 2, 4, 8, 16), (4, 8, 16, 32, 64, 128)
PROMPTS = (32, 64, 128, 256, 512, 1024, 2048)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_run_options(parser)
    group = parser.add_argument_group(
        "axes", "One is varied at a time; --NAME without numbers leaves it out."
    )
    for name, what, default in (
        ("context", "tokens before decoded ones; up to 131072", CONTEXTS),
        ("batch", "sequences of a step", BATCHES),
        ("experts", "experts of a layer", EXPERTS),
        ("prompt", "tokens of a prompt", PROMPTS),
    ):
        group.add_argument(
            f"--{name}", nargs="*", type=int, default=list(default), metavar="N",
            help=f"{what}; default: {' '.join(map(str, default))}",
        )  # fmt: skip
    options.add_context_way(group)
    group.add_argument(
        "--threads", nargs="*", type=int, metavar="N", help="of a CPU; default: powers of 2 and all"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=24,
        metavar="N",
        help="decoded tokens of each point; default: %(default)s",
    )
    parser.add_argument(
        "--tries", type=int, default=3, metavar="N", help="of each prompt; default: %(default)s"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.4, help="spent on each op's figure; default: %(default)s"
    )
    options.add_result_options(parser, "all curves on one page, the predicted limit beside each")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.threads is None:
        most = cores()
        args.threads = sorted({most, *(1 << n for n in range(most.bit_length()))})
        args.threads = [] if args.device == "cuda" else args.threads
    options.check_counts(args, 0, "context")
    options.check_counts(args, 1, "batch", "threads", "tries", most=1024)
    options.check_counts(args, 1, "experts", most=128)
    options.check_counts(args, 1, "prompt")
    options.check_counts(args, 2, "tokens", "chunk", most=65_536)
    options.check_seconds(args)
    old = options.check_results(args, "growth")
    axes = growth.Axes(args.context, args.batch, args.experts, args.threads, args.prompt)
    effort = growth.Effort(args.tokens, args.way, args.tries, args.seconds)
    how = whole_model.How(args.device, args.numerics, args.dense_dtype, 0, args.chunk)
    try:
        with model_folder(args.model, args.folder, tell) as model:
            found, limits, lines = growth.measure(
                model, how, axes, effort, partial(options.backend, args.device), tell
            )
    except RequestError as error:
        raise UsageError(str(error)) from None
    facts = machine_facts(found.device, args.load, isa=found.isa, threads=found.threads)
    names = ("context", "batch", "experts", "threads", "prompt", "tokens", "tries", "chunk", "seconds")
    settings = {"model": args.model, **found.settings}
    settings |= {name: getattr(args, name) for name in names}
    settings["context is"] = args.way
    report = Report("growth", settings, facts, limits, lines)
    print(f"{found.name}, {found.nbytes / 1e9:.2f} GB, {found.how}, {found.device} {found.isa}")
    options.print_limits(limits)
    print(f"context: {args.way}")
    print(f"{'':24}{'':6}{'measured':>12} {'spread':>7} {'predicted':>12} {'share':>6}")
    for line in lines:
        print(
            f"{line.name:24}{line.unit:6}{line.median:12.2f} {line.spread:7.1%} "
            f"{line.facts['predicted']:12.2f} {line.facts['share']:6.0%}"
        )
    options.note_caches(found.nbytes, facts)
    return options.finish(args, report, old, _draw)


def _draw(report: Report, path: Any) -> Any:
    from ...bench.curve_plots import draw

    return draw(report, path)
