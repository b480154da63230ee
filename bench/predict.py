"""What a GPU should take for each op of a step, from bytes, products and launches: python -m bench.predict

Bytes and products are counted by gptoss_native.bench.costs. An op takes the longer of its bytes at REACHED of
the bandwidth and its products at REACHED_FLOPS of the peak, or LEAST; programmatic dependent launch hides all
but BOUNDARY of the time between two kernels. These four numbers are guesses from what others have measured; a
run on a GPU says how wrong they are.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from gptoss_native.bench.costs import MODELS, decode_bytes, op_costs
from gptoss_native.config import ModelConfig

REACHED, REACHED_FLOPS = 0.90, 0.55
BOUNDARY, LEAST = 1.3e-6, 2.0e-6  # seconds


@dataclass(frozen=True)
class Gpu:
    name: str
    bandwidth: float  # bytes a second
    flops: float  # bf16, a second


H100 = Gpu("H100 SXM", 3.35e12, 989e12)


def op_seconds(nbytes: float, flops: float, gpu: Gpu) -> float:
    """One launch of an op, the boundary to the next included."""
    work = max(nbytes / (gpu.bandwidth * REACHED), flops / (gpu.flops * REACHED_FLOPS))
    return max(work, LEAST) + BOUNDARY


def step_seconds(model: ModelConfig, rows: int, context: int, is_prompt: bool, gpu: Gpu = H100) -> float:
    costs = op_costs(model, rows, context, is_prompt).values()
    return sum(times * op_seconds(nbytes, flops, gpu) for nbytes, flops, times in costs)


def table(model: ModelConfig, steps: list[tuple[int, int, bool]], gpu: Gpu = H100) -> str:
    """Markdown: microseconds of each op in each step (rows, context, is_prompt), and tokens a second."""
    names = [f"{'prompt' if prompt else 'B ='} {rows}" for rows, _, prompt in steps]
    lines = [f"| op (us a launch, {gpu.name}) | {' | '.join(names)} |", "|---" * (len(steps) + 1) + "|"]
    costs = [op_costs(model, *step) for step in steps]
    for op in costs[0]:
        cells = [f"{1e6 * op_seconds(*cost[op][:2], gpu):.1f}" for cost in costs]
        lines.append(f"| `{op}` | {' | '.join(cells)} |")
    seconds = [step_seconds(model, *step, gpu) for step in steps]
    lines.append("| step, ms | " + " | ".join(f"{1e3 * s:.2f}" for s in seconds) + " |")
    rates = [rows / s for (rows, _, _), s in zip(steps, seconds, strict=True)]
    lines.append("| tokens a second | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")
    shares = []
    for (rows, context, prompt), s in zip(steps, seconds, strict=True):
        if prompt:
            flops = sum(cost * times for _, cost, times in op_costs(model, rows, context, prompt).values())
            shares.append(f"{flops / gpu.flops / s:.0%} of peak")
        else:
            shares.append(f"{decode_bytes(model, rows, context) / gpu.bandwidth / s:.0%} of bandwidth")
    return "\n".join([*lines, "| of the limit | " + " | ".join(shares) + " |"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="20b")
    parser.add_argument("--context", type=int, default=1024, help="tokens before each decoded one")
    arguments = parser.parse_args()
    decoding = [(rows, arguments.context, False) for rows in (1, 8, 32, 64)]
    print(table(MODELS[arguments.model], [*decoding, (2048, 0, True), (8192, 0, True)]))
