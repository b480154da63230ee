"""The generation loop: schedule, forward, sample, postprocess.

Token ids in, token ids out; text is the business of each request's reader. Several threads may drive one
engine: whoever steps it advances every request, so that their requests share steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .kv_cache import table_array
from .outputs import Logprob
from .sampling import Draw, SampleArrays, SamplingParams, allowed_except, sample_arrays
from .scheduler import Chunk, Scheduler
from .scheduler import Sequence as ScheduledSequence

#: The sampler's status of a row that got its token; any other: its logits are not finite (csrc/model/ops.h).
DRAWN = 0


class Reader(Protocol):
    """Turns a request's tokens into what its caller reads; told one token at a time."""

    def push(self, token_id: int, *, ends: bool, may_stop: bool) -> str | None:
        """Take a token; `ends`: it is a stop token. Returns the stop string it completes, if it may."""

    def finish(self) -> None:
        """No more tokens will come."""


@dataclass(eq=False)
class Request:
    """One answer being generated."""

    prompt: Sequence[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    stop_ids: frozenset[int]  # tokens that end the answer
    reader: Reader
    output: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)  # per output token, when asked for
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None  # "stop", "length", "error" or "abort"
    stop_reason: int | str | None = None  # the stop token or string, None for the model's own end
    failure: str | None = None  # what went wrong with this answer alone, when the finish reason is "error"
    error: BaseException | None = None  # what went wrong with a whole step that it was part of
    sequence: ScheduledSequence = field(init=False)
    _min_tokens_mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.sequence = ScheduledSequence(list(self.prompt))

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None

    def draw(self, vocab_size: int) -> Draw:
        """What the sampler has to know about the next token; stop tokens are masked before min_tokens."""
        allowed = None
        if len(self.output) < self.params.min_tokens and self.stop_ids:
            if self._min_tokens_mask is None:
                self._min_tokens_mask = allowed_except(self.stop_ids, vocab_size)
            allowed = self._min_tokens_mask
        return Draw(self.params, self.seed, self.prompt, self.output, allowed)

    def accept(self, token: int) -> None:
        """Append a drawn token and decide whether it was the last."""
        self.output.append(token)
        self.sequence.tokens.append(token)
        ends = token in self.stop_ids
        stop = self.reader.push(token, ends=ends, may_stop=len(self.output) > self.params.min_tokens)
        if ends:
            self.finish_reason = "stop"
            self.stop_reason = token if token in self.params.stop_token_ids else None
        elif stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop
        elif len(self.output) >= self.max_tokens:
            self.finish_reason = "length"

    def fail(self, message: str) -> None:
        """End the answer where it is; what has been drawn stays."""
        self.finish_reason, self.failure = "error", message


