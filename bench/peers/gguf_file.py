"""A checkpoint as a GGUF file of the same numbers, for llama.cpp.

    PYTHONPATH=python:. .venv-peers/bin/python -m bench.peers.gguf_file CHECKPOINT OUT.gguf [--dense q8]

Experts keep their MXFP4 codes and scales, in ggml's order: a block of 32 is its scale, then 16 bytes whose
low nibbles are elements 0 to 15. Gate and up rows, which alternate in the checkpoint, become two tensors.
Dense matrices stay bf16, or are rounded to Q8_0 (8 bits, a scale for 32). No vocabulary: tokens are numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gguf
import numpy as np
from gptoss_native.checkpoint import open_checkpoint
from gptoss_native.config import ModelConfig

MXFP4, Q8, BF16, F32 = (getattr(gguf.GGMLQuantizationType, name) for name in ("MXFP4", "Q8_0", "BF16", "F32"))


def write(folder: Path, out: Path, dense: str) -> None:
    """`out` appears when it is whole."""
    checkpoint = open_checkpoint(folder)
    part = out.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "gpt-oss")
    add_settings(writer, checkpoint.config)
    arrays = checkpoint.arrays()
    for name, shape, kind, _ in tensors(arrays, checkpoint.config, dense):
        # The writer wants the shape in elements, and for packed formats the bytes as they lie.
        stored = gguf.quant_shape_to_byte_shape(shape, kind) if kind in (MXFP4, Q8) else shape
        dtype = np.dtype(np.uint8 if kind in (MXFP4, Q8) else np.uint16 if kind == BF16 else np.float32)
        size = int(np.prod(stored)) * dtype.itemsize
        writer.add_tensor_info(name, stored, dtype, size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, _, make in tensors(arrays, checkpoint.config, dense):
        writer.write_tensor_data(np.ascontiguousarray(make()))
    writer.close()
    part.rename(out)


def add_settings(writer: gguf.GGUFWriter, c: ModelConfig) -> None:
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_expert_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_sliding_window(c.sliding_window)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_expert_count(c.num_local_experts)
    writer.add_expert_used_count(c.num_experts_per_tok)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(c.rope_factor)
    writer.add_rope_scaling_orig_ctx_len(c.initial_context_length)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("none")


def tensors(arrays: dict, c: ModelConfig, dense: str) -> Iterator[tuple]:
    """(name, shape, kind, what makes its bytes) of every tensor, in the order of the file."""

    def matrix(name: str, source: str) -> tuple:
        array = arrays[source]
        if dense == "q8":
            return name, array.shape, Q8, lambda: gguf.quants.quantize(floats(array), Q8)
        return name, array.shape, BF16, lambda: array

    def exact(name: str, source: str) -> tuple:
        array = arrays[source]
        return name, array.shape, F32, lambda: floats(array)

    yield matrix("token_embd.weight", "model.embed_tokens.weight")
    yield exact("output_norm.weight", "model.norm.weight")
    yield matrix("output.weight", "lm_head.weight")
    for layer in range(c.num_hidden_layers):
        to, own = f"blk.{layer}.", f"model.layers.{layer}."
        yield exact(to + "attn_norm.weight", own + "input_layernorm.weight")
        yield exact(to + "post_attention_norm.weight", own + "post_attention_layernorm.weight")
        for theirs, ours in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("output", "o_proj")):
            yield matrix(f"{to}attn_{theirs}.weight", f"{own}self_attn.{ours}.weight")
            yield exact(f"{to}attn_{theirs}.bias", f"{own}self_attn.{ours}.bias")
        yield exact(to + "attn_sinks.weight", own + "self_attn.sinks")
        yield exact(to + "ffn_gate_inp.weight", own + "mlp.router.weight")
        yield exact(to + "ffn_gate_inp.bias", own + "mlp.router.bias")
        experts = own + "mlp.experts."
        for name, source, rows in (
            ("gate", "gate_up_proj", slice(0, None, 2)),
            ("up", "gate_up_proj", slice(1, None, 2)),
            ("down", "down_proj", slice(None)),
        ):
            blocks, scales, bias = (
                arrays[f"{experts}{source}_{part}"][:, rows] for part in ("blocks", "scales", "bias")
            )
            shape = (*scales.shape[:2], 32 * scales.shape[2])
            codes = partial(mxfp4, blocks, scales)
            yield f"{to}ffn_{name}_exps.weight", shape, MXFP4, codes
            yield f"{to}ffn_{name}_exps.bias", bias.shape, F32, partial(floats, bias)


def floats(bits: np.ndarray) -> np.ndarray:
    """float32 of bf16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """ggml's blocks of 17 bytes, uint8 [experts, rows, 17 * blocks]."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, 32)
    packed = codes[..., :16] | (codes[..., 16:] << 4)
    return np.concatenate([scales[..., None], packed], axis=-1).reshape(*scales.shape[:2], -1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dense", choices=("bf16", "q8"), default="bf16")
    args = parser.parse_args()
    write(args.checkpoint, args.out, args.dense)


if __name__ == "__main__":
    main()
