"""llama.cpp by llama-cpp-python's plain C calls: python -m bench.peers.llama_cpp FILE.gguf THREADS CONTEXT

With flash attention, its defaults otherwise; nothing is sampled, which spares it a little.
"""

from __future__ import annotations

import sys
import time

import llama_cpp as api
import numpy as np

from bench.peers.protocol import serve


class LlamaCpp:
    def __init__(self, path: str, threads: int, context: int):
        api.llama_backend_init()
        model = api.llama_model_default_params()
        self._model = api.llama_model_load_from_file(path.encode(), model)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        self._context = api.llama_init_from_model(self._model, params)
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._rng = np.random.default_rng(0)

    def prefill(self, tokens: int) -> float:
        self._forget()
        return self._run(self._rng.integers(0, self._vocab, tokens))

    def decode(self, context: int, tokens: int) -> float:
        self.prefill(context)
        return sum(self._run(token) for token in self._rng.integers(0, self._vocab, (tokens, 1)))

    def logits(self, tokens: list[int]) -> np.ndarray:
        self._forget()
        self._run(np.array(tokens))
        return np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, -1), (self._vocab,)).copy()

    def _forget(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self._context), True)

    def _run(self, tokens: np.ndarray) -> float:
        ids = (api.llama_token * len(tokens))(*tokens.tolist())
        begin = time.perf_counter()
        for at in range(0, len(tokens), 512):
            count = min(512, len(tokens) - at)
            part = (api.llama_token * count).from_buffer(ids, 4 * at)
            if api.llama_decode(self._context, api.llama_batch_get_one(part, count)) != 0:
                raise SystemExit("llama_decode failed")
        api.llama_synchronize(self._context)
        return time.perf_counter() - begin


if __name__ == "__main__":
    serve(LlamaCpp(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
