"""A roofline of the ops, and bars of what share of the limit each reaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .limits import Limits, limits_of
from .plot_style import COLOURS, GREY, MARKERS, caption, chart, save, style
from .report import Line, Report

ROOF_STYLES = ("-", "--", "-.")
MOST_SHOWN = 125  # % of the limit; what a cache answers may be many times that


def draw(report: Report, path: Path) -> list[Path]:
    """Both pictures: `path`, and beside it one that ends in -shares. Returns where they are."""
    bars = path.with_name(f"{path.stem}-shares{path.suffix}")
    with style():
        roofline(report, limits_of(report.limits), path)
        shares(report, bars)
    return [path, bars]


def roofline(report: Report, limits: Limits, path: Path) -> None:
    """Operations a second over operations a byte, both logarithmic; the roofs are those measured."""
    lines = [line for line in report.lines if line.facts["flops"]]
    figure, [[axes]] = chart(7.2, 4.6)
    at = [line.facts["flops"] / line.facts["bytes"] for line in lines] or [1.0]
    ridges = [limits.ridge(kind) for kind in limits.peaks] or [1.0]
    low, high = min([*at, *ridges]) / 2, max([*at, *ridges]) * 3
    x = np.geomspace(low, high, 200)
    for number, (kind, peak) in enumerate(limits.peaks.items()):
        roof = np.minimum(limits.bandwidth * x, peak) / 1e9
        axes.plot(x, roof, color=GREY, linestyle=ROOF_STYLES[number % 3], linewidth=1.3, zorder=1)
        unit = "op/s" if kind == "int8" else "FLOP/s"
        axes.annotate(
            f"{kind} peak {_rate(peak, unit)}", (high, peak / 1e9), xytext=(-2, 3),
            textcoords="offset points", ha="right", va="bottom", color=GREY, fontsize=8,
        )  # fmt: skip
    ops = list(dict.fromkeys(line.facts["op"] for line in lines))
    for number, op in enumerate(ops):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        of_op = [line for line in lines if line.facts["op"] == op]
        for variant, isa in dict.fromkeys((line.facts["variant"], line.facts.get("isa")) for line in of_op):
            track = [
                line for line in of_op if (line.facts["variant"], line.facts.get("isa")) == (variant, isa)
            ]
            track.sort(key=lambda line: line.facts["rows"])
            xs = [line.facts["flops"] / line.facts["bytes"] for line in track]
            ys = [line.facts["GFLOP/s"] for line in track]
            exact = variant.startswith("f32")
            axes.plot(xs, ys, color=colour, linewidth=0.6, alpha=0.6, zorder=2)
            axes.scatter(
                xs, ys, s=_sizes(track), marker=marker, zorder=3, linewidths=1.0, edgecolors=colour,
                facecolors="white" if exact else colour,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.grid(which="major")
    axes.set(
        xlabel="operations per byte moved", ylabel="GFLOP/s (int8: Gop/s)",
        title=f"Roofline, {report.settings['shape']} shape, {_rate(limits.bandwidth, 'B/s')} of memory",
    )  # fmt: skip
    _legends(figure, ops, lines)
    _foot(figure, report)
    save(figure, path)


def _legends(figure: Any, ops: Sequence[str], lines: Sequence[Line]) -> None:
    from matplotlib.lines import Line2D

    def key(label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="", label=label, **style)

    keys = [
        key(op, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=5)
        for i, op in enumerate(ops)
    ]
    rows = sorted({line.facts["rows"] for line in lines})
    keys += [key("", color="none"), *(
        key(f"{count} row{'s' * (count > 1)}", color=GREY, marker="o", markersize=float(np.sqrt(size)))
        for count, size in zip(rows, _scale(len(rows)), strict=True)
    )]  # fmt: skip
    if any(line.facts["variant"].startswith("f32") for line in lines):
        keys += [key("", color="none"), key("exact (f32)", color=GREY, marker="o", markersize=5, mfc="white")]
    figure.legend(handles=keys, loc="outside right upper")


def _scale(count: int) -> list[float]:
    """Areas of markers, in points, from few rows to many."""
    return np.linspace(14, 70, count).tolist() if count > 1 else [30.0]


def _sizes(track: Sequence[Line]) -> list[float]:
    return _scale(len(track))


def shares(report: Report, path: Path) -> None:
    """Share of the limit: a group of bars for each op and variant, a bar for each number of rows."""
    groups: dict[str, dict[int, Line]] = {}
    for line in report.lines:
        label = " ".join(filter(None, (line.facts.get(name) for name in ("op", "variant", "isa"))))
        groups.setdefault(label, {})[line.facts["rows"]] = line
    rows = sorted({line.facts["rows"] for line in report.lines})
    figure, [[axes]] = chart(6.8, 1.3 + len(groups) * max(0.2, 0.085 * len(rows) + 0.05))
    places, height = np.arange(len(groups)), 0.8 / max(len(rows), 1)
    for number, count in enumerate(rows):
        found = [
            (place, group[count])
            for place, group in zip(places, groups.values(), strict=True)
            if count in group
        ]
        at = [place - 0.4 + (number + 0.5) * height for place, _ in found]
        value = np.array([line.facts["share"] for _, line in found])
        # The limit's time is fixed, so that the quartiles of the time are those of the share.
        quartiles = [
            np.percentile(line.facts["limit_us"] / np.array(line.values), [25, 75]) for _, line in found
        ]
        errors = np.abs(np.array(quartiles).T - value)
        axes.barh(
            at, 100 * value, height, xerr=100 * errors, color=COLOURS[number % len(COLOURS)],
            label=f"{count} row{'s' * (count > 1)}", error_kw={"linewidth": 0.8, "ecolor": "0.25"},
        )  # fmt: skip
        for place, share in zip(at, 100 * value, strict=True):
            if share > MOST_SHOWN:  # from a cache
                axes.annotate(
                    f"{share:.0f} %", (MOST_SHOWN, place), xytext=(-3, 0), textcoords="offset points",
                    ha="right", va="center", color="white", fontsize=6,
                )  # fmt: skip
    axes.axvline(100, color=GREY, linewidth=1, linestyle="--")
    axes.set_yticks(places, list(groups))
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, MOST_SHOWN)
    axes.grid(axis="x")
    axes.set(xlabel="% of the limit: bytes at the bandwidth, or operations at the peak")
    axes.set_title(f"Share of the limit, {report.settings['shape']} shape")
    figure.legend(loc="outside right upper")
    _foot(figure, report)
    save(figure, path)


def _foot(figure: Any, report: Report) -> None:
    figure.supxlabel(caption(report.machine), fontsize=7, color=GREY)


def _rate(value: float, unit: str) -> str:
    """With three digits: "34.5 GB/s"."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
