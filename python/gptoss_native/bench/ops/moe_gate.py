"""Cases of moe_gate."""

import numpy as np

from ..cases import BLOCK, Case, bf16, copies, linear, values


def cases(backend, rng, rows, model):
    hidden, experts, chosen = model.hidden_size, model.num_local_experts, model.num_experts_per_tok
    residual, norm = values(rng, rows, hidden), bf16(rng, hidden)
    floats = np.empty((rows, hidden), np.float32)
    expert, weight = np.empty((rows, chosen), np.int32), np.empty((rows, chosen), np.float32)
    groups = np.empty(experts + 1, np.int32), np.empty(rows * chosen, np.int32)
    if backend.has_exact:
        q8 = np.empty((rows, hidden), np.int8), np.empty((rows, hidden // BLOCK), np.float32)
        variants = {"f32": (floats, None, None), "q8": (floats, *q8)}
    else:
        variants = {"": (np.empty((rows, hidden), np.uint16), None, None)}
    for label, normed in variants.items():

        def call(normed=normed):
            router = linear(rng, experts, hidden)
            return lambda: backend.moe_gate(
                residual, norm, 1e-5, *router, chosen, *normed, expert, weight, *groups
            )

        weights = 2 * experts * hidden
        moved = weights + residual.nbytes + sum(part.nbytes for part in normed if part is not None)
        calls = [call() for _ in range(copies(backend, weights))]
        yield Case(label, calls, moved, 2 * rows * experts * hidden)
