"""The generation loop: schedule, forward, sample, hand out.

Token ids in, token ids out; text is the business of each request's reader. Everything happens on one thread
of the engine's own, which lives while there is something to do. Callers, on whatever threads, leave letters
in its inbox and are told of each step that has moved a task of theirs, so that neither ever waits for the
other.

On a device of its own the loop runs ahead: while the device computes step n + 1, whose tokens it takes from
its own draws, the host reads what step n has drawn and prepares the draws of n + 1, so that the device finds
its next work before it asks. A request that ends in step n has a row too many in n + 1; nobody looks at it.
One whose draft is being checked waits for that, since nobody knows yet which of its guesses are right.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakSet

import numpy as np

from .errors import GptossError
from .extras import Extras
from .request import IDLE_DRAW, Drawn, Request, Scoring
from .sampling import Draw, sample_arrays
from .scheduler import Chunk, Scheduler
from .scheduler import Sequence as ScheduledSequence
from .speculation import Speculation
from .steps import Step, Task, draws_by_screen, forward_arguments, place_of
from .visit import Visit

#: Told on the engine's thread: of each step that has moved the task, and when it has ended.
Listener = Callable[[Task], None]


class Engine:
    """Runs requests and scorings on a native model.

    model, cache: the native ones; model.forward computes one step
    enqueue_sample: the backend's sampler; row_dtype: the dtype of its rows
    ahead: the device works on its own while the host goes on
    extras: what requests do and see beside that
    speculation: where guesses at coming tokens come from; None: there are none
    """

    def __init__(
        self,
        model: Any,
        cache: Any,
        enqueue_sample: Callable[..., Any],
        row_dtype: np.dtype,
        scheduler: Scheduler,
        vocab_size: int,
        ahead: bool = False,
        extras: Extras | None = None,
        speculation: Speculation | None = None,
    ):
        self.model, self.cache, self.enqueue_sample, self.row_dtype = model, cache, enqueue_sample, row_dtype
        self.scheduler, self.vocab_size, self.ahead = scheduler, vocab_size, ahead
        self.extras, self.speculation = extras or Extras(), speculation
        self.steps_run = 0
        self._tasks: dict[ScheduledSequence, Task] = {}
        # Its put is reentrant: the garbage collector may close an iterator, which cancels, anywhere.
        self._inbox: SimpleQueue[tuple[Callable[[Any], None], Task | Visit]] = SimpleQueue()
        self._visits: deque[Visit] = deque()
        self._turn = threading.Lock()  # held by the thread that runs the loop
        self._stopping = False

    def submit(self, tasks: Sequence[Task], listener: Listener) -> None:
        """Queue tasks; `listener` hears of their steps and their ends, and must not block.

        Raises RequestError when the key/value cache could not hold one of them even alone.
        """
        for task in tasks:
            self.scheduler.pages.check_fits(task.cached_tokens)
        for task in tasks:
            task.listener = listener
            self._send(self._admit, task)
        self._wake()

    def run(self, tasks: Sequence[Task]) -> None:
        """Run `tasks` to their ends, together with whatever else is in the engine.

        Raises what `submit` raises, and what went wrong with a step.
        """
        for _ in self._news(tasks, lambda task: task.ended):
            pass

    def steps(self, tasks: Sequence[Task]) -> Iterator[None]:
        """Like `run`, yielding after steps that moved them. Closing the iterator, or an error, ends them."""
        return self._news(tasks, lambda task: True)

    def cancel(self, task: Task) -> None:
        """Take a task out before the next step; one that has not finished is aborted. Never waits."""
        self._send(self._remove, task)

    def pause(self, task: Task, paused: bool) -> None:
        """Make no more tokens of a task for the time being, or go on with it. Never waits."""

        def change(task: Task) -> None:
            task.sequence.paused = paused

        self._send(change, task)

    def change(self, work: Callable[[], None], *, running: str, timeout: float | None) -> None:
        """Run `work`, which changes the model's numbers, between two steps; nothing of before is reused.

        running: "finish": tasks that have begun end first, new ones wait; "continue": they go on with the new
            numbers, and with the keys and values that they have
        timeout: seconds to wait for them; then nothing is changed. Raises GptossError then, and what `work`
        raises.
        """
        self._visit(Visit(work, waits=running == "finish", outdates=True), timeout)

    def between_steps(self, work: Callable[[], None]) -> None:
        """Run `work`, which changes nothing that tasks have computed. Raises what it raises."""
        self._visit(Visit(work, waits=False, outdates=False), None)

    def stop(self) -> None:
        """Abort every task and wait for the step in progress."""
        self._stopping = True
        with self._turn:
            self._read_inbox()
            for task in list(self._tasks.values()):
                self._remove(task)
            self._let_visitors_work()
        self._stopping = False

    def forward(self, chunks: Sequence[Chunk], **extras: Any) -> Any:
        """The native Logits [n, vocab] of the rows that the chunks want, in order; decoded first."""
        arguments = forward_arguments(chunks, one_by_one=self.scheduler.replays)
        return self.model.forward(self.cache, *arguments, **extras)

    def _news(self, tasks: Sequence[Task], wanted: Callable[[Task], bool]) -> Iterator[None]:
        """Yields when something wanted has happened to the tasks, until all have ended."""
        news: SimpleQueue[Task] = SimpleQueue()
        unfinished = set(tasks)
        try:
            self.submit(tasks, lambda task: news.put(task) if wanted(task) else None)
            while unfinished:
                for task in _all_there_is(news):
                    if task.error is not None:
                        raise task.error
                    if task.ended:
                        unfinished.discard(task)
                yield
        finally:
            for task in unfinished:
                self.cancel(task)

    def _send(self, action: Callable[[Any], None], subject: Task | Visit) -> None:
        self._inbox.put((action, subject))

    def _wake(self) -> None:
        if not self._turn.locked():
            # Should there be two, one leaves at once.
            threading.Thread(target=self._live, name="gptoss-native engine", daemon=True).start()

    def _live(self) -> None:
        """Work until there is nothing to do. Whoever sends a letter while this ends is heard too."""
        while not self._stopping and self._turn.acquire(blocking=False):
            _working.add(self)
            try:
                self._work()
            except Exception as error:  # a mistake of ours: nobody must wait for ever
                tasks, self._tasks = list(self._tasks.values()), {}
                self.scheduler.restart([])
                self._let_visitors_work()
                for task in tasks:
                    task.error = GptossError(f"the engine has failed, please report it: {error!r}")
                    task.error.__cause__ = error
                    task.end()
                    task.listener(task)
            finally:
                _working.discard(self)
                self._turn.release()
            if self._inbox.empty():
                return

    def _work(self) -> None:
        flying = None
        if self.speculation is not None:
            self.speculation.costs.rested()
        while not self._stopping:
            self._read_inbox()
            self._end_late_ones()
            self._let_visitors_work()
            step = self._begin()
            if flying is not None:
                self._finish(flying)
            if step is not None:
                self._draw(step)
                # The logits of scored rows are gone once the next step begins.
                if not self.ahead or step.is_scored:
                    self._finish(step)
                    flying = None
                    continue
            elif flying is None:
                if not self._tasks and not self._visits:
                    return
                if self.speculation is not None:
                    self.speculation.costs.rested()
                self._wait_for_a_letter()  # all are paused, or wait for those that are
            flying = step

    def _begin(self) -> Step | None:
        """Give the device its next step; None when there is nothing to compute."""
        if self.speculation is not None:
            # What is counted of the experts must be the answers' own tokens.
            self.speculation.plan(self._deciding(), allowed=self.extras.usage is None)
        found = [(self._tasks[chunk.sequence], chunk) for chunk in self.scheduler.schedule()]
        if not found:
            return None
        parts = sorted(found, key=lambda part: place_of(*part))
        chunks = [chunk for _, chunk in parts]
        try:
            extras = self.extras.of_step(parts)
            logits = self.forward(chunks, screen=draws_by_screen(parts, self.vocab_size), **extras.arguments)
        except Exception as error:
            self._fail_all(parts, error)
            return None
        self.steps_run += 1
        failed = extras.show(parts, logits)
        self.scheduler.advance(chunks)
        for task, error in failed:
            self._fail(task, error)
        return Step(parts, logits)

    def _deciding(self) -> list[Request]:
        """Running requests that decode, or will with their next step."""
        tasks = (self._tasks[sequence] for sequence in self.scheduler.running if sequence.pending == 1)
        return [task for task in tasks if isinstance(task, Request) and not task.finished]

    def _draw(self, step: Step) -> None:
        """Have a token drawn for each request that has reached its end, and for each guess after it."""
        requests = step.drawing
        if not requests:
            return
        draws, rows = [], []
        for request, chunk in requests:
            rows.append(len(draws))
            draws += self._draws_of(request, chunk)
        try:
            step.draws = self.enqueue_sample(step.logits, *sample_arrays(draws, self.row_dtype))
        except Exception as error:
            self._fail_all(step.parts, error)
            return
        for row, (request, chunk) in zip(rows, requests, strict=True):
            # After a draft it is not known yet which row has the next token: the sequence waits for it.
            request.sequence.drawn = None if chunk.draft else row

    def _draws_of(self, request: Request, chunk: Chunk) -> list[Draw]:
        if not request.finished:
            try:
                return request.draws(self.vocab_size, chunk.draft)
            except Exception as error:
                self._fail(request, error)
        return [IDLE_DRAW] * len(chunk.logit_positions)

    def _finish(self, step: Step) -> None:
        """Give each task its tokens or its logits; finished ones leave and free their pages."""
        try:
            columns = step.draws.collect() if step.draws is not None else ()
        except Exception as error:
            self._fail_all(step.parts, error)
            return
        if self.speculation is not None:
            self.speculation.costs.finished(*step.decoding)
        drawn, row = map(Drawn._make, zip(*columns, strict=True)), 0
        for task, chunk in step.parts:
            count = len(chunk.logit_positions)
            found = list(islice(drawn, count)) if isinstance(task, Request) else []
            if not task.finished:  # in the step before, or cancelled since
                self._hand_out(task, chunk, step.logits, row, found)
            row += count

    def _hand_out(self, task: Task, chunk: Chunk, logits: Any, row: int, found: list[Drawn]) -> None:
        try:
            if chunk.logit_positions and isinstance(task, Scoring):
                task.take_logits(logits.rows(row, len(chunk.logit_positions)))
            elif found:
                task.sequence.drawn = None
                right = task.take_draws(found, chunk.draft)
                if chunk.draft:
                    self.scheduler.settle(chunk, right)
                    if self.speculation is not None:
                        self.speculation.count(len(chunk.draft), right)
        except Exception as error:  # its reader has failed, or what waits for its logits
            self._fail(task, error)
            return
        if task.finished:
            self._remove(task)
        else:
            task.listener(task)

    def _fail_all(self, parts: Sequence[tuple[Task, Chunk]], error: Exception) -> None:
        """A step has failed: each of its tasks has an error of its own, for its own thread to raise."""
        for task, _ in parts:
            if not task.finished:
                own = GptossError(f"a step of {len(parts)} sequences failed: {error}")
                own.__cause__ = error
                self._fail(task, own)

    def _fail(self, task: Task, error: Exception) -> None:
        task.error = error
        self._remove(task)

    def _end_late_ones(self) -> None:
        now = time.monotonic()
        for task in [
            task for task in self._tasks.values() if task.deadline is not None and task.deadline <= now
        ]:
            task.fail("its deadline has passed; what was generated before it stands")
            self._remove(task)

    def _let_visitors_work(self) -> None:
        """Those at the front of the queue, as long as they need not wait for tasks under way."""
        while self._visits and not (self._visits[0].waits and self.scheduler.begun):
            visit = self._visits.popleft()
            if visit.work() and visit.outdates:
                self.scheduler.pages.outdate(sequence.pages for sequence in self.scheduler.running)
        self.scheduler.holds = bool(self._visits)

    def _visit(self, visit: Visit, timeout: float | None) -> None:
        self._send(self._visits.append, visit)
        self._wake()
        visit.wait(timeout, withdraw=lambda: self._send(self._withdraw, visit))

    def _withdraw(self, visit: Visit) -> None:
        if visit in self._visits:
            self._visits.remove(visit)
            visit.give_up(len(self.scheduler.begun))

    def _admit(self, task: Task) -> None:
        self._tasks[task.sequence] = task
        self.scheduler.add(task.sequence)

    def _remove(self, task: Task) -> None:
        if task.sequence in self._tasks:
            del self._tasks[task.sequence]
            self.scheduler.remove(task.sequence)
            task.end()
            task.listener(task)

    def _read_inbox(self) -> None:
        while not self._inbox.empty():
            action, task = self._inbox.get()
            action(task)

    def _wait_for_a_letter(self) -> None:
        deadlines = [task.deadline for task in self._tasks.values() if task.deadline is not None]
        patience = max(min(deadlines) - time.monotonic(), 0) if deadlines else None
        with suppress(Empty):
            action, task = self._inbox.get(timeout=patience)
            action(task)


def _all_there_is(news: SimpleQueue) -> Iterator[Task]:
    """At least one, waiting for it."""
    yield news.get()
    while True:
        try:
            yield news.get_nowait()
        except Empty:
            return


_working: WeakSet[Engine] = WeakSet()


@atexit.register
def _stop_all() -> None:
    """A thread inside native code must not outlive the interpreter."""
    for engine in list(_working):
        engine.stop()
