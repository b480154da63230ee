"""Small models of odd shapes with random weights, sized so that every part of a layer matters."""

from __future__ import annotations

import numpy as np
from gptoss_native.checkpoint.tensor_names import expected_tensors
from gptoss_native.config import FULL, SLIDING, ModelConfig

from tests.ops.inputs import bf16, norm_weight
from tests.reference.formats import BLOCK


def random_config(rng: np.random.Generator, **fixed) -> ModelConfig:
    """Any shape the native code takes, kept small; `fixed` fields are as given."""
    layers = fixed.get("num_hidden_layers", int(rng.integers(2, 5)))
    kv_heads = int(rng.integers(1, 4))
    experts = int(rng.integers(4, 12))
    fields = {
        "hidden_size": BLOCK * int(rng.integers(1, 6)),
        "intermediate_size": BLOCK * int(rng.integers(1, 6)),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * int(rng.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "num_local_experts": experts,
        "num_experts_per_tok": int(rng.choice([4, rng.integers(1, experts + 1)])),
        "vocab_size": int(rng.integers(50, 300)),
        "sliding_window": int(rng.integers(1, 40)),
        "layer_types": tuple(rng.choice([SLIDING, FULL], layers).tolist()),
    }
    return ModelConfig(**{**fields, **fixed})


def native_config(config: ModelConfig) -> dict:
    """The config as `_native.Model` and the reference take it."""
    windows = [config.sliding_window if config.is_sliding(i) else 0 for i in range(config.num_hidden_layers)]
    return {**config.to_dict(), "windows": windows}


def random_arrays(rng: np.random.Generator, config: ModelConfig) -> dict[str, np.ndarray]:
    """Every tensor under its checkpoint name. Layers add about as much as the residual stream holds."""
    arrays = {}
    for spec in expected_tensors(config):
        name, shape = spec.name, spec.shape
        if name.endswith("_blocks"):
            arrays[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif name.endswith("_scales"):
            typical = 127 - 1.5 - 0.5 * np.log2(shape[-1] * BLOCK)  # codes are of size 3, outputs of size 1
            arrays[name] = np.rint(rng.normal(typical, 0.7, shape)).astype(np.uint8)
        elif name.endswith("norm.weight"):
            arrays[name] = norm_weight(rng, shape[0])
        elif name.endswith(("sinks", "embed_tokens.weight")):
            arrays[name] = bf16(rng, *shape)
        elif name.endswith("bias"):
            arrays[name] = bf16(rng, *shape, scale=0.3)
        else:
            peaked = 1.7 if ".q_proj." in name or ".k_proj." in name else 1.0
            arrays[name] = bf16(rng, *shape, scale=peaked * shape[-1] ** -0.5)
    return arrays
