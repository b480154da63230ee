"""Rows of the sampler: packed for the op, or made at random."""

from __future__ import annotations

import numpy as np

from tests.reference import sample as reference
from tests.reference.sample import SamplingRow

FIELDS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "top_k", "seed", "position", "skip_report",
)  # fmt: skip


def native(backend, logits, settings: list[SamplingRow], logprobs=0, vocab=None):
    """Packs the settings into the ragged arrays of the op. Logits of a step do not tell their vocabulary."""
    from gptoss_native import _native

    rows = np.zeros(len(settings), _native.sample_row_dtype)
    bias_token, bias_value, history, masks = [], [], [], []
    for row, setting in zip(rows, settings, strict=True):
        for name in FIELDS:
            row[name] = getattr(setting, name)
        row["bias_start"] = len(bias_token)
        bias_token += setting.bias.keys()
        bias_value += setting.bias.values()
        row["bias_end"] = len(bias_token)
        row["prompt_start"] = len(history)
        history += setting.prompt
        row["prompt_end"] = row["output_start"] = len(history)
        history += setting.output
        row["output_end"] = len(history)
        row["mask_row"] = -1 if setting.allowed is None else len(masks)
        if setting.allowed is not None:
            masks.append(bit_mask(setting.allowed, vocab or logits.shape[1]))
    return backend.sample(
        logits,
        rows,
        np.array(bias_token, np.int32),
        np.array(bias_value, np.float32),
        np.array(history, np.int32),
        np.array(masks) if masks else None,
        logprobs,
    )


def bit_mask(allowed, vocab):
    bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def copies(setting: SamplingRow, count: int) -> list[SamplingRow]:
    return [SamplingRow(**{**setting.__dict__, "position": i}) for i in range(count)]


def far_from_every_cut(logits, setting):
    """Whether float32 must keep the same tokens: no probability close to where a filter cuts."""
    kept = reference.sample(logits, setting) > 0
    for nudge in (1 - 1e-4, 1 + 1e-4):
        near = SamplingRow(
            **{**setting.__dict__, "top_p": setting.top_p * nudge, "min_p": setting.min_p * nudge}
        )
        if setting.top_p < 1 and ((reference.sample(logits, near) > 0) != kept).any():
            return False
        if setting.min_p > 0 and ((reference.sample(logits, near) > 0) != kept).any():
            return False
    return True


def random_setting(rng, vocab) -> SamplingRow:
    """Any mixture of all effects."""

    def maybe(value, off):
        return value if rng.random() < 0.5 else off

    return SamplingRow(
        temperature=float(np.float32(rng.uniform(0.3, 2))),
        top_p=maybe(float(np.float32(rng.uniform(0.3, 0.99))), 1.0),
        min_p=maybe(float(np.float32(rng.uniform(0.01, 0.2))), 0.0),
        top_k=maybe(int(rng.integers(1, vocab + 1)), 0),
        repetition_penalty=maybe(float(np.float32(rng.uniform(0.5, 2))), 1.0),
        presence_penalty=maybe(float(np.float32(rng.uniform(-1, 1))), 0.0),
        frequency_penalty=maybe(float(np.float32(rng.uniform(-0.5, 0.5))), 0.0),
        bias=maybe({int(t): float(np.float32(rng.normal())) for t in rng.integers(0, vocab, 4)}, {}),
        prompt=maybe(rng.integers(0, vocab, 10).tolist(), []),
        output=maybe(rng.integers(0, vocab, 10).tolist(), []),
        allowed=maybe(rng.choice(vocab, vocab - vocab // 3, replace=False).tolist(), None),
        seed=int(rng.integers(0, 2**63)),
    )
