"""gptoss-native bench ops."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

from ...bench import op_times
from ...bench.limits import Limits, limits_of, measure_limits
from ...bench.ops import OPS, cases_of
from ...bench.report import Line, Report, machine_facts
from ...bench.shapes import SHAPES
from ...config import ModelConfig
from ...dense_forms import add_dense_dtype
from . import options

MOST_ROWS = 32_768
KNOWN_SHAPES = ("20b", "120b", "tiny")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "--op",
        nargs="+",
        choices=OPS,
        default=list(OPS),
        metavar="OP",
        help=f"of {', '.join(OPS)}; default: all",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        type=int,
        default=[1, 4, 32, 256],
        metavar="N",
        help="tokens of a step: up to 64 one new token of as many sequences, more are one prompt; "
        "default: 1 4 32 256",
    )
    parser.add_argument("--shape", choices=KNOWN_SHAPES, default="20b", help="whose sizes; default: 20b")
    parser.add_argument(
        "--context", nargs="+", type=int, default=[], metavar="N",
        help="tokens before the new ones, for paged_attention; default: 2048, on a GPU 1k to 128k",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")
    parser.add_argument(
        "--isa",
        nargs="+",
        metavar="ISA",
        help="instruction sets of a CPU, one after the other; default: the best",
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of a CPU; default: one for each core"
    )
    parser.add_argument(
        "--seconds", type=float, default=op_times.SECONDS, help="spent on each figure; default: %(default)s"
    )
    add_dense_dtype(parser)
    options.add_result_options(parser, "a roofline, and in a second file bars of the share of the limit")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    options.check_counts(args, 1, "rows", most=MOST_ROWS)
    options.check_counts(args, 0, "threads", most=1024)
    options.check_counts(args, 0, "context", most=SHAPES[args.shape].max_position_embeddings)
    options.check_seconds(args)
    old = options.check_results(args, "ops")
    backends = [
        options.backend(args.device, args.threads, isa, args.dense_dtype)
        for isa in dict.fromkeys(args.isa or [""])
    ]
    first = backends[0]
    settings = {
        "shape": args.shape,
        "rows": args.rows,
        "seconds": args.seconds,
        "context": args.context,
        "dense_dtype": args.dense_dtype,
    }
    facts = {"isa": " ".join(each.isa for each in backends), "threads": first.threads} if first.isa else {}
    report = Report("ops", settings, machine_facts(first.device, args.load, **facts))
    for backend in backends:
        limits = measure_limits(backend)
        print(f"{backend.device} {backend.isa}, {backend.threads} threads" if backend.isa else backend.device)
        options.print_limits(limits)
        print(op_times.HEADER)
        isa = backend.isa if len(backends) > 1 else ""
        report.limits += [_of(isa, line) for line in limits]
        lines = _measure(args, backend, limits_of(limits), SHAPES[args.shape])
        report.lines += [_of(isa, line) for line in lines]
    return options.finish(args, report, old, _draw)


def _measure(args: argparse.Namespace, backend: Any, limits: Limits, model: ModelConfig) -> list[Line]:
    found = []
    for op in args.op:
        cases = cases_of(op)
        if op == "paged_attention" and args.context:
            cases = partial(cases, contexts=args.context)
        for figure in op_times.figures(op, cases, backend, args.rows, model, limits, args.seconds):
            print(figure, flush=True)
            found.append(figure.line())
    return found


def _of(isa: str, line: Line) -> Line:
    """A line that tells which of several instruction sets it is of."""
    return replace(line, name=f"{line.name}, {isa}", facts=line.facts | {"isa": isa}) if isa else line


def _draw(report: Report, path: Any) -> Any:
    from ...bench.op_plots import draw

    return draw(report, path)
