"""A whole model on this machine: load, prefill, decode, memory, each beside its limit from the same run.

python bench/synthetic_checkpoint.py 20b SOME_FOLDER
python -m bench.end_to_end SOME_FOLDER [--numerics fast] [--context 8192] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import time
from pathlib import Path

import numpy as np
from gptoss_native import LLM, SamplingParams
from gptoss_native.checkpoint import Checkpoint, open_checkpoint

from .ops.harness import read_bandwidth

SHORT_PROMPT = 32


def dd_rate(checkpoint: Checkpoint) -> float:
    """Bytes a second that `dd` reads the largest shard with, as the cache has it now."""
    shard = max(checkpoint.path.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    begin = time.perf_counter()
    subprocess.run(["dd", f"if={shard}", "of=/dev/null", "bs=16M"], check=True, capture_output=True)
    return shard.stat().st_size / (time.perf_counter() - begin)


def decode_bytes(checkpoint: Checkpoint) -> int:
    """Weight bytes that one decoded token reads: everything but the embedding and the experts not chosen."""
    config = checkpoint.config
    total = 0
    for name, array in checkpoint.arrays().items():
        if name == "model.embed_tokens.weight":
            continue
        share = config.num_experts_per_tok / config.num_local_experts if ".experts." in name else 1
        total += int(array.nbytes * share)
    return total


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seconds_for(llm: LLM, prompt: list[int], tokens: int) -> float:
    begin = time.perf_counter()
    llm.generate([prompt], SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
    return time.perf_counter() - begin


def measure(folder: str, numerics: str, context: int, tokens: int, tries: int) -> dict[str, object]:
    checkpoint = open_checkpoint(folder)
    rng = np.random.default_rng(0)

    def prompt(length: int) -> list[int]:
        return rng.integers(0, min(checkpoint.config.vocab_size, 199_998), length).tolist()

    disk = dd_rate(checkpoint)
    begin = time.perf_counter()
    llm = LLM(folder, numerics=numerics, max_model_len=context, max_num_seqs=1)
    load = time.perf_counter() - begin

    seconds_for(llm, prompt(SHORT_PROMPT), 2)
    first_token = [seconds_for(llm, prompt(SHORT_PROMPT), 1) for _ in range(tries)]
    prefill = [512 / seconds_for(llm, prompt(512), 1) for _ in range(tries)]
    decode = []
    for _ in range(tries):
        text = prompt(SHORT_PROMPT)
        decode.append(tokens / (seconds_for(llm, text, tokens + 1) - seconds_for(llm, text, 1)))
    peak = peak_rss()  # before the bandwidth's own buffer
    bandwidth = read_bandwidth(llm.threads)
    per_token = decode_bytes(checkpoint)
    return {
        "model": Path(folder).name,
        "numerics": llm.numerics,
        "isa": llm.isa,
        "threads": llm.threads,
        "cpu": platform.processor() or platform.machine(),
        "load average": os.getloadavg()[0],
        "weights GB": checkpoint.nbytes / 1e9,
        "dd GB/s": disk / 1e9,
        "load s": load,
        "load GB/s": checkpoint.nbytes / load / 1e9,
        "read bandwidth GB/s": bandwidth / 1e9,
        "first token s": float(np.median(first_token)),
        "prefill 512 tok/s": float(np.median(prefill)),
        "decode tok/s": float(np.median(decode)),
        "decode bytes/token GB": per_token / 1e9,
        "decode share of bandwidth": float(np.median(decode)) * per_token / bandwidth,
        "KV cache GB": llm.kv_cache_bytes / 1e9,
        "peak RSS GB": peak / 1e9,
        "RSS beyond weights and KV GB": (peak - checkpoint.nbytes - llm.kv_cache_bytes) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--numerics", choices=("exact", "fast"), default="fast")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=32, help="decoded tokens of a measurement")
    parser.add_argument("--tries", type=int, default=3, help="measurements; the median counts")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(
        arguments.folder, arguments.numerics, arguments.context, arguments.tokens, arguments.tries
    )
    for name, value in result.items():
        print(f"{name:30} {value:.3f}" if isinstance(value, float) else f"{name:30} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
