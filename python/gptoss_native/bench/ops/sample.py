"""Cases of sample."""

import numpy as np

from ... import _native
from ..cases import MOST_LOGIT_ROWS, Case, values

VARIANTS = {
    "greedy": {"temperature": 0},
    "plain": {},
    "top-p": {"top_p": 0.9},
    "top-k": {"top_k": 40, "min_p": 0.02},
    "logprobs": {"skip_report": 0},
}


def cases(backend, rng, rows, model):
    if rows > MOST_LOGIT_ROWS:
        return
    logits = values(rng, rows, model.vocab_size, scale=3)
    none = np.empty(0, np.int32)
    for label, settings in VARIANTS.items():
        given = np.zeros(rows, _native.sample_row_dtype)
        for name, value in {
            "temperature": 1,
            "top_p": 1,
            "repetition_penalty": 1,
            "mask_row": -1,
            "skip_report": 1,
            **settings,
        }.items():
            given[name] = value
        given["position"] = np.arange(rows)
        calls = [
            lambda given=given: backend.sample(
                logits, given, none, none.view(np.float32), none, None, 0 if given["skip_report"][0] else 20
            )
        ]
        yield Case(label, calls, logits.nbytes)
