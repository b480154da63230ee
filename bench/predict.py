"""What a GPU should take for each op of a step, from bytes, products and launches: python -m bench.predict

An op is a few launches. Each takes the longest of its bytes at REACHED of the bandwidth, its products at a
share of the peak, and LEAST; programmatic dependent launch hides all but BOUNDARY of the time between two
kernels. What any kernel must read and multiply is counted by gptoss_native.bench.costs; what ours do beside
that is counted here: norms and roundings of their own, partial results, tiles that are not full. The numbers
under "guesses" come from what others have measured, those under "kernels" describe csrc/cuda and change with
it. A run on a GPU says how wrong they are.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from gptoss_native.bench.costs import MODELS, decode_bytes, op_costs
from gptoss_native.config import HEAD_DIM, ModelConfig

# Guesses.
REACHED, REACHED_FLOPS = 0.90, 0.55  # of the bandwidth; of the peak, by a GEMM of a prompt
ATTENTION_FLOPS = 0.40  # of the peak, by prompt_attention: softmax beside its products
FP32_FLOPS = 0.5  # of the peak of fused multiply-adds, by the router of a prompt and the sampler
BOUNDARY, LEAST = 1.3e-6, 2.0e-6  # seconds
GROUPED = 0.5e-9  # seconds an assignment, by the one block of moe_gate that groups all

# Kernels.
NORM_HERE_ROWS = 2  # up to so many rows, attention_in norms them itself
TILES = {48: 32, 192: 64, math.inf: 128}  # tokens of a tile of experts that have fewer on average
ROUND_ABOVE = 8  # decoded rows that attention_out rounds first, in a launch of its own
ATTENTION_ROWS, ATTENTION_KEYS = 128, 64  # (position, head) pairs and keys of a tile of prompt_attention
CHUNK, SHORT_END, LONG_CHUNK = 256, 8192, 1024  # keys of a block that decodes; the second is where they grow
DRAW = 100  # instructions a token, for its noise and its score
STATE_BYTES = 4 * (2 + HEAD_DIM)  # of what it leaves of each head


@dataclass(frozen=True)
class Gpu:
    name: str
    bandwidth: float  # bytes a second
    flops: float  # bf16 by tensor cores, a second
    fp32_flops: float  # without them


@dataclass(frozen=True)
class Launch:
    nbytes: float
    flops: float = 0.0
    reached: float = REACHED_FLOPS
    fp32: bool = False
    more: float = 0.0  # seconds in which the rest waits

    def seconds(self, gpu: Gpu) -> float:
        """The boundary to the next included."""
        peak = gpu.fp32_flops if self.fp32 else gpu.flops
        work = max(self.nbytes / (gpu.bandwidth * REACHED), self.flops / (peak * self.reached))
        return max(work + self.more, LEAST) + BOUNDARY


H100 = Gpu("H100 SXM", 3.35e12, 989e12, 67e12)
Op = tuple[list[Launch], int]  # and how often in a step


def tiles_of(rows: int, share: float, tokens: int) -> float:
    """Tiles of `tokens` that an expert has on average; each of `rows` chooses it with probability `share`."""
    log, found, tiles = math.lgamma, 0.0, 0.0
    for n in range(rows + 1):
        choices = log(rows + 1) - log(n + 1) - log(rows - n + 1)
        found += math.exp(choices + n * math.log(share) + (rows - n) * math.log1p(-share))
        if n % tokens == 0:
            tiles += max(0.0, 1.0 - found)  # of the experts that have more than n
    return tiles


def padding(model: ModelConfig, rows: int) -> float:
    """By how much the tiles of a prompt's experts multiply more than there is."""
    share = model.num_experts_per_tok / model.num_local_experts
    tokens = next(tile for below, tile in TILES.items() if rows * share < below)
    return tiles_of(rows, share, tokens) * tokens / (rows * share)


def attention_padding(model: ModelConfig, rows: int, context: int) -> float:
    """The same of prompt_attention: whole tiles, of which the causal mask and the window leave a part."""
    positions = ATTENTION_ROWS * model.num_key_value_heads // model.num_attention_heads
    edge = (positions + ATTENTION_KEYS) / 2  # computed and masked, at either end
    computed = needed = 0.0
    for kind in model.layer_types:
        all_of_it = context + (rows + 1) / 2
        window = model.sliding_window if kind == "sliding_attention" else math.inf
        seen = min(all_of_it, window)
        computed += seen + edge * (2 if window < all_of_it else 1)
        needed += seen
    return computed / needed


