"""Greedy decoding with a KV cache in torch, to watch training; `make demo-eval` measures the result."""

from __future__ import annotations

import math
import random

import harmony as h
import tasks
import torch
from model import DemoModel, norm
from moe import experts
from torch.nn import functional


class Decoder:
    """Rows that share a prefix. ``cache[layer]`` = (k, v), each [B, kv_heads, S, 64]; slot = position."""

    def __init__(self, model: DemoModel, prefix: list[int], room: int) -> None:
        self.m, self.room = model, room
        self.weights = [layer.expert_weights(model.dtype, model.quantised) for layer in model.layers]
        c = model.c
        self.cache = [
            [torch.zeros(1, c.kv_heads, room, 64, dtype=model.dtype) for _ in range(2)] for _ in model.layers
        ]
        self.step(torch.tensor([prefix]), torch.arange(len(prefix))[None])
        self.prefix = len(prefix)

    def widen(self, n: int) -> None:
        self.cache = [[y.repeat(n, 1, 1, 1) for y in pair] for pair in self.cache]

    def step(self, ids: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """ids, place [B, T] -> hidden states [B, T, H]."""
        m, (b, t) = self.m, ids.shape
        flat = place.flatten()
        cos, sin = (y[flat].unsqueeze(1).to(m.dtype) for y in (m.cos, m.sin))
        x = functional.embedding(ids.flatten(), m.embed)
        seen = int(place.max()) + 1
        d = place[:, None, :, None] - torch.arange(seen)
        rows = torch.arange(b)[:, None].expand(b, t)
        for layer, (k_all, v_all), w in zip(m.layers, self.cache, self.weights, strict=True):
            q, k, v = layer.qkv(norm(x, layer.norm1, m.dtype), cos, sin)
            k_all[rows, :, place] = k.unflatten(0, (b, t))
            v_all[rows, :, place] = v.unflatten(0, (b, t))
            shown = (d >= 0) if layer.window is None else (d >= 0) & (d < layer.window)
            q = q.unflatten(0, (b, t)).transpose(1, 2)
            s = (q @ layer.repeat(k_all[:, :, :seen]).transpose(-1, -2)).float() / math.sqrt(64)
            s = s.masked_fill(~shown, -1e30)
            s = torch.cat((s, layer.sinks[None, :, None, None].expand(*s.shape[:3], 1)), -1).softmax(-1)[
                ..., :-1
            ]
            a = (s.to(m.dtype) @ layer.repeat(v_all[:, :, :seen])).transpose(1, 2).reshape(b * t, -1)
            x = x + functional.linear(a, layer.o_w.to(m.dtype), layer.o_b.to(m.dtype))
            y = norm(x, layer.norm2, m.dtype)
            weight, chosen, _ = layer.route(y)
            x = x + experts(y, weight, chosen, *w)
        return x.unflatten(0, (b, t))


@torch.no_grad()
def generate(
    model: DemoModel, prefix: list[int], prompts: list[list[int]], limit: int = 230
) -> list[list[int]]:
    """Greedy continuations up to and including <|return|> or <|call|>."""
    longest = max(map(len, prompts))
    dec = Decoder(model, prefix, len(prefix) + longest + limit)
    dec.widen(len(prompts))
    ids = torch.full((len(prompts), longest), h.PAD)
    for i, p in enumerate(prompts):
        ids[i, : len(p)] = torch.tensor(p)
    x = dec.step(ids, (dec.prefix + torch.arange(longest)).expand(len(prompts), -1))
    length = torch.tensor([len(p) for p in prompts])
    last = x[torch.arange(len(prompts)), length - 1]
    out: list[list[int]] = [[] for _ in prompts]
    live = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(limit):
        token = model.logits(last).argmax(-1)
        for i in live.nonzero()[:, 0].tolist():
            out[i].append(int(token[i]))
        live &= (token != h.RETURN) & (token != h.CALL)
        if not live.any():
            break
        last = dec.step(token[:, None], (dec.prefix + length)[:, None])[:, 0]
        length += 1
    return out


def text(ids: list[int]) -> str:
    names = {v: k for k, v in h.SPECIAL_ID.items()}
    return b"".join(bytes([i]) if i < 256 else names.get(i, "<?>").encode() for i in ids).decode(
        errors="replace"
    )


def final_of(answer: str) -> str:
    _head, mark, rest = answer.rpartition("<|channel|>final<|message|>")
    return rest.removesuffix("<|return|>").strip() if mark else ""


def accuracy(
    model: DemoModel, task: str, n: int, seed: int, effort: str = "medium", lines: tuple[int, int] = (24, 24)
) -> tuple[float, str]:
    """Share of right answers to held-out questions, and one wrong transcript."""
    r = random.Random(f"{task}/{seed}")
    qs = [tasks.draw(task, r, True, lines) for _ in range(n)]
    offered = task == "tool"
    head = h.encode(
        h.system(effort, "2026-11-23", offered)
        + (h.developer(None, ("Evaluate an arithmetic expression.", "For example 12*34")) if offered else "")
    )
    prompts = [h.encode(h.user(q.text) + h.ASSISTANT) for q in qs]
    outs = generate(model, head, prompts)
    if offered:
        good = [text(o).endswith(h.call(q.expression)) for o, q in zip(outs, qs, strict=True)]
        prompts = [
            p + o + h.encode(h.tool_result(q.answer) + h.ASSISTANT)
            for p, o, q in zip(prompts, outs, qs, strict=True)
        ]
        again = generate(model, head, prompts, 40)
        good = [g and final_of(text(o)) == q.answer for g, o, q in zip(good, again, qs, strict=True)]
        outs = [a + b for a, b in zip(outs, again, strict=True)]
    else:
        good = [final_of(text(o)) == q.answer for o, q in zip(outs, qs, strict=True)]
    wrong = next(
        (
            f"{q.text[-60:]!r} want {q.answer!r}: {text(o)!r}"
            for g, o, q in zip(good, outs, qs, strict=True)
            if not g
        ),
        "",
    )
    return sum(good) / n, wrong
