"""Times one op at the shapes of gpt-oss-20b and compares it with this machine's read bandwidth.

Weights rotate through more memory than the caches hold, as the layers of a model do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from gptoss_native import _native

HIDDEN = INNER = 2880
HEADS, KV_HEADS, HEAD_DIM = 64, 8, 64
EXPERTS, CHOSEN = 32, 4
VOCAB = 201_088
BLOCK = 32
ROWS = (1, 4, 32, 256)
COLD_BYTES = 256 << 20  # weights of an op together: several times the last-level cache
SECONDS = 0.4  # spent on each figure


@dataclass
class Case:
    """One line of the table: calls to take in turn, each on other weights."""

    label: str
    calls: list[Callable[[], object]]
    read: int  # bytes a call must fetch from memory
    flops: int = 0


Cases = Callable[[object, np.random.Generator, int], Iterable[Case]]


def values(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """float32; a short pool repeated, since a gigabyte of normal numbers takes longer than the bench."""
    pool = (rng.standard_normal(100_003) * scale).astype(np.float32)
    return np.resize(pool, shape)


def bf16(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """bf16 bit patterns of the size that trained weights have."""
    pool = (rng.standard_normal(100_003) * 0.02).astype(np.float32)
    return np.resize((pool.view(np.uint32) >> 16).astype(np.uint16), shape)


def linear(rng: np.random.Generator, out: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return bf16(rng, out, width), bf16(rng, out)


def copies(nbytes: int) -> int:
    """How many sets of weights of this size make the caches useless."""
    return max(1, -(-COLD_BYTES // nbytes))


def measure(calls: list[Callable[[], object]], clock: Callable[[], float] = time.perf_counter) -> float:
    """Median seconds of a call."""
    turn, times, start = cycle(calls), [], time.perf_counter()
    next(turn)()
    while time.perf_counter() - start < SECONDS or len(times) < 3:
        begin = clock()
        next(turn)()
        times.append(clock() - begin)
    return float(np.median(times))


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read together, the best of a few tries."""
    parts = np.array_split(np.ones(COLD_BYTES // 4, np.int64), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - begin))
    return best


def table(
    op: str,
    cases: Cases,
    isas: list[str],
    row_counts: Iterable[int],
    threads: int,
    clock: Callable[[], float],
) -> Iterator[str]:
    """The lines of one op's table."""
    for isa in isas:
        backend = _native.Backend(threads=threads, isa=isa)
        for rows in row_counts:
            bandwidth = read_bandwidth(backend.threads)
            for case in cases(backend, np.random.default_rng(0), rows):
                seconds = measure(case.calls, clock)
                share = f"{case.read / seconds / bandwidth:7.0%}" if rows == 1 else " " * 7
                yield (
                    f"{op:16} {case.label:12} {isa:9} {rows:5} {seconds * 1e6:12.1f} "
                    f"{case.read / seconds / 1e9:8.2f} {case.flops / seconds / 1e9:10.1f} {share}"
                )


HEADER = (
    f"{'op':16} {'variant':12} {'isa':9} {'rows':>5} {'us':>12} {'GB/s':>8} {'GFLOP/s':>10} {'of read':>7}"
)


def run(tables: dict[str, Cases], description: str | None = None) -> None:
    """The command line of one or all benches. `of read`: share of the read bandwidth measured just before."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--isa", nargs="+", choices=_native.cpu_isas(), default=_native.cpu_isas()[-1:])
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--cpu-time", action="store_true", help="on a shared machine: 1 thread, its own time")
    arguments = parser.parse_args()
    clock = time.perf_counter
    if arguments.cpu_time:  # more threads would also be charged for spinning
        arguments.threads, clock = 1, time.thread_time
    backend = _native.Backend(threads=arguments.threads)
    print(f"{backend.threads} threads, read bandwidth {read_bandwidth(backend.threads) / 1e9:.1f} GB/s")
    print(HEADER)
    for op, cases in tables.items():
        for line in table(op, cases, arguments.isa, arguments.rows, arguments.threads, clock):
            print(line, flush=True)
