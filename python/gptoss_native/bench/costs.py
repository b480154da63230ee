"""What a step must read and multiply, op by op, and so what it takes at least.

The bytes are those of the checkpoint (a test counts both). A batch of B tokens chooses E (1 - (1 - 4/E)^B) of
E experts on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..checkpoint import Checkpoint
from ..config import HEAD_DIM, KNOWN_CONFIGS, ModelConfig
from ..dense_forms import DENSE_BYTES, SCREEN_BYTES
from .limits import Limits

MXFP4 = 17 / 32  # bytes a weight
MODELS = {name.split("-")[-1]: config for name, config in KNOWN_CONFIGS.items() if name.startswith("openai/")}
EXPERT_OPS = ("moe_up", "moe_down")
DENSE_OPS = ("attention_in", "attention_out", "unembed")
Costs = dict[str, tuple[float, float, int]]  # op -> (bytes, floating point operations, how often in a step)


def experts_read(model: ModelConfig, rows: int) -> float:
    """Experts that at least one of `rows` tokens chooses, on average over even routings."""
    missed = 1 - model.num_experts_per_tok / model.num_local_experts
    return model.num_local_experts * (1 - missed**rows)


class NumberBytes(NamedTuple):
    """Bytes of the numbers that a step reads."""

    cached: float = 2  # of an element of the key/value cache
    dense: float = 2  # of a weight of attention
    head: float = 2  # of a weight of lm_head


SIXTEEN_BITS = NumberBytes()  # as a GPU has them


@dataclass(frozen=True)
class Formats:
    """In what numbers a model is computed."""

    device: str
    numerics: str = "fast"
    dense_dtype: str = "bf16"

    @property
    def number_bytes(self) -> NumberBytes:
        """Where tokens are drawn, a CPU looks at 6 bits of lm_head (csrc/cpu/screen.h)."""
        dense = DENSE_BYTES[self.dense_dtype]
        head = SCREEN_BYTES if self.device == "cpu" else dense
        return NumberBytes(4 if self.numerics == "exact" else 2, dense, head)

    def kind(self, op: str) -> str:
        """The numbers that an op multiplies: see Limits."""
        if self.device != "cpu":
            return "bf16"
        in_bytes = (*EXPERT_OPS, *(DENSE_OPS if self.dense_dtype == "q8" else ()))
        return "int8" if op == "unembed" or (self.numerics == "fast" and op in in_bytes) else "f32"


def op_costs(
    model: ModelConfig,
    rows: int,
    context: int,
    is_prompt: bool,
    numbers: NumberBytes = SIXTEEN_BITS,
) -> Costs:
    """Of a step of `rows` tokens.

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
    fetched = sequences * 2 * numbers.cached * kv * (sliding * kept(window) + (1 - sliding) * kept(wide))
    scores = rows * 4 * q * (sliding * seen(window) + (1 - sliding) * seen(wide))
    qkv = q + 2 * kv
    logits = 1 if is_prompt else rows
    return {
        "embed": (2 * rows * hidden + 4 * rows * hidden, 0, 1),
        "attention_in": (
            numbers.dense * hidden * qkv + 2 * qkv + 2 * hidden,
            2 * rows * hidden * qkv,
            layers,
        ),
        "paged_attention": (fetched, scores, layers),
        "attention_out": (numbers.dense * q * hidden + 2 * hidden, 2 * rows * q * hidden, layers),
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
        "unembed": (
            numbers.head * model.vocab_size * hidden + 2 * hidden,
            2 * logits * model.vocab_size * hidden,
            1,
        ),
        "sample": (4 * logits * model.vocab_size, 0, 1),
    }


def decode_bytes(
    model: ModelConfig,
    rows: int,
    context: int,
    numbers: NumberBytes = SIXTEEN_BITS,
) -> float:
    """Bytes that a step of `rows` decoded tokens must read."""
    return bytes_of(op_costs(model, rows, context, False, numbers))


def prompt_costs(
    model: ModelConfig,
    length: int,
    chunk: int,
    numbers: NumberBytes = SIXTEEN_BITS,
) -> list[Costs]:
    """Costs of the steps that compute a prompt; only the last has logits."""
    found = []
    for start in range(0, length, chunk):
        rows = min(chunk, length - start)
        step = op_costs(model, rows, start, True, numbers)
        if start + rows < length:
            del step["unembed"], step["sample"]
        found.append(step)
    return found


def least_seconds(costs: Costs, limits: Limits, formats: Formats) -> float:
    """Of a step whose ops take the longer of their bytes at the bandwidth and their products at the peak."""
    return sum(
        times * limits.seconds(nbytes, flops, formats.kind(op))
        for op, (nbytes, flops, times) in costs.items()
    )


def flop_seconds(costs: Costs, limits: Limits, formats: Formats) -> float:
    """Of a step's products at the peak; 0 where no peak has been measured."""
    total = 0.0
    for op, (_, flops, times) in costs.items():
        peak = limits.peaks.get(formats.kind(op))
        total += times * flops / peak if peak else 0.0
    return total


def bytes_of(costs: Costs) -> float:
    """Bytes that a step must read: weights, keys and values."""
    return sum(nbytes * times for op, (nbytes, _, times) in costs.items() if op not in ("embed", "sample"))


def token_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the files that one decoded token reads: all but the embedding and the experts not chosen."""
    config = checkpoint.config
    total = 0
    for name, array in checkpoint.arrays().items():
        if name == "model.embed_tokens.weight":
            continue
        share = config.num_experts_per_tok / config.num_local_experts if ".experts." in name else 1
        total += int(array.nbytes * share)
    return total
