"""Which tokens of which sequences run in the next step. Pure: tokens and pages are numbers here.

Running sequences go first, decodes before prefills, so that a long prompt never holds up an answer. What is
left of the step's token budget goes to the prompts, in chunks. When pages run out the youngest sequence
gives its own back and starts over later; its answer does not change, only its time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .kv_cache import PageManager, PageTable


@dataclass(eq=False)
class Sequence:
    """Tokens known so far, and how many of them have their keys and values in the cache.

    reported: None when only the logits after the last token are wanted; otherwise those after each token are,
        and so many have been handed out. They stay handed out when the sequence starts over.
    """

    tokens: list[int]
    computed: int = 0
    pages: PageTable = field(default_factory=PageTable)
    reported: int | None = None

    @property
    def pending(self) -> int:
        """Tokens still to be run: the rest of the prompt, or the last drawn token."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of a sequence, from position `start`, that run in this step.

    logit_positions: those whose logits are wanted
    """

    sequence: Sequence
    start: int
    count: int
    logit_positions: range

    @property
    def end(self) -> int:
        """Position after the chunk."""
        return self.start + self.count


@dataclass
class _Step:
    """A step being put together, and what is left of its limits."""

    tokens: int
    rows: int
    chunks: dict[Sequence, Chunk] = field(default_factory=dict)

    def room(self, sequence: Sequence) -> int:
        """How many of its tokens can still take part."""
        count = min(sequence.pending, self.tokens)
        return count if sequence.reported is None else min(count, self.rows)

    def add(self, chunk: Chunk) -> None:
        self.chunks[chunk.sequence] = chunk
        self._spend(chunk, 1)

    def drop(self, sequence: Sequence) -> None:
        if sequence in self.chunks:
            self._spend(self.chunks.pop(sequence), -1)

    def _spend(self, chunk: Chunk, sign: int) -> None:
        self.tokens -= sign * chunk.count
        if chunk.sequence.reported is not None:
            self.rows -= sign * chunk.count


class Scheduler:
    """Admits, chunks, preempts. Every sequence must fit the cache alone (see PageManager.check_fits).

    max_step_tokens: tokens of one step
    max_logit_rows: of them, those of sequences whose logits are all wanted, which bounds the memory for them
    """

    def __init__(self, pages: PageManager, max_sequences: int, max_step_tokens: int, max_logit_rows: int):
        assert 1 <= max_sequences <= max_step_tokens, "a step must have room for one token of each sequence"
        assert max_logit_rows >= 1, "a step must have room for one row of logits"
        self.pages, self.max_sequences = pages, max_sequences
        self.max_step_tokens, self.max_logit_rows = max_step_tokens, max_logit_rows
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those that wait."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step; empty when there is nothing to do. Pages for its tokens are held when it returns."""
        step, preempted = _Step(self.max_step_tokens, self.max_logit_rows), False
        for sequence in sorted(self.running, key=lambda sequence: sequence.pending > 1):
            count = step.room(sequence)
            if count == 0 or sequence not in self.running:
                continue
            while not self.pages.can_extend(sequence.pages, sequence.computed + count):
                preempted = True
                victim = self._preempt_youngest()
                step.drop(victim)
                if victim is sequence:
                    break
            else:
                step.add(self._chunk(sequence, count))
        # One just sent back must not come straight in again: it would take the pages it was made to give.
        while self.waiting and not preempted and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            count = step.room(sequence)
            if count == 0 or not self.pages.can_admit(len(sequence.tokens), count):
                break
            self.running.append(self.waiting.popleft())
            step.add(self._chunk(sequence, count))
        idle = not self.running and not self.waiting
        assert step.chunks or idle, "every sequence fits the cache alone, so the oldest can always go on"
        return list(step.chunks.values())

    def advance(self, chunks: list[Chunk]) -> None:
        """Record that a step has run; window pages that no later query sees go back."""
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed = chunk.end
            if sequence.reported is not None:
                sequence.reported = max(sequence.reported, chunk.end)
            self.pages.expire(sequence.pages, chunk.end)

    def restart(self, sequences: Iterable[Sequence]) -> None:
        """Begin anew with these, oldest first, and all pages free: after a step that was torn apart."""
        self.pages.reset()
        self.running, self.waiting = [], deque(sequences)
        for sequence in self.waiting:
            sequence.computed, sequence.pages = 0, PageTable()

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has finished, failed or been cancelled, and free its pages."""
        self.pages.release(sequence.pages)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        start, end = sequence.computed, sequence.computed + count
        self.pages.extend(sequence.pages, end)
        first = len(sequence.tokens) - 1 if sequence.reported is None else sequence.reported
        return Chunk(sequence, start, count, range(max(start, first), max(end, first)))

    def _preempt_youngest(self) -> Sequence:
        victim = self.running.pop()
        self.pages.release(victim.pages)
        victim.computed = 0
        self.waiting.appendleft(victim)
        return victim
