"""What engines are asked in turn, and what their answers come to."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from bench.peers.engines import OURS

DECODINGS = 3  # in a round, as they are short
STEADY = 1.1  # the most that the bandwidth changes by around an answer that counts as steady
APART = 1.4  # from so much on, memory has had two speeds in a run


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


class Like(NamedTuple):
    """Answers at about the same bandwidth, bytes a second: the seconds of each."""

    bandwidth: float
    own: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times as long the peer took, of medians."""
        return statistics.median(self.theirs) / statistics.median(self.own)


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

    def at_like_bandwidth(self, what: str, peer: str) -> list[Like]:
        """The answers around which the bandwidth stayed what it was, the slow ones and the fast ones apart.

        Those of one speed are compared whenever they came: where memory changes its speed, engines that are
        started in turn, and many a pair, have met two.
        """
        steady = {name: self._steady(what, name) for name in (OURS, peer)}
        seen = [bandwidth for answers in steady.values() for bandwidth, _ in answers]
        if not seen:
            return []
        apart = max(seen) >= APART * min(seen)
        border = math.sqrt(min(seen) * max(seen))
        bands = [(0.0, border), (border, math.inf)] if apart else [(0.0, math.inf)]
        found = []
        for low, high in bands:
            of = {name: [a for a in answers if low <= a[0] < high] for name, answers in steady.items()}
            if all(of.values()):
                bandwidth = statistics.median(b for answers in of.values() for b, _ in answers)
                seconds = {name: tuple(time for _, time in answers) for name, answers in of.items()}
                found.append(Like(bandwidth, seconds[OURS], seconds[peer]))
        return found

    def _steady(self, what: str, name: str) -> list[tuple[float, float]]:
        """(bandwidth, seconds) of each answer around which it stayed within a tenth."""
        answers = zip(self.around[what][name], self.seconds[what][name], strict=True)
        return [(statistics.mean(b), time) for b, time in answers if max(b) <= STEADY * min(b)]


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
