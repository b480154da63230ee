"""Whether transformers computes our edited logits from our edited export.

    python -m tools.check_export write build/export      in the environment of the native module
    python tools/check_export.py compare build/export    in the one with torch and transformers

Also a BF16 copy is written, as `gptoss-native convert --to bf16` makes it, which transformers must load too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

TOLERANCE = 2e-5  # of the largest logit, in `exact`


def write(folder: Path) -> None:
    """An edited copy of the bundled model, and its logits after random tokens."""
    from gptoss_native import LLM
    from gptoss_native.convert import to_bf16

    folder.mkdir(parents=True)
    rng = np.random.default_rng()
    with LLM("demo", device="cpu", numerics="exact", max_model_len=512) as llm:
        with llm.edit("edited") as edit:
            edit.scale("layers.1.experts.3.*", -0.7)
            edit.update("layers.*.q_proj.weight", lambda values: values + rng.normal(0, 0.01, values.shape))
            edit.update(
                "layers.2.experts.*.gate_up_proj", lambda values: values * rng.uniform(0.5, 2, values.shape)
            )
            edit.set("layers.0.sinks", 1.25)
        llm.save(folder / "model", shard_bytes=1_000_000)
        tokens = rng.integers(0, llm.config.vocab_size, 200)
        np.savez(folder / "ours.npz", tokens=tokens, logits=llm.logits(tokens.tolist()))
    to_bf16(folder / "model", folder / "bf16")


def compare(folder: Path) -> bool:
    """Prints both errors; whether they are within the tolerance."""
    import torch
    from transformers import GptOssForCausalLM, Mxfp4Config

    ours, good = np.load(folder / "ours.npz"), True
    for name, settings in (("model", {"quantization_config": Mxfp4Config(dequantize=True)}), ("bf16", {})):
        model = GptOssForCausalLM.from_pretrained(
            folder / name, dtype=torch.float32, attn_implementation="eager", **settings
        ).eval()
        with torch.inference_mode():
            theirs = model(torch.tensor(ours["tokens"])[None]).logits[0].float().numpy()
        error = np.abs(theirs - ours["logits"]).max() / np.abs(theirs).max()
        same = (theirs.argmax(1) == ours["logits"].argmax(1)).mean()
        good = good and error <= TOLERANCE
        print(
            f"{name}: largest error {error:.1e} of the largest logit ({TOLERANCE:.0e} allowed), same top "
            f"{same:.1%}"
        )
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.what == "write":
        write(args.folder)
    elif not compare(args.folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
