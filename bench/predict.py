"""What a GPU should take for each op of a step, from bytes, products and launches: python -m bench.predict

The bytes are those of the checkpoint (a test counts both). A batch of B tokens chooses E (1 - (1 - 4/E)^B) of
E experts on average. An op takes the longer of its bytes at REACHED of the bandwidth and its products at
REACHED_FLOPS of the peak, or LEAST; programmatic dependent launch hides all but BOUNDARY of the time between
two kernels. These four numbers are guesses from what others have measured; a run on a GPU says how wrong they
are.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from gptoss_native.config import KNOWN_CONFIGS, ModelConfig

REACHED, REACHED_FLOPS = 0.90, 0.55
BOUNDARY, LEAST = 1.3e-6, 2.0e-6  # seconds
HEAD_DIM, MXFP4 = 64, 17 / 32  # bytes a weight
MODELS = {name.split("-")[-1]: config for name, config in KNOWN_CONFIGS.items() if name.startswith("openai/")}


@dataclass(frozen=True)
class Gpu:
    name: str
    bandwidth: float  # bytes a second
    flops: float  # bf16, a second


H100 = Gpu("H100 SXM", 3.35e12, 989e12)


def experts_read(model: ModelConfig, rows: int) -> float:
    """Experts that at least one of `rows` tokens chooses, on average over even routings."""
    missed = 1 - model.num_experts_per_tok / model.num_local_experts
    return model.num_local_experts * (1 - missed**rows)


def op_costs(
    model: ModelConfig, rows: int, context: int, is_prompt: bool
) -> dict[str, tuple[float, float, int]]:
    """op -> (bytes, floating point operations, how often in a step), for `rows` tokens of a step.

    Decoding: as many sequences, each after `context` tokens. A prompt: one sequence, its tokens after
    `context`.
    """
    hidden, inner, layers = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    q, kv = model.num_attention_heads * HEAD_DIM, model.num_key_value_heads * HEAD_DIM
    experts, chosen = experts_read(model, rows), model.num_experts_per_tok
    sequences = 1 if is_prompt else rows
    sliding = sum(kind == "sliding_attention" for kind in model.layer_types) / layers
    new = rows / sequences

    def seen(window: float) -> float:  # positions that one row looks at, on average
        return min(context + (new + 1) / 2, window)

    def kept(window: float) -> float:  # positions that are read, of one sequence
        return min(context + new, window + new - 1)

    window, wide = model.sliding_window, float("inf")
    fetched = sequences * 4 * kv * (sliding * kept(window) + (1 - sliding) * kept(wide))
    scores = rows * 4 * q * (sliding * seen(window) + (1 - sliding) * seen(wide))
    qkv = q + 2 * kv
    logits = 1 if is_prompt else rows
    return {
        "embed": (2 * rows * hidden + 4 * rows * hidden, 0, 1),
        "attention_in": (2 * hidden * qkv + 2 * qkv + 2 * hidden, 2 * rows * hidden * qkv, layers),
        "paged_attention": (fetched, scores, layers),
        "attention_out": (2 * q * hidden + 2 * hidden, 2 * rows * q * hidden, layers),
        "moe_gate": (
            2 * model.num_local_experts * (hidden + 1) + 2 * hidden,
            2 * rows * hidden * model.num_local_experts,
            layers,
        ),
        "moe_up": (
            experts * 2 * inner * (hidden * MXFP4 + 2),
            2 * rows * chosen * 2 * inner * hidden,
            layers,
        ),
        "moe_down": (experts * hidden * (inner * MXFP4 + 2), 2 * rows * chosen * inner * hidden, layers),
        "unembed": (2 * model.vocab_size * hidden + 2 * hidden, 2 * logits * model.vocab_size * hidden, 1),
        "sample": (4 * logits * model.vocab_size, 0, 1),
    }


def decode_bytes(model: ModelConfig, rows: int, context: int) -> float:
    """Bytes that a step of `rows` decoded tokens must read."""
    costs = op_costs(model, rows, context, is_prompt=False)
    return sum(nbytes * times for op, (nbytes, _, times) in costs.items() if op not in ("embed", "sample"))


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
