"""moe_gate: python -m bench.ops.moe_gate"""

import numpy as np

from bench.ops.harness import BLOCK, CHOSEN, EXPERTS, HIDDEN, Case, bf16, linear, run, values


def cases(backend, rng, rows):
    residual, norm = values(rng, rows, HIDDEN), bf16(rng, HIDDEN)
    q8 = np.empty((rows, HIDDEN), np.int8), np.empty((rows, HIDDEN // BLOCK), np.float32)
    outputs = (
        np.empty((rows, CHOSEN), np.int32),
        np.empty((rows, CHOSEN), np.float32),
        np.empty(EXPERTS + 1, np.int32),
        np.empty(rows * CHOSEN, np.int32),
    )
    normed, read = np.empty_like(residual), 2 * EXPERTS * HIDDEN
    routers = [linear(rng, EXPERTS, HIDDEN) for _ in range(400)]
    for label, quantised in (("f32", (None, None)), ("q8", q8)):
        calls = [
            lambda router=router, quantised=quantised: backend.moe_gate(
                residual, norm, 1e-5, *router, CHOSEN, normed, *quantised, *outputs
            )
            for router in routers
        ]
        yield Case(label, calls, read, 2 * rows * EXPERTS * HIDDEN)


if __name__ == "__main__":
    run({"moe_gate": cases}, __doc__)
