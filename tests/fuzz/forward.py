"""Build the native model of a checkpoint that opened and run one token through it, in both numeric modes."""

from __future__ import annotations

from functools import cache

import numpy as np
from gptoss_native import _native
from gptoss_native.checkpoint import Checkpoint
from gptoss_native.plan import native_config


@cache
def _backend() -> _native.Backend:
    return _native.Backend(device="cpu", threads=1)


def run_one_token(checkpoint: Checkpoint) -> None:
    """One forward step of token 0. Damaged weights may give NaN: only the shape of the logits is checked."""

    def ids(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    for numerics in ("exact", "fast"):
        model = _native.Model(
            _backend(), native_config(checkpoint.config), checkpoint.arrays(), numerics, max_rows=1
        )
        pages = _native.KvCache(model, page_size=16, full_pages=1, window_pages=1)
        page_table = np.zeros((1, 1), np.int32)
        logits = model.forward(
            pages,
            token_ids=ids(0),
            row_start=ids(0, 1),
            context=ids(min(1, checkpoint.config.max_position_embeddings - 1)),
            full_pages=page_table,
            window_pages=page_table,
            logit_rows=ids(0),
        ).numpy()
        if logits.shape != (1, checkpoint.config.vocab_size):
            raise AssertionError(f"logits of shape {logits.shape} for {checkpoint.config.vocab_size} tokens")
