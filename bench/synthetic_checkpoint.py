"""Write a checkpoint of a real shape with random weights, to measure speed without the real weights.

python bench/synthetic_checkpoint.py 20b /data/random-20b
python bench/synthetic_checkpoint.py 20b-4layer /data/random-4 --vocab 32768
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from gptoss_native.bench.random_weights import write_synthetic
from gptoss_native.bench.shapes import SHAPES
from gptoss_native.config import ModelConfig
from gptoss_native.errors import CheckpointError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, dest="num_hidden_layers")
    parser.add_argument("--experts", type=int, dest="num_local_experts")
    parser.add_argument("--experts-per-token", type=int, dest="num_experts_per_tok")
    parser.add_argument("--vocab", type=int, dest="vocab_size")
    parser.add_argument("--hidden", type=int, dest="hidden_size")
    parser.add_argument("--intermediate", type=int, dest="intermediate_size")
    parser.add_argument("--heads", type=int, dest="num_attention_heads")
    parser.add_argument("--kv-heads", type=int, dest="num_key_value_heads")
    parser.add_argument("--window", type=int, dest="sliding_window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-gb", type=float, default=4.8, help="size of a shard in GB")
    parser.add_argument("--layout", choices=("huggingface", "openai"), default="huggingface")
    options = parser.parse_args(arguments)
    names = ModelConfig.__dataclass_fields__
    changed = {name: value for name, value in vars(options).items() if name in names and value is not None}
    start = time.monotonic()
    try:
        config = SHAPES[options.shape]
        if "vocab_size" in changed:
            config = replace(config, eos_token_ids=(), pad_token_id=None)
        config = replace(config, layer_types=(), **changed)
        size = write_synthetic(
            options.folder, config, options.seed, int(options.shard_gb * 1e9), options.layout
        )
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    seconds = time.monotonic() - start
    print(f"{options.folder}: {size:,} bytes in {seconds:.1f} s ({size / seconds / 1e9:.2f} GB/s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
