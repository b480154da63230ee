"""Pictures for reports, as PNG files; matplotlib comes with gptoss-native[plot]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RequestError


def heat_map(share: np.ndarray, title: str, path: str | Path) -> None:
    """Expert use: share float [layers, experts], rows summing to 1; drawn as multiples of even use."""
    layers, experts = share.shape
    figure, axes = _figure(max(5.0, 2.2 + 0.16 * experts), max(2.6, 1.6 + 0.22 * layers))
    image = axes.imshow(share * experts, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set(xlabel="expert", ylabel="layer", title=title)
    axes.set_yticks(range(0, layers, max(layers // 12, 1)))
    figure.colorbar(image, ax=axes, label="use (average: 1)")
    _write(figure, path)


def histogram(counts: np.ndarray, edges: np.ndarray, title: str, path: str | Path) -> None:
    """Values of a tensor: counts [bins] between edges [bins + 1], on a logarithmic axis: rare ones show."""
    figure, axes = _figure(6.0, 3.4)
    axes.stairs(counts, edges, fill=True, color="#3a6ea5")
    if counts.any():  # matplotlib warns of a logarithm of nothing
        axes.set_yscale("log", nonpositive="clip")
    axes.set(xlabel="value", ylabel="values", title=title)
    axes.margins(x=0)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    _write(figure, path)


def by_layer(
    series: Mapping[str, np.ndarray], limits: Mapping[str, float], label: str, title: str, path: str | Path
) -> None:
    """Numbers of each layer, such as entropies, a line for each of `series`; limits: dashed lines."""
    layers = len(next(iter(series.values())))
    figure, axes = _figure(max(6.0, 3.5 + 0.2 * layers), 3.4)
    for (name, values), colour in zip(series.items(), ("#3a6ea5", "#4a8c3f"), strict=False):
        axes.plot(range(layers), values, color=colour, marker="o", markersize=4, label=name)
    for (name, value), colour in zip(limits.items(), ("#3a6ea5", "#4a8c3f"), strict=False):
        axes.axhline(value, color=colour, linewidth=1, linestyle="--", label=name)
    axes.set(xlabel="layer", ylabel=label, title=title)
    axes.set_xticks(range(0, layers, max(layers // 12, 1)))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    _write(figure, path)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError("a plot needs matplotlib; install gptoss-native[plot]") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _write(figure: Any, path: str | Path) -> None:
    try:
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}); choose another place") from None
