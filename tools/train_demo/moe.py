"""The four chosen experts of each token, forward and backward, one expert at a time.

Written out by hand so that every intermediate is one expert's rows, which stay in cache.
"""

from __future__ import annotations

import torch

ALPHA, LIMIT = 1.702, 7.0


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, chosen, up_w, up_b, down_w, down_b):
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        flat = chosen.flatten()
        order = torch.argsort(flat, stable=True)
        ends = torch.bincount(flat, minlength=up_w.shape[0]).cumsum(0).tolist()
        saved, start = [], 0
        for e, end in enumerate(ends):
            slot = order[start:end]
            start = end
            row = slot // chosen.shape[1]
            xe = x.index_select(0, row)
            gu = torch.addmm(up_b[e], xe, up_w[e].t())
            gate, up = gu.chunk(2, 1)
            gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
            h = gate * torch.sigmoid(ALPHA * gate) * (up + 1)
            y = torch.addmm(down_b[e], h, down_w[e].t())
            out.index_add_(0, row, y.float() * weight.flatten()[slot].unsqueeze(1))
            saved += [slot, row, xe, gu, h, y]
        ctx.save_for_backward(weight, up_w, down_w, *saved)
        ctx.rows = x.shape
        return out

    @staticmethod
    def backward(ctx, grad):
        weight, up_w, down_w, *saved = ctx.saved_tensors
        dx = torch.zeros(ctx.rows, dtype=torch.float32, device=grad.device)
        d_weight = torch.zeros(weight.numel(), device=grad.device)
        d_up_w, d_down_w = torch.empty_like(up_w), torch.empty_like(down_w)
        d_up_b = up_w.new_empty(up_w.shape[:2])
        d_down_b = down_w.new_empty(down_w.shape[:2])
        for e in range(up_w.shape[0]):
            slot, row, xe, gu, h, y = saved[6 * e : 6 * e + 6]
            g = grad.index_select(0, row)
            d_weight[slot] = (g * y).sum(1)
            dy = (g * weight.flatten()[slot].unsqueeze(1)).to(xe.dtype)
            d_down_w[e] = dy.t() @ h
            d_down_b[e] = dy.sum(0)
            dh = dy @ down_w[e]
            gate, up = gu.chunk(2, 1)
            g_in, u_in = gate <= LIMIT, up.abs() <= LIMIT
            gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT) + 1
            s = torch.sigmoid(ALPHA * gate)
            act = gate * s
            d_gate = dh * up * (s + ALPHA * act * (1 - s)) * g_in
            d_gu = torch.cat((d_gate, dh * act * u_in), 1)
            d_up_w[e] = d_gu.t() @ xe
            d_up_b[e] = d_gu.sum(0)
            dx.index_add_(0, row, (d_gu @ up_w[e]).float())
        return dx.to(up_w.dtype), d_weight.view_as(weight), None, d_up_w, d_up_b, d_down_w, d_down_b


def experts(
    x: torch.Tensor,
    weight: torch.Tensor,
    chosen: torch.Tensor,
    up_w: torch.Tensor,
    up_b: torch.Tensor,
    down_w: torch.Tensor,
    down_b: torch.Tensor,
) -> torch.Tensor:
    """x [N, H], weight, chosen [N, 4], up_w [E, 2I, H] (gate, then up), down_w [E, H, I] -> fp32 [N, H]."""
    return _Experts.apply(x, weight, chosen, up_w, up_b, down_w, down_b)
