"""Does an exported checkpoint compute what training computes? Compares fp32 logits with transformers.

python check_export.py            # a random model; run it before a long training
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import harmony as h
import torch
from export import export
from model import Config, DemoModel, Group
from tokenizers import Tokenizer
from transformers import GptOssForCausalLM, Mxfp4Config


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = DemoModel(Config())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 or name.endswith("_b"):
                p.add_(torch.randn_like(p) * 0.3)
            if name == "head":
                p.mul_(20)
            p.copy_(p.bfloat16())
    model.quantised, model.dtype = True, torch.float32
    text = (
        h.system("medium", "2026-11-23", False)
        + h.user("What is 4732 + 918? é")
        + h.ASSISTANT
        + h.analysis("x")
        + h.final("y")
    )
    ids = h.encode(text)
    with tempfile.TemporaryDirectory() as d, torch.no_grad():
        folder = Path(d) / "model"
        export(model, folder)
        tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if (
            tok.encode(text, add_special_tokens=False).ids != ids
            or tok.decode(ids, skip_special_tokens=False) != text
        ):
            raise SystemExit("tokenizer.json disagrees with harmony.encode")
        theirs = GptOssForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            quantization_config=Mxfp4Config(dequantize=True),
        )
        want = theirs(torch.tensor([ids])).logits[0]
    cut = 200
    rows = torch.tensor([ids[cut:], ids[cut:]])
    with torch.no_grad():
        got = model.logits(model([Group(torch.tensor(ids[:cut]), rows)])[0])
    n = len(ids) - cut
    for part in (got[: len(ids)], torch.cat((got[:cut], got[cut + n :]))):
        error = float((part - want).norm() / want.norm())
        print(
            f"{len(ids)} tokens, relative error {error:.2e}, "
            f"same argmax {float((part.argmax(-1) == want.argmax(-1)).float().mean()):.3f}"
        )
        if error > 1e-5:
            raise SystemExit("the exported checkpoint computes something else")


if __name__ == "__main__":
    main()
