"""From the logits after each token of a text to what is asked of them."""

from __future__ import annotations

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
        if memory is not None and needed > memory.available:
            raise RequestError(
                f"the logits of {tokens:,} tokens take {needed:,} bytes, {memory.available:,} are free; "
                "shorten the prompt, or use score(), which keeps one number per token"
            )
        self.rows, self._filled = np.empty((tokens, vocab_size), np.float32), 0

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
        rows = rows - rows.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(rows, dtype=np.float64).sum(axis=1))
        self.logprobs += (rows[np.arange(len(targets)), targets] - log_total).tolist()
