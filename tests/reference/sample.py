"""The sampler as a distribution: what a draw must follow, instead of one draw."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .ops import softmax


@dataclass
class SamplingRow:
    """One row's settings; the defaults switch everything off but the draw itself."""

    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    allowed: list[int] | None = None
    seed: int = 0
    position: int = 0
    skip_report: int = 0


def adjusted_logits(logits: np.ndarray, row: SamplingRow) -> np.ndarray:
    """Mask, bias, then penalties; [vocab]."""
    out = np.asarray(logits, dtype=np.float64).copy()
    if row.allowed is not None:
        out[np.setdiff1d(np.arange(len(out)), row.allowed)] = -np.inf
    for token, bias in row.bias.items():
        out[token] += bias
    for token in set(row.prompt) | set(row.output):
        out[token] = (
            out[token] / row.repetition_penalty if out[token] > 0 else out[token] * row.repetition_penalty
        )
    for token in set(row.output):
        out[token] -= row.frequency_penalty * row.output.count(token) + row.presence_penalty
    return out


def sample(logits: np.ndarray, row: SamplingRow) -> np.ndarray:
    """Probability of every token, [vocab]; one-hot when the temperature is 0.

    min-p, top-k and top-p cut in this order, each seeing what the one before left. Equals go to the lower id.
    """
    adjusted = adjusted_logits(logits, row)
    if row.temperature == 0:
        return np.eye(len(adjusted))[np.argmax(adjusted)]
    p = softmax(adjusted / row.temperature)
    order = np.argsort(-p, kind="stable")
    order = order[p[order] >= row.min_p * p.max()]
    if row.top_k > 0:
        order = order[: row.top_k]
    before = np.cumsum(p[order]) - p[order]  # a token stays while those ahead of it have not reached top-p
    order = order[before < row.top_p * p[order].sum()]
    kept = np.zeros_like(p)
    kept[order] = p[order] / p[order].sum()
    return kept


def logprobs(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of the untouched logits, [..., vocab]."""
    x = np.asarray(logits, dtype=np.float64)
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
