"""Errors about arrays name the op's own argument, the value found, the one expected and the fix."""

import numpy as np
import pytest
from gptoss_native.errors import GptossError

from tests.conftest import cpu_backend
from tests.ops.inputs import bf16, empty, group_by_expert, linear, mxfp4, norm_weight, normal

HIDDEN = 64


def calls(rng) -> dict:
    """Each op with arguments that it takes, by name."""
    q, k, v = (linear(rng, 64, HIDDEN) for _ in range(3))
    norm, router, experts = norm_weight(rng, HIDDEN), linear(rng, 4, HIDDEN), np.int32([[0, 1], [2, 3]])
    start, order = group_by_expert(experts, 4)
    blocks, scales, bias = mxfp4(rng, 4, 64, HIDDEN)
    layer = {"group_start": start, "group_order": order, "blocks": blocks, "scales": scales, "bias": bias}
    q8 = {"q8": empty(2, HIDDEN, dtype=np.int8), "scale": empty(2, HIDDEN // 32)}
    return {
        "attention_in": {
            "residual": normal(rng, 2, HIDDEN), "norm_weight": norm, "eps": 1e-5,
            "q_weight": q[0], "q_bias": q[1], "k_weight": k[0], "k_bias": k[1],
            "v_weight": v[0], "v_bias": v[1],
            "inv_freq": np.ones(32, np.float32), "rope_scale": 1.0, "row_start": np.int32([0, 2]),
            "context": np.int32([0]), "pages": np.int32([[0]]), "keys": np.zeros((1, 1, 64, 16), np.float32),
            "values": np.zeros((1, 1, 16, 64), np.float32), "queries": empty(2, 1, 64),
        },
        "attention_out": {
            "input": normal(rng, 2, 64), "weight": q[0], "bias": q[1], "residual": normal(rng, 2, 64),
        },
        "moe_gate": {
            "residual": normal(rng, 2, HIDDEN), "norm_weight": norm, "eps": 1e-5, "router_weight": router[0],
            "router_bias": router[1], "chosen": 2, "normed": empty(2, HIDDEN), "normed_q8": q8["q8"],
            "normed_scale": q8["scale"], "expert": empty(2, 2, dtype=np.int32), "routing_weight": empty(2, 2),
            "group_start": empty(5, dtype=np.int32), "group_order": empty(4, dtype=np.int32),
        },
        "moe_up": {
            "input": None, "input_q8": np.zeros((2, HIDDEN), np.int8), "input_scale": q8["scale"], **layer,
            "limit": 7.0, "chosen": 2, "output": None, "output_q8": empty(4, 32, dtype=np.int8),
            "output_scale": empty(4, 1),
        },
        "unembed": {
            "residual": normal(rng, 2, HIDDEN), "logit_rows": np.int32([1]), "norm_weight": norm, "eps": 1e-5,
            "lm_head": bf16(rng, 50, HIDDEN), "logits": empty(1, 50),
        },
    }  # fmt: skip


@pytest.mark.parametrize("op", ["attention_in", "attention_out", "moe_gate", "moe_up", "unembed"])
def test_every_array_is_called_by_its_own_name(isa, rng, op):
    given = calls(rng)[op]
    run = getattr(cpu_backend(isa, 2), op)
    run(**given)
    for name, value in given.items():
        if not isinstance(value, np.ndarray):
            continue
        with pytest.raises(GptossError, match=rf"^{name} has dtype complex128, expected \w+.*; pass "):
            run(**{**given, name: value.astype(np.complex128)})


@pytest.mark.parametrize("name", ["q_bias", "k_bias", "v_bias"])
def test_a_bias_of_the_wrong_length_is_named(isa, rng, name):
    given = calls(rng)["attention_in"]
    given[name] = given[name][:-1].copy()
    with pytest.raises(GptossError, match=rf"^{name} has shape \(63,\), expected \(64\)"):
        cpu_backend(isa, 2).attention_in(**given)


@pytest.mark.parametrize("missing", ["input_q8", "input_scale"])
def test_half_of_a_pair_is_refused_by_name(isa, rng, missing):
    given = calls(rng)["moe_up"]
    given[missing] = None
    with pytest.raises(GptossError, match="input_q8 and input_scale: one is None"):
        cpu_backend(isa, 2).moe_up(**given)
