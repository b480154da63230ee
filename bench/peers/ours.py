"""gptoss-native itself: python -m bench.peers.ours CHECKPOINT THREADS CONTEXT DENSE_DTYPE"""

from __future__ import annotations

import sys
import time

import numpy as np
from gptoss_native import LLM, SamplingParams

from bench.peers.protocol import serve


class Ours:
    def __init__(self, folder: str, threads: int, context: int, dense_dtype: str):
        self._llm = LLM(
            folder,
            device="cpu",
            threads=threads,
            max_model_len=context,
            max_num_seqs=1,
            dense_dtype=dense_dtype,
            enable_prefix_caching=False,
        )
        self._rng = np.random.default_rng(0)

    def prefill(self, tokens: int) -> float:
        return self._times(tokens, 1)[0]

    def decode(self, context: int, tokens: int) -> float:
        first, end = self._times(context, tokens + 1)
        return end - first

    def logits(self, tokens: list[int]) -> np.ndarray:
        return self._llm.logits(tokens)[-1]

    def _times(self, prompt: int, tokens: int) -> tuple[float, float]:
        """Seconds until the first token and until the last."""
        ids = self._rng.integers(0, min(self._llm.config.vocab_size, 199_998), prompt).tolist()
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        request = self._llm.request(ids, params, {})
        begin, first = time.perf_counter(), 0.0
        for _ in self._llm.engine.steps([request]):
            if request.output and not first:
                first = time.perf_counter() - begin
        return first, time.perf_counter() - begin


if __name__ == "__main__":
    serve(Ours(sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]))
