"""Curves of whole models: measured points with their quartiles, and the predicted limit beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .plot_style import COLOURS, GREY, MARKERS, caption, chart, save
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
    "experts": ("Experts of a layer, 8 tokens", "experts of the layer", "us"),
}


def draw(report: Report, path: Path) -> list[Path]:
    """The picture of a report of decode, prefill or growth. Returns where it is."""
    panels = {"decode": decode_panels, "prefill": prefill_panels, "growth": growth_panels}[report.bench](
        report
    )
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = chart(3.4 * columns + (1.6 if columns == 1 else 0), 2.9 * rows + 0.5, rows, columns)
    for number, place in enumerate(axes.flat):
        if number < len(panels):
            _panel(place, panels[number])
        else:
            place.set_axis_off()
    handles, labels = {}, []
    for place in axes.flat:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            if label not in handles:
                handles[label] = handle
                labels.append(label)
    figure.legend(
        [handles[label] for label in labels], labels, loc="outside upper center", ncols=min(len(labels), 4)
    )
    figure.supxlabel(
        f"{report.settings.get('model', '')} on {caption(report.machine)}", fontsize=7, color=GREY
    )
    save(figure, path)
    return [path]


def decode_panels(report: Report) -> list[Panel]:
    """Over the context where several were measured, and over the batch."""
    contexts, batches = (sorted({line.facts[name] for line in report.lines}) for name in ("context", "rows"))
    threads = sorted({line.facts["threads"] for line in report.lines})
    panels = []
    for name, others, title, xlabel in (
        ("context", "rows", "Decoding over the context", "tokens before"),
        ("rows", "context", "Decoding over the batch", "sequences in a step"),
    ):
        if len(contexts if name == "context" else batches) < 2 and panels:
            continue
        if name == "context" and len(contexts) < 2 and len(batches) > 1:
            continue
        curves = []
        for other in batches if others == "rows" else contexts:
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
    return panels


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
    least = [line.facts["predicted"] for curve in panel.curves for line in curve.lines]
    for number, curve in enumerate(panel.curves):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        order = np.argsort(curve.xs, kind="stable")
        xs = np.maximum(np.array(curve.xs)[order], 1)
        lines = [curve.lines[i] for i in order]
        middle = np.array([line.median for line in lines])
        quartiles = np.array([np.percentile(line.values, [25, 75]) for line in lines]).T
        axes.plot(
            xs, [line.facts["predicted"] for line in lines], color=colour, linestyle="--", linewidth=1,
            marker=marker, markersize=3, markerfacecolor="white",
            label="predicted limit" if len(panel.curves) == 1 else f"{curve.label}, predicted limit",
        )  # fmt: skip
        axes.errorbar(
            xs, middle, yerr=np.abs(quartiles - middle), color=colour, marker=marker, markersize=4.5,
            linewidth=1.4, capsize=2, elinewidth=0.8, label=curve.label,
        )  # fmt: skip
    top = max([*least, *(line.median for curve in panel.curves for line in curve.lines)])
    axes.set_xscale("log", base=2)
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_ylim(0, 1.08 * top)
    axes.grid()
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)


def _short(value: float, _: int) -> str:
    """Powers of two as people write them: 8192 is 8k."""
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:.0f}k"
    return f"{value:g}"
