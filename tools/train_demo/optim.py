"""Muon for the matrices (each expert on its own), AdamW for the rest."""

from __future__ import annotations

import torch


def orthogonalise(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz towards the nearest orthogonal matrix; g [M, r, c] -> same shape, bf16 inside."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).to(g.dtype)


class Muon:
    """Momentum, orthogonalised; matrices of equal shape are stacked into one batch."""

    def __init__(
        self, params: list[torch.nn.Parameter], lr: float, decay: float, momentum: float = 0.95
    ) -> None:
        self.params, self.lr, self.decay, self.momentum = params, lr, decay, momentum
        self.state = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        shapes: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for p, m in zip(self.params, self.state, strict=True):
            m.lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(m, self.momentum)
            r, c = p.shape[-2:]
            shapes.setdefault((r, c), []).append((p.view(-1, r, c), update.view(-1, r, c)))
        for (r, c), items in shapes.items():
            o = orthogonalise(torch.cat([u for _, u in items]))
            step = -self.lr * scale * max(1.0, r / c) ** 0.5
            for (p, _), u in zip(items, o.split([p.shape[0] for p, _ in items]), strict=True):
                p.mul_(1 - self.lr * scale * self.decay).add_(u, alpha=step)


def build(model: torch.nn.Module, lr: float, adam_lr: float) -> tuple[Muon, torch.optim.AdamW]:
    names = ("q_w", "k_w", "v_w", "o_w", "up_w", "down_w")
    matrices = [p for n, p in model.named_parameters() if n.rsplit(".", 1)[-1] in names]
    rest = [p for n, p in model.named_parameters() if n.rsplit(".", 1)[-1] not in names]
    return Muon(matrices, lr, 0.1), torch.optim.AdamW(
        rest, adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
