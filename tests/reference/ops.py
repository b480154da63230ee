"""Eight of the nine operations of a gpt-oss step (the ninth is in sample.py), on float64 arrays.

One function per op, under the op's name. Weights are [out, in]. An op that adds to the residual stream
returns what it adds. Attention sees one sequence with contiguous keys and values: pages are for tests.
"""

from __future__ import annotations

import numpy as np

from .rope import rotate


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def embed(token_ids: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[rows, hidden]"""
    return weight[token_ids]


def attention_in(residual, norm_weight, eps, q, k, v, positions, inv_freq, rope_scale):
    """Queries [rows, heads, head_dim], keys and values [rows, kv_heads, head_dim].

    q, k, v: (weight [out, hidden], bias [out]). positions: [rows].
    """
    x = rms_norm(residual, norm_weight, eps)
    head_dim = 2 * len(inv_freq)
    queries, keys, values = ((x @ w.T + b).reshape(len(x), -1, head_dim) for w, b in (q, k, v))
    return (
        rotate(queries, positions, inv_freq, rope_scale),
        rotate(keys, positions, inv_freq, rope_scale),
        values,
    )


def visible(query: int, key: int, window: int) -> bool:
    """Whether the query's position may look at the key's; a window of 0 is unlimited."""
    return key <= query and (window == 0 or query - key < window)


def paged_attention(queries, keys, values, sinks, window, power=1):
    """[rows, heads, head_dim]. The rows are the newest positions of the context.

    queries: [rows, heads, head_dim]. keys, values: [context, kv_heads, head_dim]. sinks: [heads], a logit per
    head that takes its share of the softmax and gives nothing. power: to which the shares are raised.
    """
    rows, heads, head_dim = queries.shape
    context, kv_heads, _ = keys.shape
    out = np.zeros((rows, heads, head_dim))
    for row in range(rows):
        position = context - rows + row
        seen = [j for j in range(context) if visible(position, j, window)]
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            logits = keys[seen, kv_head] @ queries[row, head] / np.sqrt(head_dim)
            share = softmax(np.append(logits, sinks[head]))[:-1]
            out[row, head] = share**power @ values[seen, kv_head]
    return out


def attention_out(attended, weight, bias):
    """What attention adds to the residual stream. attended: [rows, heads, head_dim]."""
    return attended.reshape(len(attended), -1) @ weight.T + bias


def router_logits(normed, router_weight, router_bias):
    return normed @ router_weight.T + router_bias


def moe_gate(residual, norm_weight, eps, router_weight, router_bias, chosen, boost=0.0, rank=0):
    """(normed [rows, hidden], expert ids [rows, chosen] by falling logit, their weights [rows, chosen]).

    boost, rank: [experts] or [rows, experts]; a higher rank goes before any logit.
    """
    normed = rms_norm(residual, norm_weight, eps)
    logits = router_logits(normed, router_weight, router_bias) + boost
    expert = np.lexsort((-logits, np.broadcast_to(-np.asarray(rank), logits.shape)), axis=-1)[:, :chosen]
    return normed, expert, softmax(np.take_along_axis(logits, expert, axis=-1))


def swiglu(gate, up, limit):
    """The gate is clamped from above only."""
    gate = np.minimum(gate, limit)
    up = np.clip(up, -limit, limit)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


def moe_up(normed, expert, weight, bias, limit):
    """[rows, chosen, inner]. weight: [experts, 2 inner, hidden], rows alternating gate and up."""
    out = np.zeros((*expert.shape, weight.shape[1] // 2))
    for row, experts in enumerate(expert):
        for slot, e in enumerate(experts):
            projected = weight[e] @ normed[row] + bias[e]
            out[row, slot] = swiglu(projected[0::2], projected[1::2], limit)
    return out


def moe_down(h, expert, routing_weight, weight, bias):
    """What the experts add to the residual stream. h: [rows, chosen, inner]."""
    out = np.zeros((len(h), weight.shape[1]))
    for row, experts in enumerate(expert):
        for slot, e in enumerate(experts):
            out[row] += routing_weight[row, slot] * (weight[e] @ h[row, slot] + bias[e])
    return out


def unembed(residual, norm_weight, eps, lm_head):
    """[rows, vocab]"""
    return rms_norm(residual, norm_weight, eps) @ lm_head.T
