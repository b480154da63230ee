"""MXFP4: the one definition of the rounding that training simulates and export packs."""

from __future__ import annotations

import torch

LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def split(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """w [..., n] -> (blocks [..., n/32, 32] scaled into [-6, 6], scale exponents [..., n/32, 1]), int32.

    The scale is the smallest power of two that clips nothing, so quantising twice changes nothing.
    """
    b = w.detach().float().unflatten(-1, (-1, 32))
    top = b.abs().amax(-1, keepdim=True).clamp_min(2.0**-100)
    mantissa, exponent = torch.frexp(top / 6.0)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.ldexp(b, -exponent), exponent


def round_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest of the sixteen values; x in [-6, 6]. The spacing is 0.5 below 2, 1 below 4, else 2."""
    a = x.abs()
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    return torch.round(x / step) * step


def fake_quantise(w: torch.Tensor) -> torch.Tensor:
    """w [..., n] -> the same shape with the values its MXFP4 form holds."""
    x, e = split(w)
    return torch.ldexp(round_e2m1(x), e).flatten(-2)


def pack(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """w [..., n] -> (blocks uint8 [..., n/32, 16], low nibble = even element; scales uint8 [..., n/32])."""
    x, e = split(w)
    y = round_e2m1(x)
    codes = torch.bucketize(y.abs(), torch.tensor(LEVELS) - 0.01) - 1
    codes = (codes + 8 * (y < 0)).to(torch.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, (e.squeeze(-1) + 127).to(torch.uint8)


def unpack(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Inverse of ``pack``: float32 [..., n]."""
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2).long()
    values = torch.tensor(LEVELS + tuple(-v for v in LEVELS))[codes]
    return torch.ldexp(values, scales.int().unsqueeze(-1) - 127).flatten(-2)
