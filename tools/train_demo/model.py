"""A small gpt-oss in torch. Rows that share a prefix (system and developer message) compute it once.

The input of a step is a list of *groups*: one prefix [P] and rows [B, T] that continue it. All tokens of all
groups go through the linear layers as one flat [N, H]; only attention looks at the groups.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import fast
import torch
from attention import sink_attention
from moe import experts
from mxfp4 import fake_quantise
from torch import nn
from torch.nn import functional


@dataclass
class Config:
    vocab: int = 288
    hidden: int = 192
    inner: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 8
    chosen: int = 4
    window: int = 128

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass
class Group:
    prefix: torch.Tensor  # [P] int64
    rows: torch.Tensor  # [B, T] int64, padded at the end

    @property
    def tokens(self) -> int:
        return self.prefix.numel() + self.rows.numel()


def yarn_table(length: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [length, 32], already times the YaRN factor."""
    dim, base, factor, original = 64, 150000.0, 32.0, 4096

    def edge(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = edge(32.0), edge(1.0)
    i = torch.arange(dim // 2, dtype=torch.float32)
    freq = 1.0 / base ** (2 * i / dim)
    ramp = ((i - low) / (high - low)).clamp(0, 1)
    freq = freq / factor * ramp + freq * (1 - ramp)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * freq
    scale = 0.1 * math.log(factor) + 1
    return (angle.cos() * scale).to(device), (angle.sin() * scale).to(device)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [..., heads, 64], cos and sin [..., 1, 32]."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class _Ste(torch.autograd.Function):
    """MXFP4 values forward, identity backward."""

    @staticmethod
    def forward(ctx, w):
        return fake_quantise(w)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Layer(nn.Module):
    def __init__(self, c: Config, window: int | None) -> None:
        super().__init__()
        self.c, self.window, h = c, window, c.hidden

        def matrix(*shape: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) * gain / math.sqrt(shape[-1]))

        self.norm1, self.norm2 = nn.Parameter(torch.ones(h)), nn.Parameter(torch.ones(h))
        self.q_w, self.q_b = matrix(c.heads * 64, h), nn.Parameter(torch.zeros(c.heads * 64))
        self.k_w, self.k_b = matrix(c.kv_heads * 64, h), nn.Parameter(torch.zeros(c.kv_heads * 64))
        self.v_w, self.v_b = matrix(c.kv_heads * 64, h), nn.Parameter(torch.zeros(c.kv_heads * 64))
        self.o_w, self.o_b = matrix(h, c.heads * 64, gain=0.3), nn.Parameter(torch.zeros(h))
        self.sinks = nn.Parameter(torch.zeros(c.heads))
        self.router_w, self.router_b = matrix(c.experts, h), nn.Parameter(torch.zeros(c.experts))
        self.up_w, self.up_b = (
            matrix(c.experts, 2 * c.inner, h),
            nn.Parameter(torch.zeros(c.experts, 2 * c.inner)),
        )
        self.down_w, self.down_b = (
            matrix(c.experts, h, c.inner, gain=0.3),
            nn.Parameter(torch.zeros(c.experts, h)),
        )

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, H] -> q, k and v side by side [N, (heads + 2 kv_heads) 64]."""
        return functional.linear(
            x,
            torch.cat((self.q_w, self.k_w, self.v_w)).to(x.dtype),
            torch.cat((self.q_b, self.k_b, self.v_b)).to(x.dtype),
        )

    def qkv(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x [N, H] -> q [N, heads, 64], k and v [N, kv_heads, 64], rotated."""
        q, k, v = (
            self.project(x).unflatten(1, (-1, 64)).split((self.c.heads, self.c.kv_heads, self.c.kv_heads), 1)
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """[B, kv_heads, S, 64] -> [B, heads, S, 64]."""
        return x.repeat_interleave(self.c.heads // self.c.kv_heads, 1)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: list[Group], masks: list
    ) -> torch.Tensor:
        """Flat q [N, heads, 64], k, v -> flat [N, heads * 64]."""
        out, start = [], 0
        for g, (own, rows_mask, keep) in zip(groups, masks, strict=True):
            p, (b, t) = g.prefix.numel(), g.rows.shape
            heads = [y[start : start + p].transpose(0, 1)[None] for y in (q, k, v)]
            out.append(
                sink_attention(heads[0], self.repeat(heads[1]), self.repeat(heads[2]), own, self.sinks)[0]
                .transpose(0, 1)
                .flatten(1)
            )
            start += p
            qr, kr, vr = (y[start : start + b * t].unflatten(0, (b, t)).transpose(1, 2) for y in (q, k, v))
            kr, vr = (
                torch.cat((head[:, :, p - keep :].expand(b, -1, -1, -1), y), 2)
                for head, y in zip(heads[1:], (kr, vr), strict=True)
            )
            o = sink_attention(qr, self.repeat(kr), self.repeat(vr), rows_mask, self.sinks)
            out.append(o.transpose(1, 2).reshape(b * t, -1))
            start += b * t
        return torch.cat(out)

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [N, H] -> weights [N, 4] fp32, chosen [N, 4], all logits [N, E] fp32."""
        logits = functional.linear(x.float(), self.router_w, self.router_b)
        top, chosen = logits.topk(self.c.chosen, -1)
        return top.softmax(-1), chosen, logits

    def expert_weights(self, dtype: torch.dtype, quantised: bool) -> tuple[torch.Tensor, ...]:
        up, down = (_Ste.apply(self.up_w), _Ste.apply(self.down_w)) if quantised else (self.up_w, self.down_w)
        return up.to(dtype), self.up_b.to(dtype), down.to(dtype), self.down_b.to(dtype)


def norm(x: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],), w, 1e-5).to(dtype)


class DemoModel(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.5)
        self.layers = nn.ModuleList(Layer(c, c.window if i % 2 == 0 else None) for i in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.hidden))
        self.head = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.02)
        self.quantised = False
        self.dtype = torch.bfloat16
        cos, sin = yarn_table(2048)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def masks(self, g: Group, window: int | None) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Masks of the prefix on itself and of the rows on (the last ``keep`` of the prefix, themselves)."""
        p, t, dev = g.prefix.numel(), g.rows.shape[1], g.rows.device
        keep = p if window is None else min(p, window - 1)

        def mask(first: int, n: int, first_key: int, keys: int) -> torch.Tensor:
            d = (first + torch.arange(n, device=dev))[:, None] - (first_key + torch.arange(keys, device=dev))[
                None
            ]
            seen = (d >= 0) if window is None else (d >= 0) & (d < window)
            return torch.zeros(n, keys, device=dev).masked_fill_(~seen, -1e30)[None, None]

        return mask(0, p, 0, p), mask(p, t, p - keep, keep + t), keep

    def forward(self, groups: list[Group]) -> tuple[torch.Tensor, torch.Tensor]:
        """-> final hidden states, flat [N, H] fp32 (prefix, rows, prefix, …), and the load-balance loss."""
        ids = torch.cat([torch.cat((g.prefix, g.rows.flatten())) for g in groups])
        dev = ids.device
        native = fast.lib is not None and dev.type == "cpu" and self.dtype == torch.bfloat16
        shapes = torch.tensor([[g.prefix.numel(), *g.rows.shape] for g in groups])
        starts = functional.pad(torch.tensor([g.tokens for g in groups]).cumsum(0)[:-1], (1, 0))
        shapes = torch.cat((starts[:, None], shapes), 1).contiguous()
        place = torch.cat(
            [
                torch.cat(
                    (
                        torch.arange(g.prefix.numel(), device=dev),
                        (g.prefix.numel() + torch.arange(g.rows.shape[1], device=dev)).repeat(
                            g.rows.shape[0]
                        ),
                    )
                )
                for g in groups
            ]
        )
        cos, sin = (y[place].unsqueeze(1).to(self.dtype) for y in (self.cos, self.sin))
        sliding, full = (
            (None, None) if native else ([self.masks(g, w) for g in groups] for w in (self.c.window, None))
        )
        x, balance = functional.embedding(ids, self.embed), 0.0
        for layer in self.layers:
            y = norm(x, layer.norm1, self.dtype)
            if native:
                a = fast.Attention.apply(
                    layer.project(y),
                    layer.sinks,
                    self.cos,
                    self.sin,
                    shapes,
                    self.c.kv_heads,
                    layer.window or 0,
                )
            else:
                a = layer.attend(*layer.qkv(y, cos, sin), groups, full if layer.window is None else sliding)
            x = x + functional.linear(a, layer.o_w.to(self.dtype), layer.o_b.to(self.dtype))
            y = norm(x, layer.norm2, self.dtype)
            weight, chosen, logits = layer.route(y)
            share = torch.bincount(chosen.flatten(), minlength=self.c.experts).float() / chosen.numel()
            balance = balance + self.c.experts * (logits.softmax(-1).mean(0) * share).sum() / self.c.layers
            up_w, up_b, down_w, down_b = layer.expert_weights(self.dtype, self.quantised)
            x = x + (fast.Experts.apply if native else experts)(y, weight, chosen, up_w, up_b, down_w, down_b)
        return x, balance

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, H] -> fp32 [N, vocab]."""
        return functional.linear(norm(x, self.norm, self.dtype), self.head.to(self.dtype)).float()
