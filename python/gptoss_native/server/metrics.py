"""What /metrics tells Prometheus: counters, gauges and histograms in its text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
PREFIX = "gptoss_native_"


class Histogram:
    """Counts of values up to each bound."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        found, total = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self.sum}", f"{name}_count {total}"]


class Metrics:
    """What has happened since the start."""

    def __init__(self) -> None:
        self.first_token, self.between_tokens, self.whole = Histogram(), Histogram(), Histogram()
        self.finished: Counter[str] = Counter()  # answers by finish reason
        self.responses: Counter[int] = Counter()  # by HTTP status
        self.generated_tokens = 0

    def text(self, stats: Mapping[str, int]) -> str:
        """The page; `stats` are AsyncLLM's."""
        lines: list[str] = []
        totals = {"prompt_tokens", "cached_prompt_tokens", "preemptions", "steps"}
        for name, value in stats.items():
            counts = name in totals or name.startswith("spec_decode_")
            kind, suffix = ("counter", "_total") if counts else ("gauge", "")
            lines += [f"# TYPE {PREFIX}{name}{suffix} {kind}", f"{PREFIX}{name}{suffix} {value}"]
        asked = stats["prompt_tokens"]
        hits = stats["cached_prompt_tokens"] / asked if asked else 0.0
        lines += [f"# TYPE {PREFIX}prefix_hit_ratio gauge", f"{PREFIX}prefix_hit_ratio {hits}"]
        name = f"{PREFIX}generation_tokens_total"
        lines += [f"# TYPE {name} counter", f"{name} {self.generated_tokens}"]
        for name, label, counts in (
            ("answers_total", "finish_reason", self.finished),
            ("responses_total", "status", self.responses),
        ):
            lines.append(f"# TYPE {PREFIX}{name} counter")
            lines += [f'{PREFIX}{name}{{{label}="{key}"}} {count}' for key, count in sorted(counts.items())]
        lines += self.first_token.lines(f"{PREFIX}time_to_first_token_seconds")
        lines += self.between_tokens.lines(f"{PREFIX}inter_token_latency_seconds")
        lines += self.whole.lines(f"{PREFIX}request_seconds")
        return "\n".join(lines) + "\n"
