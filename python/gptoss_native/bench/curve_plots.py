"""Curves of whole models: measured points with their quartiles, and the predicted limit beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .plot_style import COLOURS, GREY, MARKERS, caption, chart, save, style
from .report import Line, Report


@dataclass(frozen=True)
class Curve:
    """Lines of one curve and where each is."""

    label: str
    xs: Sequence[int]
    lines: Sequence[Line]


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    xlabel: str
    ylabel: str
    curves: Sequence[Curve]


GROWTH = {
    "context": ("Decoding, one sequence", "tokens before", "tok/s"),
    "batch": ("Decoding, no context", "sequences in a step", "tok/s"),
    "prompt": ("Prompts", "tokens of the prompt", "tok/s"),
    "decode threads": ("Decoding, one sequence", "threads", "tok/s"),
    "prompt threads": ("A prompt", "threads", "tok/s"),
    "experts": ("Experts of a layer, 8 tokens", "experts of the layer", "ms"),
}


def draw(report: Report, path: Path) -> list[Path]:
    """The picture of a report of decode, prefill or growth. Returns where it is."""
    panels = {"decode": decode_panels, "prefill": prefill_panels, "growth": growth_panels}[report.bench](
        report
    )
    with style():
        _draw(report, panels, path)
    return [path]


def _draw(report: Report, panels: Sequence[Panel], path: Path) -> None:
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = chart(3.4 * columns + (1.6 if columns == 1 else 0), 2.9 * rows + 0.5, rows, columns)
    for number, place in enumerate(axes.flat):
        if number < len(panels):
            _panel(place, panels[number])
        else:
            place.set_axis_off()
    measured = [handle for panel in panels for handle in [_key("-", "measured")] if len(panel.curves) == 1]
    figure.legend(handles=[*measured[:1], _key("--", "predicted limit")], loc="outside upper right", ncols=2)
    figure.supxlabel(
        f"{report.settings.get('model', '')} on {caption(report.machine)}", fontsize=7, color=GREY
    )
    save(figure, path)


def decode_panels(report: Report) -> list[Panel]:
    """Over the context where several were measured, and over the batch."""
    contexts, batches = (sorted({line.facts[name] for line in report.lines}) for name in ("context", "rows"))
    threads = sorted({line.facts["threads"] for line in report.lines})
    panels = []
    for name, others, values, title, xlabel in (
        ("context", "rows", batches, "Decoding over the context", "tokens before"),
        ("rows", "context", contexts, "Decoding over the batch", "sequences in a step"),
    ):
        curves = []
        for other in values:
            for count in threads:
                found = [
                    line
                    for line in report.lines
                    if line.facts[others] == other and line.facts["threads"] == count
                ]
                label = f"batch {other}" if others == "rows" else f"context {other:,}"
                label += f", {count} threads" if len(threads) > 1 else ""
                curves.append(Curve(label, [line.facts[name] for line in found], found))
        panels.append(Panel(title, xlabel, "tok/s", curves))
    several = [panel for panel in panels if len({x for curve in panel.curves for x in curve.xs}) > 1]
    return several or panels[:1]


def prefill_panels(report: Report) -> list[Panel]:
    """Over the length of the prompt."""
    threads = sorted({line.facts["threads"] for line in report.lines})
    curves = []
    for count in threads:
        found = [line for line in report.lines if line.facts["threads"] == count]
        curves.append(Curve(f"{count} threads", [line.facts["rows"] for line in found], found))
    return [Panel("Prompts", "tokens of the prompt", "tok/s", curves)]


def growth_panels(report: Report) -> list[Panel]:
    """One for each axis that was varied."""
    panels = []
    for curve, (title, xlabel, ylabel) in GROWTH.items():
        found = [line for line in report.lines if line.facts["curve"] == curve]
        if found:
            xs = [line.facts["x"] for line in found]
            panels.append(Panel(title, xlabel, ylabel, [Curve("measured", xs, found)]))
    return panels


def _panel(axes: Any, panel: Panel) -> None:
    for number, curve in enumerate(panel.curves):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        order = np.argsort(curve.xs, kind="stable")
        xs = np.maximum(np.array(curve.xs)[order], 1)  # a logarithmic axis has no 0: it stands where 1 would
        lines = [curve.lines[i] for i in order]
        middle = np.array([line.median for line in lines])
        quartiles = np.array([np.percentile(line.values, [25, 75]) for line in lines]).T
        axes.plot(
            xs, [line.facts["predicted"] for line in lines], color=colour, linestyle="--", linewidth=1,
            marker=marker, markersize=3, markerfacecolor="white",
        )  # fmt: skip
        axes.errorbar(
            xs, middle, yerr=np.abs(quartiles - middle), color=colour, marker=marker, markersize=4.5,
            linewidth=1.4, capsize=2, elinewidth=0.8, label=curve.label,
        )  # fmt: skip
    lines = [line for curve in panel.curves for line in curve.lines]
    top = max(max(line.facts["predicted"], float(np.percentile(line.values, 75))) for line in lines)
    axes.set_xscale("log", base=2)
    has_zero = any(x == 0 for curve in panel.curves for x in curve.xs)
    axes.xaxis.set_major_formatter(lambda value, _: "0" if has_zero and value == 1 else _short(value))
    axes.set_ylim(0, 1.08 * top)
    axes.grid()
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    if len(panel.curves) > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=min(len(panel.curves), 3))


def _key(line: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=GREY, linestyle=line, label=label)


def _short(value: float) -> str:
    """Powers of two as people write them: 8192 is 8k."""
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:.0f}k"
    return f"{value:g}"
