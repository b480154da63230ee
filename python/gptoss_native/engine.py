"""The generation loop: schedule, forward, sample, hand out.

Token ids in, token ids out; text is the business of each request's reader. Several threads may call one
engine, and their tasks share steps: one thread runs a step for all, the others sleep until theirs have moved.
What comes in and goes out meanwhile waits in an inbox for the next step, so that neither ever blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .errors import GptossError
from .kv_cache import table_array
from .request import Drawn, Request, Scoring
from .sampling import sample_arrays
from .scheduler import Chunk, Scheduler
from .scheduler import Sequence as ScheduledSequence
from .turns import Caller, Turns


class Engine:
    """Runs requests and scorings on a native model.

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
        self._tasks: dict[ScheduledSequence, Request | Scoring] = {}
        self._inbox: deque[tuple[Callable, Request | Scoring]] = deque()
        self._turns = Turns()

    def run(self, tasks: Sequence[Request | Scoring]) -> None:
        """Run `tasks` to their ends, together with whatever else is in the engine.

        Raises RequestError when the key/value cache could not hold one of them even alone, and what went
        wrong with a step.
        """
        with self._called(tasks, every_step=False) as caller:
            while caller.waits:
                self._advance(caller)

    def steps(self, tasks: Sequence[Request | Scoring]) -> Iterator[None]:
        """Like `run`, yielding after each step. Closing the iterator, or an error, frees what they hold."""
        with self._called(tasks, every_step=True) as caller:
            while caller.waits:
                self._advance(caller)
                if caller.error is None:
                    yield

    def cancel(self, task: Request | Scoring) -> None:
        """Take a task out, at once or before the next step; one that has not finished is aborted.

        Never waits: the garbage collector may close an iterator anywhere, even inside a step of this thread.
        """
        self._inbox.append((self._remove, task))
        self._read_inbox_if_free()

    def forward(self, chunks: Sequence[Chunk]) -> Any:
        """The native Logits [n, vocab] of the rows that the chunks want, in order."""
        tokens = [token for chunk in chunks for token in chunk.sequence.tokens[chunk.start : chunk.end]]
        row_start = np.cumsum([0] + [chunk.count for chunk in chunks], dtype=np.int32)
        rows = [
            row + position - chunk.start
            for chunk, row in zip(chunks, row_start.tolist(), strict=False)
            for position in chunk.logit_positions
        ]
        return self.model.forward(
            self.cache,
            np.array(tokens, np.int32),
            row_start,
            np.array([chunk.start for chunk in chunks], np.int32),
            table_array([chunk.sequence.pages.full for chunk in chunks]),
            table_array([chunk.sequence.pages.window for chunk in chunks]),
            np.array(rows, np.int32),
        )

    @contextmanager
    def _called(self, tasks: Sequence[Request | Scoring], every_step: bool) -> Iterator[Caller]:
        """The calling thread's tasks are in the engine; then they are out, and what went wrong is raised."""
        for task in tasks:
            self.scheduler.pages.check_fits(task.cached_tokens)
        caller = Caller(tasks, every_step)
        try:
            for task in tasks:
                task.caller = caller
                self._inbox.append((self._admit, task))
            yield caller
            if caller.error is not None:
                raise caller.error
        finally:
            for task in tasks:
                if task in caller.unfinished:
                    self.cancel(task)

    def _advance(self, caller: Caller) -> None:
        """Return once the caller's tasks have moved, by a step of this thread or of another."""
        if not self._turns.take(caller):
            return
        try:
            self._step(caller)
            while caller.waits and not caller.every_step:
                self._step(caller)
        finally:
            self._turns.leave()
            self._read_inbox_if_free()

    def _step(self, driver: Caller) -> None:
        """Run one batch: each sequence in it gains a token or comes nearer to its first."""
        with self._mended():
            self._read_inbox()
            # Rows to draw from come first, so that the sampler finds them without the others' being moved.
            chunks = sorted(self.scheduler.schedule(), key=self._is_scored)
        callers = {self._tasks[chunk.sequence].caller for chunk in chunks} - {driver}
        try:
            self._run(chunks, driver)
        finally:
            for caller in callers:
                caller.tell()

    def _run(self, chunks: Sequence[Chunk], driver: Caller) -> None:
        if not chunks:
            return
        error = None
        try:
            # Ctrl+C changes nothing here but rows of the cache, which the next step writes again.
            logits = self.forward(chunks)
            draws = self._draw(chunks, logits)
        except Exception as failure:
            error = failure
        with self._mended():
            if error is None:
                self.scheduler.advance(chunks)
                self._hand_out(chunks, logits, draws, driver)
            else:
                for chunk in chunks:
                    self._fail(self._tasks[chunk.sequence], error, driver)

    def _is_scored(self, chunk: Chunk) -> bool:
        return isinstance(self._tasks[chunk.sequence], Scoring)

    def _draw(self, chunks: Sequence[Chunk], logits: Any) -> list[Drawn | GptossError]:
        """A token for each request that has reached its end, in order."""
        ending = [
            self._tasks[chunk.sequence]
            for chunk in chunks
            if chunk.logit_positions and not self._is_scored(chunk)
        ]
        return self._sample(ending, logits, 0)

    def _sample(self, requests: Sequence[Request], logits: Any, first: int) -> list[Drawn | GptossError]:
        """One row each, from `first` on; what the sampler refuses in one is told to that request alone."""
        if not requests:
            return []
        arrays = sample_arrays([request.draw(self.vocab_size) for request in requests], self.row_dtype)
        try:
            columns = self.sample(logits, *arrays, first)
        except GptossError as error:
            if len(requests) == 1:
                return [error]
            return [self._sample([request], logits, first + i)[0] for i, request in enumerate(requests)]
        return [Drawn(*row) for row in zip(*columns, strict=True)]

    def _hand_out(
        self, chunks: Sequence[Chunk], logits: Any, draws: list[Drawn | GptossError], driver: Caller
    ) -> None:
        """Give each task its token or its logits; finished ones leave and free their pages."""
        drawn, row = iter(draws), 0
        for chunk in chunks:
            task, rows = self._tasks[chunk.sequence], chunk.logit_positions
            try:
                if rows and isinstance(task, Scoring):
                    task.take_logits(logits.rows(row, len(rows)))
                elif rows:
                    found = next(drawn)
                    if isinstance(found, GptossError):
                        task.fail(str(found))
                    else:
                        task.take_draw(found)
            except BaseException as error:  # it has taken half of its token, or its reader has failed
                self._fail(task, error, driver)
                if not isinstance(error, Exception):
                    raise
            row += len(rows)
            if task.finished:
                self._remove(task)

    def _fail(self, task: Request | Scoring, error: BaseException, driver: Caller) -> None:
        """End a task by an error, which its caller raises; the one whose thread ran the step, as it is."""
        task.error = error
        if task.caller is driver:
            driver.error = error
        else:
            task.caller.error = GptossError(f"a step failed, run by another thread for this one too: {error}")
            task.caller.error.__cause__ = error
        self._remove(task)

    def _admit(self, task: Request | Scoring) -> None:
        if task.sequence not in self._tasks:
            self._tasks[task.sequence] = task
            self.scheduler.add(task.sequence)

    def _remove(self, task: Request | Scoring) -> None:
        if task.sequence in self._tasks:
            self.scheduler.remove(task.sequence)
            task.end()
            task.caller.unfinished.discard(task)
            del self._tasks[task.sequence]

    def _read_inbox(self) -> None:
        """Only with the turn in hand. A letter is thrown away once dealt with; that may happen twice."""
        while self._inbox:
            action, task = self._inbox[0]
            action(task)
            self._inbox.popleft()

    def _read_inbox_if_free(self) -> None:
        while self._inbox and self._turns.take_if_free():
            try:
                with self._mended():
                    self._read_inbox()
            finally:
                self._turns.leave()

    @contextmanager
    def _mended(self) -> Iterator[None]:
        """Ctrl+C may strike between any two lines: queues and pages torn by it are made anew."""
        try:
            yield
        except BaseException:
            self.scheduler.restart(self._tasks)
            for task in [task for task in self._tasks.values() if task.finished]:
                self._remove(task)
            raise
