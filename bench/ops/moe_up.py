"""moe_up: python -m bench.ops.moe_up

f32 is exact numerics, q8 fast numerics.
"""

import numpy as np

from bench.ops.experts import bytes_read, mxfp4, q8_rows, routings
from bench.ops.harness import BLOCK, CHOSEN, HIDDEN, INNER, Case, run, values


def cases(backend, rng, rows):
    layer, groups = mxfp4(rng, 2 * INNER, HIDDEN), routings(rng, rows)
    assignments = rows * CHOSEN
    output = np.empty((assignments, INNER), np.float32)
    output_q8 = np.empty((assignments, INNER), np.int8), np.empty((assignments, INNER // BLOCK), np.float32)
    variants = {
        "f32": ((values(rng, rows, HIDDEN), None, None), (output, None, None)),
        "q8": ((None, *q8_rows(rng, rows, HIDDEN)), (None, *output_q8)),
    }
    for label, (given, out) in variants.items():
        calls = [
            lambda group=group, given=given, out=out: backend.moe_up(
                *given, *group, *layer, 7.0, CHOSEN, *out
            )
            for group in groups
        ]
        flops = 2 * assignments * 2 * INNER * HIDDEN
        yield Case(label, calls, bytes_read(groups, 2 * INNER, HIDDEN), flops)


if __name__ == "__main__":
    run({"moe_up": cases}, __doc__)
