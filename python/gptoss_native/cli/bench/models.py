"""What bench decode and bench prefill have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ...bench import whole_model
from ...bench.limits import limits_of, measure_limits
from ...bench.model_source import model_folder
from ...bench.report import Report, machine_facts
from ...bench.whole_model import How, Point
from ...errors import RequestError
from .. import UsageError, tell
from . import options


def run(
    bench: str,
    args: argparse.Namespace,
    settings: dict[str, Any],
    points: Callable[[Any], Iterable[Point]],
    name: Callable[[Point], str],
    context: int,
    answer: int,
    sequences: int,
) -> int:
    """Measure the points of a model at each --threads; context, answer, sequences: see whole_model.loaded."""
    options.check_counts(args, 0, "threads", most=1024)
    options.check_counts(args, 1, "chunk", most=65_536)
    old = options.check_results(args, bench)
    how = How(args.device, args.numerics, args.dense_dtype, 0, args.chunk)
    found: list[tuple[whole_model.Run, list[Point]]] = []
    try:
        with model_folder(args.model, args.folder, tell) as model:
            for threads in args.threads:
                each = replace(how, threads=threads)
                with whole_model.loaded(model, each, context, answer, sequences) as (llm, one):
                    found.append((one, list(points(llm))))
    except RequestError as error:
        raise UsageError(str(error)) from None
    first = found[0][0]
    facts = machine_facts(first.device, args.load, isa=first.isa, threads=first.threads)
    report = Report(bench, settings | first.settings, facts)
    print(f"{first.name}, {first.nbytes / 1e9:.2f} GB, {first.how}, {first.device} {first.isa}")
    if "context is" in settings:
        print(f"context: {settings['context is']}")
    several = len(found) > 1
    for one, measured in found:
        # After the models, so that the memory they are measured in does not count as a model's.
        limits = measure_limits(options.backend(first.device, one.threads))
        print(f"{one.threads} threads, loaded in {one.load_seconds:.2f} s")
        options.print_limits(limits)
        print(whole_model.HEADER)
        tail = f" threads={one.threads}" if several else ""
        report.limits += [replace(line, name=line.name + tail) for line in limits]
        for point in measured:
            line = whole_model.line_of(point, one, limits_of(limits), args.chunk, name(point) + tail)
            line.facts["load_seconds"] = one.load_seconds
            report.lines.append(line)
            print(whole_model.row(line), flush=True)
    options.note_caches(first.nbytes, facts)
    return options.finish(args, report, old, _draw)


def _draw(report: Report, path: Any) -> Any:
    from ...bench.curve_plots import draw

    return draw(report, path)
