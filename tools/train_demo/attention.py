"""Attention with a learned sink per head, forward and backward.

A sink is one more logit in the softmax whose value is zero. Given the plain result ``o`` and its log-sum-exp,
the result with a sink is ``o * exp(lse - lse')`` with ``lse' = logaddexp(lse, sink)``; and since the flash
backward pass uses only (output, lse), handing it the new pair gives the exact gradients.
"""

from __future__ import annotations

import math

import torch

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _SinkAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, mask, sinks):
        o, lse = _FORWARD(q, k, v, 0.0, False, attn_mask=mask)
        full = torch.logaddexp(lse, sinks.float()[None, :, None])
        o = (o.float() * torch.exp(lse - full).unsqueeze(-1)).to(q.dtype)
        ctx.save_for_backward(q, k, v, mask, o, full, sinks)
        return o

    @staticmethod
    def backward(ctx, grad):
        q, k, v, mask, o, full, sinks = ctx.saved_tensors
        dq, dk, dv = _BACKWARD(grad, q, k, v, o, full, 0.0, False, attn_mask=mask)
        inner = (grad.float() * o.float()).sum(-1)
        ds = -(torch.exp(sinks.float()[None, :, None] - full) * inner).sum((0, 2))
        return dq, dk, dv, None, ds.to(sinks.dtype)


def sink_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, sinks: torch.Tensor
) -> torch.Tensor:
    """q [B, H, T, D], k and v [B, H, S, D], mask [1, 1, T, S] of 0 and -1e30, sinks [H] -> [B, H, T, D]."""
    if q.device.type == "cpu":
        return _SinkAttention.apply(q, k, v, mask.to(q.dtype), sinks)
    s = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1]) + mask
    s = torch.cat((s, sinks.float()[None, :, None, None].expand(*s.shape[:3], 1)), -1)
    return torch.softmax(s, -1)[..., :-1].to(v.dtype) @ v
