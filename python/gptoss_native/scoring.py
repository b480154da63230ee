"""From the logits after each token of a text to what is asked of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .errors import RequestError
from .host_memory import HostMemory


class LogitRows:
    """All of them. `rows` is float32 [tokens, vocab], complete when the scoring has ended.

    Raises RequestError when that is more than `memory` has.
    """

    def __init__(self, tokens: int, vocab_size: int, memory: HostMemory | None):
        needed = 4 * tokens * vocab_size
        try:
            if memory is not None and needed > memory.available:
                raise MemoryError
            self.rows, self._filled = np.empty((tokens, vocab_size), np.float32), 0
        except MemoryError:
            free = "not to be had" if memory is None else f"more than the {memory.available:,} that are free"
            raise RequestError(
                f"the logits of {tokens:,} tokens take {needed:,} bytes, {free}; "
                "shorten the prompt, or use score(), which keeps one number per token"
            ) from None

    def take(self, logits: np.ndarray) -> None:
        """The next rows: float32 [some, vocab]."""
        self.rows[self._filled : self._filled + len(logits)] = logits
        self._filled += len(logits)


class TokenLogprobs:
    """`logprobs`: log p(token | those before it), one per token from the second on."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens, self.logprobs = tokens, []

    def take(self, logits: np.ndarray) -> None:
        """The next rows: float32 [some, vocab]."""
        done = len(self.logprobs)
        targets = self.tokens[done + 1 : done + 1 + len(logits)]
        rows = logits[: len(targets)]  # nothing follows the last token
        with np.errstate(invalid="ignore"):  # NaN and infinity: check_finite tells
            rows = rows - rows.max(axis=1, keepdims=True)
            log_total = np.log(np.exp(rows, dtype=np.float64).sum(axis=1))
            self.logprobs += (rows[np.arange(len(targets)), targets] - log_total).tolist()

    def check_finite(self, place: int) -> None:
        """Raise RequestError when one of them is NaN or infinite; `place`: the text's, among several."""
        for token, logprob in enumerate(self.logprobs, start=1):
            if not math.isfinite(logprob):
                raise RequestError(
                    f"the log-probability of token {token} of prompt {place} is {logprob}, expected a finite "
                    "number; check the weights and any edits of them"
                )
