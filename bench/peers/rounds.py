"""What engines are asked in turn, and what their answers come to."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from bench.peers.engines import OURS

DECODINGS = 3  # in a round, as they are short
STEADY = 1.1  # the most that the bandwidth around a steady pair changes by


class Asked(Protocol):
    """An engine, see protocol.Process."""

    def ask(self, line: str) -> float: ...


@dataclass(frozen=True)
class Work:
    """What an engine is asked, and how many tokens that makes. is_short: decoding without a long prompt."""

    line: str
    tokens: int
    is_short: bool = False


WORK = {
    "prefill 512": Work("prefill 512", 512),
    "prefill 128": Work("prefill 128", 128),
    "decode": Work("decode 16 32", 32, is_short=True),
}
LONG = {"decode at 4k": Work("decode 4000 16", 16)}  # a minute and more each time, for the prompt
CONTEXT = 4096 + 64


@dataclass
class Found:
    """seconds: work -> engine -> of each time. around: likewise, the bandwidth before and after.

    shares: engine -> of the bandwidth. peaks: engine -> bytes.
    """

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    around: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)

    def rate(self, what: str, name: str, tokens: int) -> float:
        """Tokens a second."""
        return tokens / statistics.median(self.seconds[what][name])

    def ratios(self, what: str, peer: str) -> list[float]:
        """How many times as long the peer took, of each round's pair."""
        pairs = zip(self.seconds[what][OURS], self.seconds[what][peer], strict=True)
        return [theirs / own for own, theirs in pairs]

    def steady_ratios(self, what: str, peer: str) -> list[float]:
        """Of the pairs around which the bandwidth stayed what it was."""
        around = zip(self.around[what][OURS], self.around[what][peer], strict=True)
        same = [max(own + theirs) <= STEADY * min(own + theirs) for own, theirs in around]
        return [ratio for ratio, is_same in zip(self.ratios(what, peer), same, strict=True) if is_same]


def measure(
    engines: dict[str, Asked],
    work: dict[str, Work],
    rounds: int,
    bandwidth: Callable[[], float],
    token_bytes: Mapping[str, float],
    found: Found,
) -> None:
    """Ask all engines for each work in turn; the bandwidth is measured around each answer.

    token_bytes: that a decoded token reads, of the engines whose share of the bandwidth is wanted
    """
    for engine in engines.values():
        for each in work.values():
            engine.ask(each.line)  # once for the caches
    for _ in range(rounds):
        for what, each in work.items():
            for name, engine in list(engines.items()) * (DECODINGS if each.is_short else 1):
                before = bandwidth()
                seconds = engine.ask(each.line)
                around = before, bandwidth()
                found.bandwidths += around
                found.around.setdefault(what, {}).setdefault(name, []).append(around)
                found.seconds.setdefault(what, {}).setdefault(name, []).append(seconds)
                if each.is_short and name in token_bytes:
                    rate = each.tokens * token_bytes[name] / seconds
                    found.shares.setdefault(name, []).append(rate / statistics.mean(around))
    for name, engine in engines.items():
        found.peaks[name] = max(found.peaks.get(name, 0), engine.ask("peak"))


def agreement(engines: dict[str, Asked], vocab: int) -> dict[str, float]:
    """How far each peer's logits are from ours, as a share of their norm: they must be of the same numbers.

    The median of several prompts: where rounding tips the choice of an expert, one may be far off, above all
    with random weights.
    """
    tokens = np.random.default_rng(1).integers(0, min(vocab, 199_998), 48)
    apart: dict[str, list[float]] = {name: [] for name in engines if name != OURS}
    with tempfile.TemporaryDirectory() as folder:
        for end in range(8, 49, 5):
            found = {}
            for name, engine in engines.items():
                path = Path(folder) / f"{name}.npy"
                np.save(path, tokens[:end])
                engine.ask(f"logits {path}")
                found[name] = np.load(f"{path}.out.npy")
            for name, distances in apart.items():
                distances.append(
                    float(np.linalg.norm(found[OURS] - found[name]) / np.linalg.norm(found[OURS]))
                )
    return {name: statistics.median(distances) for name, distances in apart.items()}
