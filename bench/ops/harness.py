"""Times one op on any device at a model's shapes, beside the limit of the device's memory and arithmetic.

Arguments lie on the device (`_native.Recording`), and weights rotate through more memory than the caches
hold, as the layers of a model do. Up to DECODING rows are one new token of as many sequences; more are one
prompt.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from gptoss_native import _native
from gptoss_native.config import KNOWN_CONFIGS, ModelConfig

HEAD_DIM = 64
BLOCK = 32
PAGE = 32
DECODING = 64
MOST_LOGIT_ROWS = 256  # a prompt wants the logits of its last row only
COLD_BYTES = 256 << 20  # weights of an op together: several times the last-level cache
SECONDS = 0.4  # spent on each figure
TRIES = 5

SHAPES: dict[str, ModelConfig] = {
    "20b": KNOWN_CONFIGS["openai/gpt-oss-20b"],
    "120b": KNOWN_CONFIGS["openai/gpt-oss-120b"],
    # For trying the benches out where the others take too long, such as on a simulated GPU.
    "tiny": replace(
        KNOWN_CONFIGS["openai/gpt-oss-20b"],
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=8,
        num_key_value_heads=1,
        num_local_experts=8,
        vocab_size=256,
        eos_token_ids=(),
        pad_token_id=None,
    ),
}


@dataclass
class Case:
    """One line of the table: calls to take in turn, each on other weights."""

    label: str
    calls: list[Callable[[], object]]
    nbytes: int  # that a call must move to or from memory, each once
    flops: int = 0


Cases = Callable[[Any, np.random.Generator, int, ModelConfig], Iterable[Case]]


@dataclass(frozen=True)
class Limits:
    """What a device can do at most, measured; flops is None where nobody has."""

    bandwidth: float  # bytes a second
    flops: float | None = None  # a second, bf16 products with float32 sums

    def seconds(self, nbytes: float, flops: float) -> float:
        """The least time in which so much can be moved and multiplied."""
        return max(nbytes / self.bandwidth, flops / self.flops if self.flops else 0.0)


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    op: str
    variant: str
    rows: int
    microseconds: float
    nbytes: int
    flops: int
    share: float  # of the limit: the least time over the time taken

    @property
    def gigabytes_per_second(self) -> float:
        return self.nbytes / self.microseconds / 1e3

    @property
    def teraflops(self) -> float:
        return self.flops / self.microseconds / 1e6

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.op:16} {self.variant:14} {self.rows:6} {self.microseconds:12.1f} "
            f"{self.gigabytes_per_second:9.2f} {self.teraflops:9.3f} {self.share:7.0%}"
        )


HEADER = f"{'op':16} {'variant':14} {'rows':>6} {'us':>12} {'GB/s':>9} {'TFLOP/s':>9} {'of limit':>8}"


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


def copies(backend: Any, nbytes: int) -> int:
    """How many sets of weights of this size make the caches useless; a simulated GPU has none."""
    return 1 if backend.device == "simt" else min(-(-COLD_BYTES // nbytes), 2048)


def is_decoded(rows: int) -> bool:
    return rows <= DECODING


def decode_rows(rows: int) -> int:
    """Of so many rows, those that are decoded."""
    return rows if is_decoded(rows) else 0


def batch(rows: int, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row_start, context, page table) of `rows` decoded sequences or one prompt, after `context` tokens."""
    sequences = rows if is_decoded(rows) else 1
    pages = -(-(context + rows // sequences) // PAGE)
    return (
        np.linspace(0, rows, sequences + 1).astype(np.int32),
        np.full(sequences, context, np.int32),
        np.arange(sequences * pages, dtype=np.int32).reshape(sequences, pages),
    )


def page_pool(backend: Any, make: Callable[..., np.ndarray], pages: int, kv_heads: int):
    """(keys, values) as the backend lays out its cache, filled by make(*shape)."""
    across, along = (pages, kv_heads, HEAD_DIM, PAGE), (pages, kv_heads, PAGE, HEAD_DIM)
    return (make(*across), make(*along)) if backend.keys_are_transposed else (make(*along), make(*across))


def seconds_per_call(backend: Any, calls: list[Callable[[], object]], spend: float = SECONDS) -> float:
    """Median seconds of a call, over some runs through all of them."""
    recording = _native.Recording(backend, calls)
    rounds = int(np.clip(spend / TRIES / max(recording.seconds(1), 1e-7), 1, 10_000))
    return float(np.median([recording.seconds(rounds) for _ in range(TRIES)])) / rounds / len(recording)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads of this host read together, the best of a few tries."""
    parts = np.array_split(np.ones(COLD_BYTES // 4, np.int64), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - begin))
    return best


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
            seconds = seconds_per_call(backend, case.calls, spend)
            share = limits.seconds(case.nbytes, case.flops) / seconds
            yield Figure(op, case.label, rows, seconds * 1e6, case.nbytes, case.flops, share)


def run(tables: dict[str, Cases], description: str | None = None) -> None:
    """The command line of one or all benches. `of limit`: of the bandwidth, and on a GPU of the arithmetic
    peak, measured just before."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=_native.devices(), default="cpu")
    parser.add_argument("--isa", nargs="+", choices=_native.cpu_isas(), default=_native.cpu_isas()[-1:])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 32, 256])
    parser.add_argument("--shape", choices=SHAPES, default="20b")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: all cores")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="spent on each figure")
    arguments = parser.parse_args()
    for isa in arguments.isa if arguments.device == "cpu" else [""]:
        backend = _native.Backend(device=arguments.device, threads=arguments.threads, isa=isa)
        if backend.memory is None:
            limits = Limits(read_bandwidth(backend.threads))
            print(f"{backend.device} {isa}, {backend.threads} threads")
        else:
            from bench.gpu.limits import measure_limits

            limits = measure_limits()
        print(f"bandwidth {limits.bandwidth / 1e9:.1f} GB/s", end="")
        print(f", {limits.flops / 1e12:.0f} TFLOP/s" if limits.flops else "")
        print(HEADER)
        for op, cases in tables.items():
            found = figures(
                op, cases, backend, arguments.rows, SHAPES[arguments.shape], limits, arguments.seconds
            )
            for figure in found:
                print(figure, flush=True)
