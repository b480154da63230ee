"""moe_down: python -m bench.ops.moe_down

f32 is exact numerics, q8 fast numerics.
"""

import numpy as np

from bench.ops.experts import bytes_read, mxfp4, q8_rows, routings
from bench.ops.harness import CHOSEN, HIDDEN, INNER, Case, run, values


def cases(backend, rng, rows):
    layer, groups = mxfp4(rng, HIDDEN, INNER), routings(rng, rows)
    assignments = rows * CHOSEN
    weight = np.full((rows, CHOSEN), 0.25, np.float32)
    residual = np.zeros((rows, HIDDEN), np.float32)
    variants = {
        "f32": (values(rng, assignments, INNER), None, None),
        "q8": (None, *q8_rows(rng, assignments, INNER)),
    }
    for label, given in variants.items():
        calls = [
            lambda group=group, given=given: backend.moe_down(*given, *group, *layer, weight, residual)
            for group in groups
        ]
        flops = 2 * assignments * INNER * HIDDEN
        yield Case(label, calls, bytes_read(groups, HIDDEN, INNER), flops)


if __name__ == "__main__":
    run({"moe_down": cases}, __doc__)
