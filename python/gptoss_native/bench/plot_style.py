"""How the benches' figures look: sizes for a page, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RequestError

# Okabe and Ito, "Color Universal Design" (2008), but for yellow, which is too faint for lines on white: wine
# and olive of Paul Tol's "muted" scheme are there instead.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
GREY = "#666666"
SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
}
DPI = 200


def require_matplotlib() -> None:
    """Raise RequestError where there is none: before a bench runs for minutes."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise RequestError("a plot needs matplotlib; install gptoss-native[plot]") from None


def style() -> Any:
    """A context in which everything is drawn as it should look."""
    from matplotlib import rc_context

    return rc_context(SETTINGS)


def chart(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """(figure, array of axes [rows, columns]), in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: str | Path) -> None:
    """As PNG. Raises RequestError for a place that cannot be written."""
    try:
        figure.savefig(path, dpi=DPI, format="png")
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}); choose another place") from None


def caption(machine: Mapping[str, Any]) -> str:
    """What was measured on, in one line."""
    parts = [str(machine.get("name", machine.get("device", "")))]
    if machine.get("threads"):
        parts.append(f"{machine['threads']} threads")
    parts += [str(machine[name]) for name in ("isa", "commit") if machine.get(name)]
    return ", ".join([*parts, str(machine.get("date", ""))[:10]])
