"""Shapes of models that benches run with random weights."""

from __future__ import annotations

from dataclasses import replace

from ..config import KNOWN_CONFIGS, ModelConfig

_20B, _120B = KNOWN_CONFIGS["openai/gpt-oss-20b"], KNOWN_CONFIGS["openai/gpt-oss-120b"]
_NO_TOKENS = {"eos_token_ids": (), "pad_token_id": None}

SHAPES: dict[str, ModelConfig] = {
    "20b": _20B,
    "120b": _120B,
    # Layers as they are, few enough for any machine.
    "20b-4layer": replace(_20B, num_hidden_layers=4, vocab_size=32_768, layer_types=(), **_NO_TOKENS),
    # For trying the benches out where the others take too long, such as on a simulated GPU.
    "tiny": replace(
        _20B,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=8,
        num_key_value_heads=1,
        num_local_experts=8,
        vocab_size=256,
        **_NO_TOKENS,
    ),
}
