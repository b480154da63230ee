"""Cases of moe_down.

On a CPU, f32 is exact numerics and q8 fast numerics; a GPU takes bf16 rows.
"""

import numpy as np

from ..cases import Case, bf16, decode_rows, values
from .experts import bytes_read, mxfp4, q8_rows, routings

KINDS = {"q8": "int8"}


def cases(backend, rng, rows, model):
    hidden, inner, chosen = model.hidden_size, model.intermediate_size, model.num_experts_per_tok
    layer, groups = mxfp4(rng, model.num_local_experts, hidden, inner), routings(rng, rows, model)
    assignments = rows * chosen
    weight = np.full((rows, chosen), 0.25, np.float32)
    residual = np.zeros((rows, hidden), np.float32)
    if backend.has_exact:
        variants = {
            "f32": (values(rng, assignments, inner), None, None),
            "q8": (None, *q8_rows(rng, assignments, inner)),
        }
    else:
        variants = {"": (bf16(rng, assignments, inner), None, None)}
    for label, given in variants.items():
        calls = [
            lambda group=group, given=given: backend.moe_down(
                *given, *group, *layer, weight, residual, decode_rows(rows)
            )
            for group in groups
        ]
        moved = sum(part.nbytes for part in given if part is not None) + 2 * residual.nbytes
        flops = 2 * assignments * inner * hidden
        yield Case(label, calls, bytes_read(groups, hidden, inner) + moved, flops, KINDS.get(label, ""))
