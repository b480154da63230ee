"""transformers on torch, on a CPU: python -m bench.peers.hf_transformers CHECKPOINT THREADS

As from_pretrained gives it to whoever installs no more: dense matrices and experts in bf16, the MXFP4 experts
dequantised while they are loaded, since the kernels for packed ones are a download of their own.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from transformers import DynamicCache, GptOssForCausalLM, Mxfp4Config

from bench.peers.protocol import serve

CHUNK = 512  # tokens of a prompt at once: its attention takes a float for each pair of tokens and head


class Transformers:
    def __init__(self, folder: str, threads: int):
        torch.set_num_threads(threads)
        self._model = GptOssForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
        ).eval()
        self._rng = np.random.default_rng(0)

    def prefill(self, tokens: int) -> float:
        self._forget()
        return self._run(self._random(tokens))

    def decode(self, context: int, tokens: int) -> float:
        self.prefill(context)
        return sum(self._run(token) for token in self._random(tokens).split(1))

    def logits(self, tokens: list[int]) -> np.ndarray:
        self._forget()
        self._run(torch.tensor(tokens))
        return self._logits.float().numpy()

    def _random(self, count: int) -> torch.Tensor:
        return torch.tensor(self._rng.integers(0, self._model.config.vocab_size, count))

    def _forget(self) -> None:
        self._cache = DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def _run(self, tokens: torch.Tensor) -> float:
        begin = time.perf_counter()
        for part in tokens.split(CHUNK):
            found = self._model(part[None], past_key_values=self._cache, logits_to_keep=1)
        self._logits = found.logits[0, -1]
        return time.perf_counter() - begin


if __name__ == "__main__":
    serve(Transformers(sys.argv[1], int(sys.argv[2])))
