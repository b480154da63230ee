"""Every tensor of a gpt-oss checkpoint: names, dtypes and shapes, in both layouts.

Hugging Face's names are the canonical ones; OpenAI's files differ in names and keep q, k and v in one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ..config import ModelConfig

BLOCK_VALUES = 32  # values that share one scale
BLOCK_BYTES = 16  # two values per byte


@dataclass(frozen=True)
class TensorSpec:
    """What a checkpoint must hold under `name`.

    `group` is embedding, attention, norms, router, experts or lm_head.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    group: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * (2 if self.dtype == "BF16" else 1)

    @property
    def parameters(self) -> int:
        """Numbers the tensor stands for: two per byte of blocks, none for scales."""
        if self.name.endswith("_blocks"):
            return 2 * prod(self.shape)
        return 0 if self.name.endswith("_scales") else prod(self.shape)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file holds it, and the canonical tensors that its rows are, in order."""

    name: str
    parts: tuple[TensorSpec, ...]

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])


def expected_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """The tensors of a checkpoint, canonical names, in the order of the forward pass."""
    first, *last = top_tensors(config)
    yield first
    for layer in range(config.num_hidden_layers):
        yield from layer_tensors(config, layer)
    yield from last


def top_tensors(config: ModelConfig) -> list[TensorSpec]:
    """The three tensors outside the layers: embedding, final norm, lm_head."""
    matrix = (config.vocab_size, config.hidden_size)
    return [
        TensorSpec("model.embed_tokens.weight", "BF16", matrix, "embedding"),
        TensorSpec("model.norm.weight", "BF16", (config.hidden_size,), "norms"),
        TensorSpec("lm_head.weight", "BF16", matrix, "lm_head"),
    ]


def layer_tensors(config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    """The tensors of one layer; expert tensors are [experts, out, in / 32(, 16)], rows are outputs."""
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    prefix = f"model.layers.{layer}."

    def spec(name: str, shape: tuple[int, ...], group: str, dtype: str = "BF16") -> TensorSpec:
        return TensorSpec(prefix + name, dtype, shape, group)

    yield spec("input_layernorm.weight", (hidden,), "norms")
    for name, rows in (("q", config.query_size), ("k", config.key_value_size), ("v", config.key_value_size)):
        yield spec(f"self_attn.{name}_proj.weight", (rows, hidden), "attention")
        yield spec(f"self_attn.{name}_proj.bias", (rows,), "attention")
    yield spec("self_attn.sinks", (config.num_attention_heads,), "attention")
    yield spec("self_attn.o_proj.weight", (hidden, config.query_size), "attention")
    yield spec("self_attn.o_proj.bias", (hidden,), "attention")
    yield spec("post_attention_layernorm.weight", (hidden,), "norms")
    yield spec("mlp.router.weight", (experts, hidden), "router")
    yield spec("mlp.router.bias", (experts,), "router")
    for name, rows, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        blocks = columns // BLOCK_VALUES
        yield spec(f"mlp.experts.{name}_blocks", (experts, rows, blocks, BLOCK_BYTES), "experts", "U8")
        yield spec(f"mlp.experts.{name}_scales", (experts, rows, blocks), "experts", "U8")
        yield spec(f"mlp.experts.{name}_bias", (experts, rows), "experts")


# Suffixes inside a layer: OpenAI's -> the canonical ones.
_OPENAI_LAYER = {
    "attn.norm.scale": ("input_layernorm.weight",),
    "attn.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn.qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attn.sinks": ("self_attn.sinks",),
    "attn.out.weight": ("self_attn.o_proj.weight",),
    "attn.out.bias": ("self_attn.o_proj.bias",),
    "mlp.norm.scale": ("post_attention_layernorm.weight",),
    "mlp.gate.weight": ("mlp.router.weight",),
    "mlp.gate.bias": ("mlp.router.bias",),
    "mlp.mlp1_weight.blocks": ("mlp.experts.gate_up_proj_blocks",),
    "mlp.mlp1_weight.scales": ("mlp.experts.gate_up_proj_scales",),
    "mlp.mlp1_bias": ("mlp.experts.gate_up_proj_bias",),
    "mlp.mlp2_weight.blocks": ("mlp.experts.down_proj_blocks",),
    "mlp.mlp2_weight.scales": ("mlp.experts.down_proj_scales",),
    "mlp.mlp2_bias": ("mlp.experts.down_proj_bias",),
}
_OPENAI_TOP = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "unembedding.weight",
}


def openai_tensors(config: ModelConfig) -> Iterator[StoredTensor]:
    """The tensors of a checkpoint in OpenAI's layout, each with the canonical tensors it holds."""
    for spec in top_tensors(config):
        yield StoredTensor(_OPENAI_TOP[spec.name], (spec,))
    for layer in range(config.num_hidden_layers):
        specs = {spec.name: spec for spec in layer_tensors(config, layer)}
        for name, parts in _OPENAI_LAYER.items():
            yield StoredTensor(
                f"block.{layer}.{name}", tuple(specs[f"model.layers.{layer}.{part}"] for part in parts)
            )


def file_tensors(config: ModelConfig, layout: str) -> Iterator[StoredTensor]:
    """What the files of a checkpoint hold; in Hugging Face's layout every tensor is its own single part."""
    if layout == "openai":
        yield from openai_tensors(config)
    else:
        for spec in expected_tensors(config):
            yield StoredTensor(spec.name, (spec,))
