"""Times ops on any device at a model's shapes, beside the limits of the device's memory and arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..config import ModelConfig
from .cases import Cases
from .limits import Limits, usual_kind
from .report import Line

SECONDS = 0.4  # spent on each figure
TRIES, FEWEST = 7, 3  # the fewest where all calls together take longer than SECONDS


@dataclass(frozen=True)
class Figure:
    """One op at one size.

    times: seconds a call, of each repeat. least: seconds at the limit. kind: of the numbers it multiplies
    """

    op: str
    variant: str
    rows: int
    times: list[float]
    nbytes: int
    flops: int
    kind: str
    least: float

    @property
    def seconds(self) -> float:
        return float(np.median(self.times))

    @property
    def microseconds(self) -> float:
        return 1e6 * self.seconds

    @property
    def share(self) -> float:
        """Of the limit: the least time over the time taken."""
        return self.least / self.seconds

    @property
    def gigabytes_per_second(self) -> float:
        return self.nbytes / self.seconds / 1e9

    @property
    def gigaflops(self) -> float:
        return self.flops / self.seconds / 1e9

    def line(self) -> Line:
        """As a report has it."""
        name = " ".join(part for part in (self.op, self.variant, f"rows={self.rows}") if part)
        facts = {
            "op": self.op, "variant": self.variant, "rows": self.rows, "bytes": self.nbytes,
            "flops": self.flops, "kind": self.kind, "limit_us": 1e6 * self.least, "share": self.share,
            "GB/s": self.gigabytes_per_second, "GFLOP/s": self.gigaflops,
        }  # fmt: skip
        return Line(name, "us", [1e6 * each for each in self.times], "less", facts)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        low, high = np.percentile(self.times, [25, 75])
        spread = (high - low) / self.seconds
        return (
            f"{self.op:16} {self.variant:14} {self.rows:6} {self.microseconds:12.1f} {spread:7.1%} "
            f"{self.gigabytes_per_second:9.2f} {self.gigaflops:10.1f} {self.share:8.0%}"
        )


HEADER = (
    f"{'op':16} {'variant':14} {'rows':>6} {'us':>12} {'spread':>7} "
    f"{'GB/s':>9} {'GFLOP/s':>10} {'of limit':>8}"
)


def call_times(backend: Any, calls: list[Callable[[], object]], spend: float = SECONDS) -> list[float]:
    """Seconds of a call, of each of some runs through all of them."""
    from .. import _native

    recording = _native.Recording(backend, calls)
    once = max(recording.seconds(1), 1e-7)
    rounds = int(np.clip(spend / TRIES / once, 1, 10_000))
    tries = TRIES if once < spend else FEWEST
    return [recording.seconds(rounds) / rounds / len(recording) for _ in range(tries)]


def figures(
    op: str,
    cases: Cases,
    backend: Any,
    row_counts: Iterable[int],
    model: ModelConfig,
    limits: Limits,
    spend: float = SECONDS,
) -> Iterator[Figure]:
    """One op's measurements."""
    for rows in row_counts:
        for case in cases(backend, np.random.default_rng(0), rows, model):
            kind = case.kind or usual_kind(backend)
            times = call_times(backend, case.calls, spend)
            least = limits.seconds(case.nbytes, case.flops, kind)
            yield Figure(op, case.label, rows, times, case.nbytes, case.flops, kind, least)
