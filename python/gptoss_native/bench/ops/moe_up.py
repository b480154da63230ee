"""Cases of moe_up.

On a CPU, f32 is exact numerics and q8 fast numerics; a GPU takes bf16 rows.
"""

import numpy as np

from ..cases import BLOCK, Case, bf16, decode_rows, values
from .experts import bytes_read, mxfp4, q8_rows, routings

KINDS = {"q8": "int8"}


def cases(backend, rng, rows, model):
    hidden, inner, chosen = model.hidden_size, model.intermediate_size, model.num_experts_per_tok
    layer, groups = mxfp4(rng, model.num_local_experts, 2 * inner, hidden), routings(rng, rows, model)
    assignments = rows * chosen
    if backend.has_exact:
        output = np.empty((assignments, inner), np.float32)
        output_q8 = (
            np.empty((assignments, inner), np.int8),
            np.empty((assignments, inner // BLOCK), np.float32),
        )
        variants = {
            "f32": ((values(rng, rows, hidden), None, None), (output, None, None)),
            "q8": ((None, *q8_rows(rng, rows, hidden)), (None, *output_q8)),
        }
    else:
        output = np.empty((assignments, inner), np.uint16)
        variants = {"": ((bf16(rng, rows, hidden), None, None), (output, None, None))}
    for label, (given, out) in variants.items():
        calls = [
            lambda group=group, given=given, out=out: backend.moe_up(
                *given, *group, *layer, 7.0, chosen, *out, decode_rows(rows)
            )
            for group in groups
        ]
        moved = sum(part.nbytes for part in (*given, *out) if part is not None)
        flops = 2 * assignments * 2 * inner * hidden
        yield Case(label, calls, bytes_read(groups, 2 * inner, hidden) + moved, flops, KINDS.get(label, ""))
