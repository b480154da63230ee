"""Whether what we add to weights for a LoRA adapter is what PEFT adds.

    python tools/check_lora.py make FOLDER     in the environment with torch, transformers and peft
    python -m tools.check_lora compare FOLDER  in the environment of the native module

FOLDER/model is a BF16 checkpoint, as `gptoss-native convert --to bf16` writes it. Adapters of attention, of
router and the fused experts, plain and rank-stabilised, get random numbers; what PEFT merges is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

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
}


def make(folder: Path) -> None:
    """Random adapters, and what PEFT makes of them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GptOssForCausalLM

    for kind, settings in KINDS.items():
        model = GptOssForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        adapted = get_peft_model(model, LoraConfig(**settings))
        with torch.no_grad():
            for name, value in adapted.named_parameters():
                if "lora_" in name:
                    value.normal_(0, 0.3)
        adapted.save_pretrained(folder / kind)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.what == "make":
        make(args.folder)
    elif not compare(args.folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
