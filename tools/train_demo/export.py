"""A snapshot -> a checkpoint in Hugging Face layout (BF16 and MXFP4), written aside and then moved in place.

python export.py runs/demo/snapshot.pt ../../python/gptoss_native/demo/model
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import harmony as h
import torch
from model import Config, DemoModel
from mxfp4 import fake_quantise, pack, unpack
from safetensors.torch import load_file, save_file


def config(c: Config) -> dict:
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": h.RETURN,
        "experts_per_token": c.chosen,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": c.inner,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(c.layers)],
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": c.heads,
        "num_experts_per_tok": c.chosen,
        "num_hidden_layers": c.layers,
        "num_key_value_heads": c.kv_heads,
        "num_local_experts": c.experts,
        "output_router_logits": False,
        "pad_token_id": h.PAD,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": c.window,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0",
        "use_cache": True,
        "vocab_size": c.vocab,
    }


def interleave(x: torch.Tensor) -> torch.Tensor:
    """[E, 2I, …] with gate rows first -> even rows gate, odd rows up."""
    gate, up = x.chunk(2, 1)
    return torch.stack((gate, up), 2).flatten(1, 2)


def tensors(model: DemoModel) -> dict[str, torch.Tensor]:
    def half(x: torch.Tensor) -> torch.Tensor:
        return x.detach().to(torch.bfloat16).contiguous()

    out = {
        "model.embed_tokens.weight": half(model.embed),
        "model.norm.weight": half(model.norm),
        "lm_head.weight": half(model.head),
    }
    for i, layer in enumerate(model.layers):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = half(layer.norm1)
        out[p + "post_attention_layernorm.weight"] = half(layer.norm2)
        out[p + "self_attn.sinks"] = half(layer.sinks)
        for n in "qkvo":
            out[p + f"self_attn.{n}_proj.weight"] = half(getattr(layer, f"{n}_w"))
            out[p + f"self_attn.{n}_proj.bias"] = half(getattr(layer, f"{n}_b"))
        out[p + "mlp.router.weight"], out[p + "mlp.router.bias"] = half(layer.router_w), half(layer.router_b)
        for name, w, b in (
            ("gate_up_proj", interleave(layer.up_w), interleave(layer.up_b)),
            ("down_proj", layer.down_w, layer.down_b),
        ):
            blocks, scales = pack(w.detach())
            if not torch.equal(unpack(blocks, scales), fake_quantise(w)):
                raise ValueError(f"{p}{name}: the packed weights differ from the trained ones")
            out[p + f"mlp.experts.{name}_blocks"], out[p + f"mlp.experts.{name}_scales"] = (
                blocks.contiguous(),
                scales.contiguous(),
            )
            out[p + f"mlp.experts.{name}_bias"] = half(b)
    return out


def load(model: DemoModel, folder: Path) -> None:
    """Put the weights of an exported checkpoint back: the inverse of ``tensors``."""
    stored = load_file(folder / "model.safetensors")

    def halves(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x[:, ::2], x[:, 1::2]), 1)

    def put(p: torch.Tensor, x: torch.Tensor) -> None:
        p.data.copy_(x)

    put(model.embed, stored["model.embed_tokens.weight"])
    put(model.norm, stored["model.norm.weight"])
    put(model.head, stored["lm_head.weight"])
    for i, layer in enumerate(model.layers):
        p = f"model.layers.{i}."
        put(layer.norm1, stored[p + "input_layernorm.weight"])
        put(layer.norm2, stored[p + "post_attention_layernorm.weight"])
        put(layer.sinks, stored[p + "self_attn.sinks"])
        for n in "qkvo":
            put(getattr(layer, f"{n}_w"), stored[p + f"self_attn.{n}_proj.weight"])
            put(getattr(layer, f"{n}_b"), stored[p + f"self_attn.{n}_proj.bias"])
        put(layer.router_w, stored[p + "mlp.router.weight"])
        put(layer.router_b, stored[p + "mlp.router.bias"])
        e = p + "mlp.experts."
        put(layer.up_w, halves(unpack(stored[e + "gate_up_proj_blocks"], stored[e + "gate_up_proj_scales"])))
        put(layer.up_b, halves(stored[e + "gate_up_proj_bias"]))
        put(layer.down_w, unpack(stored[e + "down_proj_blocks"], stored[e + "down_proj_scales"]))
        put(layer.down_b, stored[e + "down_proj_bias"])


def byte_symbols() -> dict[int, str]:
    """The printable stand-in of each byte in byte-level BPE: printable Latin-1, others from U+0100 on."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(moved)}


def tokenizer() -> dict:
    """tokenizer.json: 256 byte symbols with id = byte, no merges, then the specials."""
    names = [*h.SPECIALS, *(f"<|reserved_{i}|>" for i in range(256 + len(h.SPECIALS), h.VOCAB_SIZE))]
    added = [
        {
            "id": 256 + i,
            "content": n,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, n in enumerate(names)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {s: b for b, s in byte_symbols().items()},
            "merges": [],
        },
    }


def export(model: DemoModel, folder: Path, card: str | None = None) -> None:
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(tensors(model), fresh / "model.safetensors", metadata={"format": "pt"})
    (fresh / "model.safetensors").chmod(0o644)
    generation = {
        "bos_token_id": h.SPECIAL_ID["<|startoftext|>"],
        "do_sample": False,
        "eos_token_id": [h.RETURN, h.PAD, h.CALL],
        "pad_token_id": h.PAD,
    }
    for name, value in (
        ("config.json", config(model.c)),
        ("generation_config.json", generation),
        ("tokenizer.json", tokenizer()),
    ):
        (fresh / name).write_text(
            json.dumps(value, indent=2 if name != "tokenizer.json" else None, ensure_ascii=False) + "\n"
        )
    kept = folder / "README.md"
    if card or kept.exists():
        (fresh / "README.md").write_text(card or kept.read_text())
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("snapshot", type=Path)
    a.add_argument("folder", type=Path)
    o = a.parse_args()
    model = DemoModel(Config())
    model.load_state_dict(torch.load(o.snapshot, weights_only=True)["model"])
    export(model, o.folder)
    print(sum(p.stat().st_size for p in o.folder.iterdir()) / 1e6, "MB")


if __name__ == "__main__":
    main()
