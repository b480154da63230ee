"""The AVX-512 kernels of ``kernels.cpp`` for torch, or ``lib = None`` where they cannot be built."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

import torch

Pointer, Long, Int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


def build() -> ctypes.CDLL | None:
    source = Path(__file__).with_name("kernels.cpp")
    target = source.parent / "runs" / f"kernels-{platform.node()}.so"
    try:
        if "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
            return None
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            target.parent.mkdir(exist_ok=True)
            subprocess.run(
                ["g++", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", target, source],
                check=True,
            )
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError):
        return None


lib = build()


def run(name: str, *args: torch.Tensor | int | None) -> None:
    """Call a kernel; tensors must be contiguous and are passed by address."""
    values = []
    for a in args:
        if isinstance(a, torch.Tensor):
            if not a.is_contiguous():
                raise ValueError(f"{name}: a tensor of shape {tuple(a.shape)} is not contiguous")
            values.append(Pointer(a.data_ptr()))
        else:
            values.append(Pointer(None) if a is None else Long(a))
    getattr(lib, name)(*values)


class Attention(torch.autograd.Function):
    """qkv bf16 flat [N, (H + 2 KV) 64], not yet rotated -> bf16 [N, H 64]; groups int64 [n, 4]."""

    @staticmethod
    def forward(ctx, qkv, sinks, cos, sin, groups, kv_heads, window):
        n, heads = qkv.shape[0], sinks.numel()
        out, lse = qkv.new_empty(n, heads * 64), sinks.new_empty(n, heads)
        run(
            "attention_forward",
            qkv,
            out,
            lse,
            sinks,
            cos,
            sin,
            groups.shape[0],
            groups,
            heads,
            kv_heads,
            window,
        )
        ctx.save_for_backward(qkv, out, lse, sinks, cos, sin, groups)
        ctx.shape = kv_heads, window
        return out

    @staticmethod
    def backward(ctx, grad):
        qkv, out, lse, sinks, cos, sin, groups = ctx.saved_tensors
        dqkv, dsinks = torch.empty_like(qkv), torch.zeros_like(sinks)
        run(
            "attention_backward",
            qkv,
            out,
            lse,
            sinks,
            cos,
            sin,
            grad.contiguous(),
            dqkv,
            dsinks,
            groups.shape[0],
            groups,
            sinks.numel(),
            *ctx.shape,
        )
        return dqkv, dsinks, None, None, None, None, None


class Experts(torch.autograd.Function):
    """``moe.experts`` in bf16 with the element-wise parts fused."""

    @staticmethod
    def forward(ctx, x, weight, chosen, up_w, up_b, down_w, down_b):
        out = torch.zeros(x.shape, dtype=torch.float32)
        flat, shares = chosen.flatten(), weight.detach().flatten()
        order = torch.argsort(flat, stable=True)
        ends = torch.bincount(flat, minlength=up_w.shape[0]).cumsum(0).tolist()
        saved, start = [], 0
        for e, end in enumerate(ends):
            slot = order[start:end]
            start = end
            row = slot // chosen.shape[1]
            share = shares[slot]
            xe = x.index_select(0, row)
            gu = torch.addmm(up_b[e], xe, up_w[e].t())
            act = gu.new_empty(gu.shape[0], gu.shape[1] // 2)
            run("swiglu_forward", gu, act, act.shape[0], act.shape[1])
            y = torch.addmm(down_b[e], act, down_w[e].t())
            run("scatter_add", out, y, row, share, y.shape[0], y.shape[1])
            saved += [slot, row, share, xe, gu, act, y]
        ctx.save_for_backward(up_w, down_w, *saved)
        ctx.shape = weight.shape
        return out

    @staticmethod
    def backward(ctx, grad):
        up_w, down_w, *saved = ctx.saved_tensors
        grad = grad.contiguous()
        dx, d_weight = torch.zeros_like(grad), grad.new_empty(ctx.shape)
        d_up_w, d_down_w = torch.empty_like(up_w), torch.empty_like(down_w)
        d_up_b, d_down_b = up_w.new_empty(up_w.shape[:2]), down_w.new_empty(down_w.shape[:2])
        for e in range(up_w.shape[0]):
            slot, row, share, xe, gu, act, y = saved[7 * e : 7 * e + 7]
            dy, d_share, d_gu = torch.empty_like(y), torch.empty_like(share), torch.empty_like(gu)
            run("combine_backward", grad, y, row, share, dy, d_share, y.shape[0], y.shape[1])
            d_weight.view(-1)[slot] = d_share
            ones = dy.new_ones(1, dy.shape[0])
            d_down_w[e], d_down_b[e] = dy.t() @ act, (ones @ dy)[0]
            d_act = dy @ down_w[e]
            run("swiglu_backward", gu, d_act, d_gu, act.shape[0], act.shape[1])
            d_up_w[e], d_up_b[e] = d_gu.t() @ xe, (ones @ d_gu)[0]
            run("scatter_add", dx, d_gu @ up_w[e], row, None, y.shape[0], y.shape[1])
        return dx.to(up_w.dtype), d_weight, None, d_up_w, d_up_b, d_down_w, d_down_b
