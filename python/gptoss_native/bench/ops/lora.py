"""Cases of lora.

A x of adapters of rank 16: q, k and v of every row, and of each row's experts. Every row has one of
two adapters.
"""

import numpy as np

from ..cases import Case, bf16, copies, values

RANK, ADAPTERS = 16, 2


def cases(backend, rng, rows, model):
    hidden, experts, chosen = model.hidden_size, model.num_local_experts, model.num_experts_per_tok
    residual, norm = values(rng, rows, hidden), bf16(rng, hidden)
    slot = np.arange(rows, dtype=np.int32) % ADAPTERS
    used = min(rows, ADAPTERS)

    def attention():
        targets = [
            ([values(rng, RANK, hidden) for _ in range(ADAPTERS)], np.zeros((rows, RANK), np.float32))
            for _ in range(3)
        ]
        return lambda: backend.lora(residual, None, None, norm, 1e-5, slot, targets)

    weights = 4 * 3 * used * RANK * hidden
    calls = [attention() for _ in range(min(copies(backend, weights), 64))]
    yield Case("q, k, v", calls, weights + residual.nbytes, 2 * 3 * rows * RANK * hidden)

    expert = np.stack([rng.permutation(experts)[:chosen] for _ in range(rows)]).astype(np.int32)
    read = len(np.unique(expert.astype(np.int64) * ADAPTERS + slot[:, None]))
    product = np.zeros((rows * chosen, RANK), np.float32)

    def of_experts():
        target = [([values(rng, experts, RANK, hidden) for _ in range(ADAPTERS)], product)]
        return lambda: backend.lora(
            residual, None, None, norm, 1e-5, slot, target, expert=expert, experts=experts
        )

    moved = 4 * read * RANK * hidden
    calls = [of_experts() for _ in range(min(copies(backend, moved), 16))]
    yield Case("experts", calls, moved + residual.nbytes, 2 * rows * chosen * RANK * hidden)
