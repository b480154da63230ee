"""Options that the benches share, and what becomes of their results."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...bench import compare as comparing
from ...bench.plot_style import require_matplotlib
from ...bench.report import Line, Report, cores, load_report
from ...dense_forms import add_dense_dtype
from ...errors import RequestError
from .. import SUCCESS, UsageError, tell
from ..text import table

REGRESSION = 3  # exit code
BUSY = 0.5  # of the cores: with more other work than this, figures are not to be trusted
MOST = 1 << 20  # of any count that is asked for


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Of which numbers a whole model is measured."""
    parser.add_argument(
        "--threads",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="of a CPU; default: one for each core",
    )


def add_context_way(parser: Any) -> None:
    """How a context comes about."""
    from ...bench.contexts import COMPUTED, FILLED

    parser.add_argument(
        "--compute-context", dest="way", action="store_const", const=COMPUTED, default=FILLED,
        help=f"compute the tokens of --context, which takes long; otherwise their pages are {FILLED}",
    )  # fmt: skip


def add_result_options(parser: argparse.ArgumentParser, plot: str | None = None) -> None:
    """What to do with results; `plot`: what --plot draws, None where there is nothing to draw."""
    group = parser.add_argument_group("results")
    group.add_argument(
        "--json", type=Path, metavar="OUT", help="write every value, the machine and the command to this file"
    )
    group.add_argument(
        "--compare",
        type=Path,
        metavar="OLD",
        help="show the change since this file of --json, and what is noise",
    )
    group.add_argument(
        "--fail-on-regression",
        action="store_true",
        help=f"with --compare: exit with {REGRESSION} when a line got worse beyond the noise",
    )
    if plot:
        group.add_argument("--plot", type=Path, metavar="OUT.png", help=f"draw {plot}")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """How to run a whole model."""
    from ...bench.model_source import FOLDER_HELP, MODEL_HELP

    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    group = parser.add_argument_group("model")
    group.add_argument("--folder", type=Path, help=FOLDER_HELP)
    group.add_argument("--device", default="auto", help="auto, cpu or cuda; default: auto")
    add_dense_dtype(group)
    group.add_argument("--numerics", choices=("auto", "exact", "fast"), default="auto", help="default: auto")
    group.add_argument(
        "--chunk", type=int, default=512, metavar="N", help="the most tokens of a step; default: %(default)s"
    )


def check_results(args: argparse.Namespace, bench: str) -> Report | None:
    """The report of --compare. Raises what would otherwise go wrong after minutes of measuring.

    Sets args.load, the load average before the bench adds to it.
    """
    if args.fail_on_regression and args.compare is None:
        raise UsageError("--fail-on-regression needs --compare; add it")
    if getattr(args, "plot", None) is not None:
        require_matplotlib()
    for path in (args.json, getattr(args, "plot", None)):
        if path is not None and not path.parent.is_dir():
            raise UsageError(
                f"{path.parent} is no folder, {path.name} cannot be written there; make it first"
            )
    args.load = os.getloadavg()[0]
    if args.load > BUSY * cores():
        tell(
            f"the load average is {args.load:.1f} on {cores()} cores: other work takes their time and the "
            "memory's, and the figures will be low and uneven"
        )
    if args.compare is None:
        return None
    old = load_report(args.compare)
    if old.bench != bench:
        raise UsageError(f"{args.compare} has results of `bench {old.bench}`, these are of `bench {bench}`")
    return old


def check_counts(args: argparse.Namespace, least: int, *names: str, most: int = MOST) -> None:
    """Raise UsageError for a number of these options that is out of bounds."""
    for name in names:
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if not least <= value <= most:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} takes whole numbers from {least} to {most:,}, found {value}")


def check_seconds(args: argparse.Namespace) -> None:
    """Raise UsageError for a --seconds that no measurement can take."""
    if not 0 <= args.seconds <= 600:  # NaN fails, too
        raise UsageError(f"--seconds takes a number from 0 to 600, found {args.seconds}")


def backend(device: str, threads: int, isa: str = "", dense_dtype: str = "bf16") -> Any:
    """The native backend, for its limits or its ops. Raises UsageError."""
    from ... import _native
    from ...devices import check_known, device_for

    try:
        check_known(device)
        return _native.Backend(device=device_for(device), threads=threads, isa=isa, dense_dtype=dense_dtype)
    except RequestError as error:
        raise UsageError(str(error)) from None


def note_caches(nbytes: int, machine: dict[str, Any]) -> None:
    """Say when a model is so small that its weights stay in the caches."""
    cache = machine.get("last-level cache")
    if machine["device"] == "cpu" and cache and nbytes < 2 * cache:
        tell(
            f"the weights, {nbytes / 1e6:.0f} MB, fit this machine's caches ({cache / 1e6:.0f} MB): "
            "shares of the memory's bandwidth mean little, and may pass 100 %"
        )


def print_limits(lines: Sequence[Line]) -> None:
    """One line for each limit."""
    for line in lines:
        scale, unit = (1e9, "GB/s") if line.unit == "B/s" else (1e9, "GFLOP/s")
        if "int8" in line.name:
            unit = "Gop/s"
        print(f"{line.name}: {max(line.values) / scale:.1f} {unit} (spread {line.spread:.1%})")


def finish(
    args: argparse.Namespace,
    report: Report,
    old: Report | None,
    draw: Callable[[Report, Path], Sequence[Path]] | None = None,
) -> int:
    """Write, draw and compare as asked; returns the exit code."""
    if args.json is not None:
        report.save(args.json)
        tell(f"wrote {args.json}")
    if draw is not None and args.plot is not None:
        for path in draw(report, args.plot):
            tell(f"wrote {path}")
    if old is None:
        return SUCCESS
    changes, limits, differs = comparing.compare(old, report)
    print()
    print(render(changes))
    if limits:
        print("\nlimits")
        print(render(limits))
    for condition in differs:
        tell(f"the conditions differ: {condition}")
    moved = [change.name for change in limits if change.verdict in (comparing.BETTER, comparing.WORSE)]
    if moved:
        tell(
            f"the machine itself differs beyond the noise in {', '.join(moved)}: look at shares, not at times"
        )
    worse = comparing.regressions(changes)
    if args.fail_on_regression and worse:
        tell(f"{len(worse)} of {len(changes)} lines got worse beyond the noise: {', '.join(worse[:5])}")
        return REGRESSION
    return SUCCESS


def render(changes: Sequence[comparing.Change]) -> str:
    """A table for people."""
    rows = [
        (
            change.name,
            change.unit,
            _number(change.old),
            _number(change.new),
            "" if change.ratio is None else f"{change.ratio:.3f}",
            "" if change.band is None else f"{change.band:.1%}",
            change.verdict,
        )
        for change in changes
    ]
    return table(("", "unit", "old", "new", "new/old", "noise", ""), rows, right=(2, 3, 4, 5))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
