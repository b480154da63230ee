"""The whole model over one sequence: the released architecture on one page."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import ops
from .formats import bf16_to_float, mxfp4_to_float
from .rope import yarn


def decode(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float64 weights under the checkpoint's names; `*_blocks` and `*_scales` become one array."""
    weights = {}
    for name, array in arrays.items():
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            weights[stem] = mxfp4_to_float(array, arrays[stem + "_scales"])
        elif not name.endswith("_scales"):
            weights[name] = bf16_to_float(array)
    return weights


@dataclass
class Trace:
    """What a forward pass went through."""

    residual: list[np.ndarray] = field(default_factory=list)  # after the embedding and after each layer
    choices: list[tuple] = field(
        default_factory=list
    )  # of each layer: experts and their weights [rows, chosen]
    router_margin: float = np.inf  # smallest gap between the last expert chosen and the best one left out


def forward(
    config: dict, arrays: dict[str, np.ndarray], token_ids, trace: Trace | None = None, changes=(), added=()
) -> np.ndarray:
    """Logits [tokens, vocab] of one sequence.

    added: (name, array) that is added to a weight
    changes: (layer, vector [hidden], boost [experts], rank [experts]), None where there is none

    config: what `_native.Model` takes. arrays: Hugging Face names; bf16 as uint16, MXFP4 as uint8.
    """
    trace = trace or Trace()
    steering = {layer: vector for layer, vector, _, _ in changes if vector is not None}
    controls = {layer: (boost, rank) for layer, _, boost, rank in changes if boost is not None}
    w = decode(arrays)
    for name, array in added:
        w[name] = w[name] + array
    eps, limit = config["rms_norm_eps"], config["swiglu_limit"]
    inv_freq, rope_scale = yarn(config)
    positions = np.arange(len(token_ids))

    x = ops.embed(np.asarray(token_ids), w["model.embed_tokens.weight"])
    trace.residual.append(x)
    for layer, window in enumerate(config["windows"]):
        name = f"model.layers.{layer}."
        q, k, v, o = (
            (w[f"{name}self_attn.{p}_proj.weight"], w[f"{name}self_attn.{p}_proj.bias"]) for p in "qkvo"
        )
        queries, keys, values = ops.attention_in(
            x, w[name + "input_layernorm.weight"], eps, q, k, v, positions, inv_freq, rope_scale
        )
        attended = ops.paged_attention(queries, keys, values, w[name + "self_attn.sinks"], window)
        x = x + ops.attention_out(attended, *o)

        router, chosen = (
            (w[name + "mlp.router.weight"], w[name + "mlp.router.bias"]),
            config["num_experts_per_tok"],
        )
        norm = w[name + "post_attention_layernorm.weight"]
        boost, rank = controls.get(layer, (0.0, 0))
        normed, expert, routing_weight = ops.moe_gate(x, norm, eps, *router, chosen, boost, rank)
        trace.choices.append((expert, routing_weight))
        logits = ops.router_logits(normed, *router) + boost + 1e3 * np.asarray(rank)
        trace.router_margin = min(trace.router_margin, margin(logits, chosen))
        experts = name + "mlp.experts."
        h = ops.moe_up(normed, expert, w[experts + "gate_up_proj"], w[experts + "gate_up_proj_bias"], limit)
        x = x + ops.moe_down(
            h, expert, routing_weight, w[experts + "down_proj"], w[experts + "down_proj_bias"]
        )
        x = x + steering.get(layer, 0.0)
        trace.residual.append(x)
    return ops.unembed(x, w["model.norm.weight"], eps, w["lm_head.weight"])


def margin(logits: np.ndarray, chosen: int) -> float:
    """How far float32 may be off before a row of router logits [rows, experts] picks other experts."""
    if chosen == logits.shape[1]:
        return np.inf
    falling = -np.sort(-logits, axis=1)
    return float((falling[:, chosen - 1] - falling[:, chosen]).min())
