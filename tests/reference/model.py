"""The whole model over one sequence: the released architecture on one page."""

from __future__ import annotations

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


def forward(config: dict, arrays: dict[str, np.ndarray], token_ids, hidden_states: bool = False):
    """Logits [tokens, vocab] of one sequence; with `hidden_states`, also the residual stream after the
    embedding and after each layer.

    config: what `_native.Model` takes. arrays: Hugging Face names; bf16 as uint16, MXFP4 as uint8.
    """
    w = decode(arrays)
    eps, limit = config["rms_norm_eps"], config["swiglu_limit"]
    inv_freq, rope_scale = yarn(config)
    positions = np.arange(len(token_ids))

    x = ops.embed(np.asarray(token_ids), w["model.embed_tokens.weight"])
    states = [x]
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

        normed, expert, routing_weight = ops.moe_gate(
            x,
            w[name + "post_attention_layernorm.weight"],
            eps,
            w[name + "mlp.router.weight"],
            w[name + "mlp.router.bias"],
            config["num_experts_per_tok"],
        )
        experts = name + "mlp.experts."
        h = ops.moe_up(normed, expert, w[experts + "gate_up_proj"], w[experts + "gate_up_proj_bias"], limit)
        x = x + ops.moe_down(
            h, expert, routing_weight, w[experts + "down_proj"], w[experts + "down_proj_bias"]
        )
        states.append(x)
    logits = ops.unembed(x, w["model.norm.weight"], eps, w["lm_head.weight"])
    return (logits, states) if hidden_states else logits
