"""Which tokens of which sequences run in the next step. Pure: tokens and pages are numbers here.

Running sequences go first, decodes before prefills, so that a long prompt never holds up an answer. What is
left of the step's token budget goes to the prompts, in chunks. When pages run out the youngest sequence
gives its own back and starts over later; its answer does not change, only its time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .kv_cache import PageManager, PageTable


@dataclass(eq=False)
class Sequence:
    """Tokens known so far, and how many of them have their keys and values in the cache."""

    tokens: list[int]
    computed: int = 0
    pages: PageTable = field(default_factory=PageTable)

    @property
    def pending(self) -> int:
        """Tokens still to be run: the rest of the prompt, or the last drawn token."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of a sequence, from position `start`, that run in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        """Position after the chunk."""
        return self.start + self.count

    @property
    def wants_logits(self) -> bool:
        """Whether the chunk reaches the sequence's last token, so that a new one can be drawn."""
        return self.end == len(self.sequence.tokens)


class Scheduler:
    """Admits, chunks, preempts. Every sequence must fit the cache alone (see PageManager.check_fits)."""

    def __init__(self, pages: PageManager, max_sequences: int, max_step_tokens: int):
        assert 1 <= max_sequences <= max_step_tokens, "a step must have room for one token of each sequence"
        self.pages, self.max_sequences, self.max_step_tokens = pages, max_sequences, max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those that wait."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step; empty when there is nothing to do. Pages for its tokens are held when it returns."""
        budget, chunks = self.max_step_tokens, {}
        for sequence in sorted(self.running, key=lambda sequence: sequence.pending > 1):
            count = min(sequence.pending, budget)
            if count == 0 or sequence not in self.running:
                continue
            while not self.pages.can_extend(sequence.pages, sequence.computed + count):
                victim = self._preempt_youngest()
                if victim in chunks:
                    budget += chunks.pop(victim).count
                if victim is sequence:
                    break
            else:
                chunks[sequence] = self._chunk(sequence, count)
                budget -= count
        # One just sent back cannot come straight in again: it would need the pages it gave away.
        while self.waiting and budget and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            count = min(sequence.pending, budget)
            if not self.pages.can_admit(len(sequence.tokens), count):
                break
            self.running.append(self.waiting.popleft())
            chunks[sequence] = self._chunk(sequence, count)
            budget -= count
        idle = not self.running and not self.waiting
        assert chunks or idle, "every sequence fits the cache alone, so the oldest can always go on"
        return list(chunks.values())

    def advance(self, chunks: list[Chunk]) -> None:
        """Record that a step has run; window pages that no later query sees go back."""
        for chunk in chunks:
            chunk.sequence.computed = chunk.end
            self.pages.expire(chunk.sequence.pages, chunk.end)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has finished, failed or been cancelled, and free its pages."""
        self.pages.release(sequence.pages)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        self.pages.extend(sequence.pages, sequence.computed + count)
        return Chunk(sequence, sequence.computed, count)

    def _preempt_youngest(self) -> Sequence:
        victim = self.running.pop()
        self.pages.release(victim.pages)
        victim.computed = 0
        self.waiting.appendleft(victim)
        return victim
