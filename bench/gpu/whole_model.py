"""A whole model on a device: load, first token, prompts, decoding at several batch sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from gptoss_native import LLM, SamplingParams
from gptoss_native.bench.costs import decode_bytes
from gptoss_native.bench.limits import Limits
from gptoss_native.checkpoint import open_checkpoint

ANSWER = 64


def measure_model(
    folder: str,
    device: str,
    batches: Sequence[int],
    prompts: Sequence[int],
    limits: Limits,
    answer: int = ANSWER,
) -> dict[str, Any]:
    """Tokens a second; `share` is of the time that the bytes of a step would take at the copy bandwidth."""
    begin = time.perf_counter()
    llm = LLM(
        folder,
        device=device,
        max_num_seqs=max(batches),
        max_num_batched_tokens=max(2048, max(batches)),
        max_model_len=max([*prompts, 1024]) + answer + 1,
        enable_prefix_caching=False,
    )
    load = time.perf_counter() - begin
    rng, vocab = np.random.default_rng(0), min(llm.config.vocab_size, 199_998)
    nbytes = sum(array.nbytes for array in open_checkpoint(folder).arrays().values())

    def texts(count: int, length: int) -> list[list[int]]:
        return [rng.integers(0, vocab, length).tolist() for _ in range(count)]

    def seconds(given: list[list[int]], tokens: int) -> float:
        begin = time.perf_counter()
        llm.generate(given, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
        return time.perf_counter() - begin

    first = seconds(texts(1, 16), 1)
    found: dict[str, Any] = {
        "load s": load,
        "load GB/s": nbytes / load / 1e9,
        "start to first token s": load + first,
        "decode": [],
        "prompts": [],
    }
    for batch in batches:
        given = texts(batch, 16)
        seconds(given, answer)  # records the step
        tries = [seconds(given, answer + 1) - seconds(given, 1) for _ in range(3)]
        rate = batch * answer / float(np.median(tries))
        least = decode_bytes(llm.config, batch, 16 + answer // 2) / limits.bandwidth
        found["decode"].append({"batch": batch, "tok/s": rate, "share": least * rate / batch})
    for length in prompts:
        given = texts(1, length)
        seconds(given, 1)
        rate = length / float(np.median([seconds(given, 1) for _ in range(3)]))
        found["prompts"].append({"tokens": length, "tok/s": rate})
    llm.close()
    return found
