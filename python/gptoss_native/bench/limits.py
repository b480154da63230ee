"""What this machine can do at most, measured in the run whose figures are compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError
from .report import Line

CPU_KINDS = ("f32", "int8")
READ_BYTES = 256 << 20  # several times a last-level cache
PEAK_SECONDS = 0.05  # of each try of an arithmetic peak


@dataclass(frozen=True)
class Limits:
    """bandwidth: bytes a second. peaks: operations a second by the kind of numbers multiplied, "f32" and
    "int8" on a CPU, "bf16" on a GPU, a multiply-add counting 2; what nobody has measured is not there.
    """

    bandwidth: float
    peaks: Mapping[str, float]

    def seconds(self, nbytes: float, flops: float, kind: str) -> float:
        """The least time in which so much can be moved and multiplied."""
        peak = self.peaks.get(kind)
        return max(nbytes / self.bandwidth, flops / peak if peak else 0.0)

    def ridge(self, kind: str) -> float:
        """Operations a byte from which on arithmetic is what limits."""
        return self.peaks[kind] / self.bandwidth


def usual_kind(backend: Any) -> str:
    """Of the numbers that a backend multiplies where an op says nothing else."""
    return "f32" if backend.has_exact else "bf16"


def measure_limits(backend: Any) -> list[Line]:
    """Lines named "read bandwidth" ("copy bandwidth" of a GPU) and "peak KIND".

    On a CPU with the backend's own threads and instruction set, so that the limit is of what the ops may use.
    """
    if backend.device == "cpu":
        found = [Line("read bandwidth", "B/s", backend.read_bandwidth(READ_BYTES), "more")]
        return found + [
            Line(f"peak {kind}", "op/s", backend.peak(kind, PEAK_SECONDS), "more") for kind in CPU_KINDS
        ]
    if backend.device == "cuda":
        from .gpu_limits import measure_gpu

        return measure_gpu()
    raise RequestError(f"device is {backend.device!r}, whose limits mean nothing; use cpu or cuda")


def limits_of(lines: list[Line]) -> Limits:
    """The best that each was seen to reach: a disturbance only ever takes away."""
    peaks = {line.name[5:]: max(line.values) for line in lines if line.name.startswith("peak ")}
    return Limits(max(max(line.values) for line in lines if line.unit == "B/s"), peaks)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads of this host read together, the best of a few tries."""
    from .. import _native

    return max(_native.Backend("cpu", threads=threads).read_bandwidth(READ_BYTES))
