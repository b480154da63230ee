"""Make tests/golden: tiny random checkpoints with the logits of both official implementations.

Run it where these are installed (they are no dependency of this package):

    pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    pip install --no-deps --ignore-requires-python gpt-oss==0.0.9
    PYTHONPATH=python:. python tools/make_golden.py tests/golden

Both run in float32 on the CPU and must agree with each other before a case is written.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.config import ModelConfig

from tests.model.random_model import native_config, random_arrays
from tests.reference import model as reference
from tests.reference.formats import bf16_to_float, float_to_bf16

PINNED = {"torch": "2.13.0", "transformers": "5.23.0", "gpt-oss": "0.0.9"}
PROMPT, GENERATED = 9, 32
MARGIN = 1e-4  # no choice of an expert or a greedy token may be closer than this

ODD = ModelConfig(
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=64,
    num_local_experts=5,
    num_experts_per_tok=4,
    vocab_size=160,
    sliding_window=7,
)
CASES: dict[str, tuple[ModelConfig, tuple[int, ...]]] = {
    "odd": (ODD, (1, 7, 8, 60)),
    "many_experts": (
        replace(
            ODD,
            hidden_size=64,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_local_experts=24,
            vocab_size=96,
            sliding_window=16,
            layer_types=(),
        ),
        (1, 16, 17, 90),
    ),
    # Embeddings so small that the epsilon of the first norm matters, and clamps that act.
    "tiny_embeddings": (
        replace(
            ODD,
            hidden_size=160,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            num_experts_per_tok=2,
            vocab_size=128,
            sliding_window=33,
            layer_types=(),
        ),
        (2, 33, 34, 70),
    ),
}


def make_arrays(name: str, config: ModelConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    arrays = random_arrays(rng, config)
    if name == "tiny_embeddings":
        embedding = bf16_to_float(arrays["model.embed_tokens.weight"]) * 4e-3
        arrays["model.embed_tokens.weight"] = float_to_bf16(embedding)
        for layer in range(config.num_hidden_layers):
            arrays[f"model.layers.{layer}.mlp.experts.gate_up_proj_scales"] += 3
            arrays[f"model.layers.{layer}.mlp.experts.down_proj_scales"] -= 3
    return arrays


def oracles(folder: Path):
    """The two official implementations as functions ids -> float32 logits [tokens, vocab]."""
    import torch
    from gpt_oss.torch.model import Transformer
    from transformers import GptOssForCausalLM, Mxfp4Config

    torch.manual_seed(0)
    hf = GptOssForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True),
    ).eval()
    openai = Transformer.from_checkpoint(str(folder / "original"), device="cpu").float()

    def run_hf(ids):
        with torch.inference_mode():
            return hf(torch.tensor(ids)[None]).logits[0].float().numpy()

    def run_openai(ids):
        with torch.inference_mode():
            return openai(torch.tensor(ids)).float().numpy()

    return run_hf, run_openai


def greedy(run, prompt: list[int]) -> list[int]:
    """Raises ValueError when two tokens are nearly equal, so that rounding cannot decide."""
    tokens = list(prompt)
    for _ in range(GENERATED):
        logits = run(tokens)[-1]
        second, first = np.sort(logits)[-2:]
        if first - second < MARGIN * np.abs(logits).max():
            raise ValueError("two tokens are nearly equal")
        tokens.append(int(logits.argmax()))
    return tokens


def make_case(name: str, seed: int, folder: Path) -> None:
    """Write one case, taking the first of a seed's models whose choices are all clear."""
    config, lengths = CASES[name]
    rng = np.random.default_rng(seed)
    while True:
        arrays = make_arrays(name, config, rng)
        with tempfile.TemporaryDirectory() as temporary:
            write_checkpoint(Path(temporary), config, arrays)
            write_checkpoint(Path(temporary) / "original", config, arrays, "openai")
            run_hf, run_openai = oracles(Path(temporary))
        golden = {}
        trace = reference.Trace()
        for length in lengths:
            ids = rng.integers(0, config.vocab_size, length)
            hf, openai = run_hf(ids.tolist()), run_openai(ids.tolist())
            reference.forward(native_config(config), arrays, ids, trace)
            apart = np.abs(hf - openai).max() / np.abs(hf).max()
            print(
                f"{name}: {length} tokens, oracles {apart:.1e} apart, router margin {trace.router_margin:.1e}"
            )
            if apart > 1e-5:
                raise SystemExit(f"{name}: the two oracles disagree by {apart:.1e}")
            golden |= {f"ids_{length}": ids, f"hf_{length}": hf, f"gptoss_{length}": openai}
        try:
            golden[f"greedy_{PROMPT}_{GENERATED}"] = np.array(greedy(run_hf, ids[:PROMPT].tolist()))
        except ValueError as error:
            print(f"{name}: {error}; taking another model")
            continue
        if trace.router_margin > MARGIN:
            break
        print(f"{name}: two experts are nearly equal; taking another model")
    half = sum(array.nbytes for array in arrays.values()) // 2
    write_checkpoint(folder, config, arrays, shard_bytes=half)
    np.savez_compressed(folder / "golden.npz", **golden)
    made_with = {"seed": seed, **{package: version(package) for package in PINNED}}
    (folder / "made_with.json").write_text(json.dumps(made_with, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the cases go, e.g. tests/golden")
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one, kept in made_with.json")
    arguments = parser.parse_args()
    for package, wanted in PINNED.items():
        if version(package).split("+")[0] != wanted:
            raise SystemExit(f"{package} is {version(package)}, expected {wanted}; install the pinned one")
    for name in CASES:
        seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
        make_case(name, seed, arguments.folder / name)


if __name__ == "__main__":
    main()