def attention_states(model: ModelConfig, rows: int, context: int) -> float:
    """Bytes, a layer on average, that the chunks of decoded rows' contexts leave and the last blocks read."""

    def chunks(keys: float) -> int:
        return math.ceil(min(keys, SHORT_END) / CHUNK) + math.ceil(max(0, keys - SHORT_END) / LONG_CHUNK)

    seen = [
        min(context + 1, model.sliding_window) if kind == "sliding_attention" else context + 1
        for kind in model.layer_types
    ]
    total = sum(chunks(keys) for keys in seen if keys > CHUNK)
    return 2 * rows * model.num_attention_heads * STATE_BYTES * total / len(seen)


def step_ops(model: ModelConfig, rows: int, context: int, is_prompt: bool) -> dict[str, Op]:
    """The launches of each op of a step, see op_costs."""
    costs = op_costs(model, rows, context, is_prompt)
    hidden, inner, vocab = model.hidden_size, model.intermediate_size, model.vocab_size
    q, kv = model.num_attention_heads * HEAD_DIM, model.num_key_value_heads * HEAD_DIM
    assignments, logits = rows * model.num_experts_per_tok, 1 if is_prompt else rows
    experts = padding(model, rows) if is_prompt else 1.0
    residual = 8 * rows * hidden  # read and written
    norm = Launch(6 * rows * hidden)  # float in, bf16 out

    def product(op: str, nbytes: float, times: float = 1.0) -> Launch:
        return Launch(costs[op][0] + nbytes, costs[op][1] * times)

    normed = [] if not is_prompt and rows <= NORM_HERE_ROWS else [norm]
    attention_in = [*normed, product("attention_in", 2 * rows * hidden + 4 * rows * q + 4 * rows * kv)]
    queries = 8 * rows * q  # in float, as is what attention finds
    rounding = [Launch(6 * rows * q)] if is_prompt or rows > ROUND_ABOVE else []
    attention_out = [*rounding, product("attention_out", 2 * rows * q + residual)]
    up, down = 2 * assignments * (hidden + inner), 2 * assignments * inner
    if is_prompt:
        scores = costs["paged_attention"][1] * attention_padding(model, rows, context)
        attention = [Launch(costs["paged_attention"][0] + queries, scores, ATTENTION_FLOPS)]
        gate = Launch(  # the router is read again and again, from the L2 cache
            6 * rows * hidden, costs["moe_gate"][1], FP32_FLOPS, fp32=True, more=GROUPED * assignments
        )
        partial = 4 * assignments * hidden
        moe_down = [product("moe_down", down + partial, experts), Launch(partial + residual)]
    else:
        states = attention_states(model, rows, context)
        attention = [Launch(costs["paged_attention"][0] + queries + states)]
        gate = Launch(costs["moe_gate"][0] + 6 * rows * hidden, more=GROUPED * assignments)
        moe_down = [product("moe_down", down + 8 * assignments * hidden + residual)]
    ops = {
        "embed": [Launch(costs["embed"][0])],
        "attention_in": attention_in,
        "paged_attention": attention,
        "attention_out": attention_out,
        "moe_gate": [gate],
        "moe_up": [product("moe_up", up, experts)],
        "moe_down": moe_down,
        "unembed": [Launch(6 * logits * hidden), product("unembed", 4 * logits * vocab)],
        "sample": [Launch(costs["sample"][0], 2 * DRAW * logits * vocab, FP32_FLOPS, fp32=True)],
    }
    return {op: (launches, costs[op][2]) for op, launches in ops.items()}


def op_seconds(launches: list[Launch], gpu: Gpu) -> float:
    return sum(launch.seconds(gpu) for launch in launches)


def step_seconds(model: ModelConfig, rows: int, context: int, is_prompt: bool, gpu: Gpu = H100) -> float:
    ops = step_ops(model, rows, context, is_prompt).values()
    return sum(times * op_seconds(launches, gpu) for launches, times in ops)


def table(model: ModelConfig, steps: list[tuple[int, int, bool]], gpu: Gpu = H100) -> str:
    """Markdown: microseconds of each op in each step (rows, context, is_prompt), and tokens a second."""
    names = [f"{'prompt' if prompt else 'B ='} {rows}" for rows, _, prompt in steps]
    lines = [f"| op (us a time, {gpu.name}) | {' | '.join(names)} |", "|---" * (len(steps) + 1) + "|"]
    ops = [step_ops(model, *step) for step in steps]
    for op in ops[0]:
        cells = [f"{1e6 * op_seconds(step[op][0], gpu):.1f}" for step in ops]
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