class Engine:
    """Runs requests on a native model.

    model, cache: the native ones; model.forward computes one step
    sample: the backend's sampler; row_dtype: the dtype of its rows
    """

    def __init__(
        self,
        model: Any,
        cache: Any,
        sample: Callable[..., tuple],
        row_dtype: np.dtype,
        scheduler: Scheduler,
        vocab_size: int,
    ):
        self.model, self.cache, self.sample, self.row_dtype = model, cache, sample, row_dtype
        self.scheduler, self.vocab_size = scheduler, vocab_size
        self._requests: dict[ScheduledSequence, Request] = {}
        self._lock = threading.RLock()

    def run(self, requests: Sequence[Request]) -> None:
        """Run `requests` to their ends, together with whatever else is in the engine."""
        for _ in self.steps(requests):
            pass

    def steps(self, requests: Sequence[Request]) -> Iterator[None]:
        """Like `run`, yielding after each step. Closing the iterator, or an error, frees what they hold."""
        try:
            for request in requests:
                self.add(request)
            while not all(request.finished for request in requests):
                self.step()
                yield
            for request in requests:
                if request.error is not None:  # another thread's step failed with ours in it
                    raise request.error
        finally:
            for request in requests:
                self.release(request)

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError when the key/value cache could not hold it even alone."""
        with self._lock:
            # The last token is drawn but never run, so it needs no place in the cache.
            self.scheduler.pages.check_fits(len(request.prompt) + request.max_tokens - 1)
            self._requests[request.sequence] = request
            self.scheduler.add(request.sequence)

    def release(self, request: Request) -> None:
        """Take a request out and free its pages; one that has not finished is aborted."""
        with self._lock:
            if self._requests.pop(request.sequence, None) is None:
                return
            self.scheduler.remove(request.sequence)
            if not request.finished:
                request.finish_reason = "abort"
            request.reader.finish()

    def step(self) -> None:
        """Run one batch: each sequence in it gains a token or comes nearer to its first."""
        with self._lock:
            chunks = self.scheduler.schedule()
            try:
                logits = self.forward(chunks)
                self.scheduler.advance(chunks)
                self._draw([self._requests[chunk.sequence] for chunk in chunks if chunk.wants_logits], logits)
            except BaseException as error:
                for chunk in chunks:
                    if (request := self._requests.get(chunk.sequence)) is not None:
                        request.error = error
                        self.release(request)
                raise

    def forward(self, chunks: Sequence[Chunk], all_rows: bool = False) -> np.ndarray:
        """Logits float32 [n, vocab] of each chunk that reaches its sequence's end, or of `all_rows`."""
        if not chunks:
            return np.empty((0, self.vocab_size), np.float32)
        tokens = [token for chunk in chunks for token in chunk.sequence.tokens[chunk.start : chunk.end]]
        row_start = np.cumsum([0] + [chunk.count for chunk in chunks], dtype=np.int32)
        last_rows = [end - 1 for chunk, end in zip(chunks, row_start[1:], strict=True) if chunk.wants_logits]
        return self.model.forward(
            self.cache,
            np.array(tokens, np.int32),
            row_start,
            np.array([chunk.start for chunk in chunks], np.int32),
            table_array([chunk.sequence.pages.full for chunk in chunks]),
            table_array([chunk.sequence.pages.window for chunk in chunks]),
            np.arange(len(tokens), dtype=np.int32) if all_rows else np.array(last_rows, np.int32),
        )

    def logits(self, tokens: Sequence[int], rows: int) -> Iterator[np.ndarray]:
        """Logits float32 [at most `rows`, vocab] after each of `tokens`, chunk by chunk.

        Raises RequestError when other requests hold the pages it needs.
        """
        sequence, pages = ScheduledSequence(list(tokens)), self.scheduler.pages
        pages.check_fits(len(tokens))
        try:
            while sequence.pending:
                with self._lock:
                    chunk = Chunk(sequence, sequence.computed, min(sequence.pending, rows))
                    pages.reserve(sequence.pages, chunk.end)
                    logits = self.forward([chunk], all_rows=True)
                    self.scheduler.advance([chunk])
                yield logits
        finally:
            with self._lock:
                self.scheduler.remove(sequence)

    def _draw(self, requests: Sequence[Request], logits: np.ndarray) -> None:
        """One token for each request; finished ones leave and free their pages."""
        if not requests:
            return
        arrays: SampleArrays = sample_arrays(
            [request.draw(self.vocab_size) for request in requests], self.row_dtype
        )
        token, logprob, rank, top_token, top_logprob, status = self.sample(logits, *arrays)
        for row, request in enumerate(requests):
            if status[row] != DRAWN:
                request.fail(
                    f"the logits after {len(request.prompt)} prompt and {len(request.output)} answer tokens "
                    "hold NaN or infinity, expected finite numbers; check the weights and any edits of them"
                )
                self.release(request)
                continue
            request.cumulative_logprob += float(logprob[row])
            count = request.params.logprobs
            if count is not None:
                top = zip(top_token[row, :count].tolist(), top_logprob[row, :count].tolist(), strict=True)
                found = {top_id: Logprob(value, place + 1) for place, (top_id, value) in enumerate(top)}
                found.setdefault(int(token[row]), Logprob(float(logprob[row]), int(rank[row])))
                request.logprobs.append(found)
            request.accept(int(token[row]))
            if request.finished:
                self.release(request)
