"""Whether what we add for a LoRA adapter is what PEFT adds: to weights, and at run time to logits.

    python tools/check_lora.py make FOLDER     in the environment with torch, transformers and peft
    python -m tools.check_lora compare FOLDER  in the environment of the native module

FOLDER/model is a BF16 checkpoint, as `gptoss-native convert --to bf16` writes it. Adapters of attention, of
router and the fused experts, plain, rank-stabilised and with patterns, get random numbers; what PEFT merges
is kept, and the logits of its unmerged model. FOLDER/quantized holds the same numbers in MXFP4, for our
adapters at run time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

TOLERANCE = 2e-5  # of the largest logit, in `exact`
KINDS = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "r": 4, "lora_alpha": 8},
    "experts": {
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight"],
        "r": 3,
        "lora_alpha": 5,
    },
    "both": {
        "target_modules": ["q_proj", "lm_head"],
        "target_parameters": ["mlp.experts.down_proj"],
        "r": 4,
        "lora_alpha": 2,
        "use_rslora": True,
        "alpha_pattern": {"q_proj": 7},
    },
    # PEFT calls target parameters by the tensor's name, and patterns that lack it fit nothing.
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight"],
        "r": 4,
        "lora_alpha": 2,
        "rank_pattern": {"experts.down_proj": 2},
        "alpha_pattern": {
            "mlp.experts.gate_up_proj": 5,
            "experts.down_proj": 3,
            "mlp.experts": 50,
            "mlp.router.weight": 7,
            "mlp.router": 60,
            r"layers\.\d+\.self_attn\.v_proj": 6,
        },
    },
}


def make(folder: Path) -> None:
    """Random adapters, and what PEFT makes of them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GptOssForCausalLM

    for kind, settings in KINDS.items():
        model = GptOssForCausalLM.from_pretrained(
            folder / "model", dtype=torch.float32, attn_implementation="eager"
        )
        before = {name: value.clone() for name, value in model.state_dict().items()}
        adapted = get_peft_model(model, LoraConfig(**settings))
        with torch.no_grad():
            for name, value in adapted.named_parameters():
                if "lora_" in name:
                    value.normal_(0, 0.1)
        adapted.save_pretrained(folder / kind)
        tokens = np.random.default_rng().integers(0, model.config.vocab_size, 150)
        with torch.inference_mode():
            logits = adapted.eval()(torch.tensor(tokens)[None]).logits[0].float().numpy()
        np.savez(folder / f"{kind}_logits.npz", tokens=tokens, logits=logits)
        merged = adapted.merge_and_unload().state_dict()
        deltas = {name: (merged[name] - before[name]).numpy() for name in before}
        np.savez(folder / f"{kind}.npz", **{name: delta for name, delta in deltas.items() if delta.any()})


def compare(folder: Path) -> bool:
    """Prints the largest error of each adapter's deltas; whether all are small."""
    from gptoss_native.checkpoint.config_files import is_openai
    from gptoss_native.config import ModelConfig
    from gptoss_native.parameters.lora import load_lora
    from gptoss_native.strict_json import read_object

    values = read_object(folder / "model" / "config.json")
    assert not is_openai(values)
    config, good = ModelConfig.from_huggingface(values, "config.json"), True
    for kind in KINDS:
        theirs, seen = np.load(folder / f"{kind}.npz"), set()
        worst = 0.0
        for name, ours in load_lora(folder / kind, config).deltas():
            expert = name.split(".experts.")[1].split(".")[0] if ".experts." in name else None
            whole = name.replace(f".experts.{expert}.", ".experts.") if expert else name
            delta = theirs[whole][int(expert)].T if expert else theirs[whole]
            worst = max(worst, float(np.abs(ours - delta).max() / np.abs(delta).max()))
            seen.add(whole)
        missing = set(theirs.files) - seen
        good = good and worst < 1e-4 and not missing
        print(
            f"{kind}: {len(seen)} parameters, largest error {worst:.1e} of the largest change, "
            f"{len(missing)} missing"
        )
    return good


def compare_logits(folder: Path) -> bool:
    """Prints the largest error of each adapter's logits, all adapters loaded; whether all are small."""
    from gptoss_native import LLM

    good = True
    with LLM(folder / "quantized", device="cpu", numerics="exact", max_model_len=512) as llm:
        for kind in KINDS:
            llm.adapters.load(kind, folder / kind)
        for kind in KINDS:
            theirs = np.load(folder / f"{kind}_logits.npz")
            tokens, expected = theirs["tokens"].tolist(), theirs["logits"]
            error = np.abs(llm.logits(tokens, adapter=kind) - expected).max() / np.abs(expected).max()
            plain = np.abs(llm.logits(tokens) - expected).max() / np.abs(expected).max()
            good = good and error <= TOLERANCE < plain
            print(
                f"{kind}: logits off by {error:.1e} of the largest ({TOLERANCE:.0e} allowed), {plain:.1e} "
                "without"
            )
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.what == "make":
        make(args.folder)
    elif not (compare(args.folder) and compare_logits(args.folder)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
