"""Which tokens of which sequences run in the next step. Pure: tokens and pages are numbers here.

Running sequences go first, decodes before prefills, so that a long prompt never holds up an answer. What is
left of the step's token budget goes to the prompts, in chunks. When pages run out, the sequence that came
last of those that matter least gives its own back and starts over later; its answer does not change, only its
time. Drafts, guesses at what follows, get what then is still left: nobody waits or gives pages for a guess.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from .kv_cache import PageManager, PageTable
from .prefix_cache import Prefix


@dataclass(eq=False)
class Sequence:
    """Tokens known so far, and how many of them have their keys and values in the cache, or will have as soon
    as the device has done its work.

    reported: None when only the logits after the last token are wanted; otherwise those after each token are,
        and so many have been handed out. They stay handed out when the sequence starts over.
    limit: positions that run at most; the last token of an answer is drawn but never run
    priority: lower goes first; among equals, who came first
    drawn: row of the latest draw that holds the next token, where the host does not know it yet
    paused: nobody takes its tokens at the moment, so none are made
    cached: tokens whose keys and values were there when it first came in
    kind: pages are shared among sequences of one kind alone: those that the model treats alike
    draft: guesses at the tokens that follow, to be run and checked in the step of the last known one
    awaited: its next token has to be known before it goes on, so that a draft can be made
    """

    tokens: list[int]
    computed: int = 0
    pages: PageTable = field(default_factory=PageTable)
    reported: int | None = None
    limit: int | None = None
    priority: int = 0
    drawn: int | None = None
    paused: bool = False
    cached: int | None = None
    kind: Hashable = None
    arrival: int = -1
    draft: tuple[int, ...] = ()
    awaited: bool = False

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def length(self) -> int:
        """Its tokens, the one on its way included."""
        return len(self.tokens) + (self.drawn is not None)

    @property
    def pending(self) -> int:
        """Tokens still to be run: the rest of the prompt, or the last drawn token."""
        length = self.length if self.limit is None else min(self.length, self.limit)
        return length - self.computed

    @property
    def has_begun(self) -> bool:
        """Whether some of it has been computed, even if it has to start over."""
        return self.cached is not None

    @property
    def order(self) -> tuple[int, int]:
        """Smaller goes first."""
        return self.priority, self.arrival

    def ids(self, start: int, end: int) -> list[int]:
        """Tokens [start, end); -1 - i stands for row i of the latest draw."""
        known = self.tokens[start:end]
        return known if len(known) == end - start else [*known, -1 - self.drawn]


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of a sequence, from position `start`, that run in this step.

    logit_positions: those whose logits are wanted
    draft: the last of its tokens, which are guesses
    decodes: it is one token that was drawn, not a part of the prompt
    """

    sequence: Sequence
    start: int
    count: int
    logit_positions: range
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Position after the chunk."""
        return self.start + self.count

    @property
    def sure_end(self) -> int:
        """Position after those of its tokens that are no guesses."""
        return self.end - len(self.draft)

    @property
    def decodes(self) -> bool:
        return self.count == 1 and self.start >= self.sequence.prompt

    @property
    def ids(self) -> list[int]:
        """Its tokens, see Sequence.ids."""
        return [*self.sequence.ids(self.start, self.sure_end), *self.draft]

    def rows(self) -> list[Chunk]:
        """The same with each token as a chunk of its own."""
        return [
            Chunk(self.sequence, place, 1, range(place, place + 1), self.draft[max(guess, 0) : guess + 1])
            for guess, place in enumerate(range(self.start, self.end), self.start - self.sure_end)
        ]


@dataclass
class _Step:
    """A step being put together, and what is left of its limits."""

    tokens: int
    rows: int
    chunks: dict[Sequence, Chunk] = field(default_factory=dict)

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
    replays: drawn tokens that have to run again do so one by one, and only pages of prompts are shared: for
        devices on which a token's bits depend on whether it is decoded or part of a prompt
    max_drafted: guesses of one step
    """

    def __init__(
        self,
        pages: PageManager,
        max_sequences: int,
        max_step_tokens: int,
        max_logit_rows: int,
        replays: bool = False,
        max_drafted: int = 0,
    ):
        assert 1 <= max_sequences <= max_step_tokens, "a step must have room for one token of each sequence"
        assert max_logit_rows >= 1, "a step must have room for one row of logits"
        self.pages, self.max_sequences, self.replays = pages, max_sequences, replays
        self.max_step_tokens, self.max_logit_rows = max_step_tokens, max_logit_rows
        self.max_drafted = max_drafted
        self.waiting: list[Sequence] = []  # both in their order
        self.running: list[Sequence] = []
        self.prompt_tokens = self.cached_tokens = self.preemptions = 0  # of all time
        self.holds = False  # whether sequences that have not begun must wait
        self._arrivals = itertools.count()

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those that wait and matter as much."""
        sequence.arrival = next(self._arrivals)
        insort(self.waiting, sequence, key=lambda other: other.order)

    def schedule(self) -> list[Chunk]:
        """The next step; empty when there is nothing to do. Pages for its tokens are held when it returns."""
        step, preempted = _Step(self.max_step_tokens, self.max_logit_rows), False
        for sequence in sorted(self.running, key=lambda sequence: sequence.pending > 1):
            count = self._room(step, sequence)
            if count == 0 or sequence not in self.running:
                continue
            while not self.pages.can_extend(sequence.pages, sequence.computed + count):
                preempted = True
                victim = self._preempt_last()
                step.drop(victim)
                if victim is sequence:
                    break
            else:
                step.add(self._chunk(sequence, count))
        # One just sent back must not come straight in again: it would take the pages it was made to give.
        if not preempted:
            self._admit(step)
        if self.max_drafted:
            self._add_drafts(step)
        return list(step.chunks.values())

    def advance(self, chunks: list[Chunk]) -> None:
        """Record that a step is on its way; window pages that no later query sees go back."""
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.reported is not None:
                sequence.reported = max(sequence.reported, chunk.end)
            self._advance_to(sequence, chunk.sure_end)

    def settle(self, chunk: Chunk, right: int) -> None:
        """The first `right` guesses of a step were right; pages that only others needed go back."""
        sequence = chunk.sequence
        if sequence.computed == chunk.sure_end:  # it has not been preempted since
            self._advance_to(sequence, chunk.sure_end + right)
            self.pages.shorten(sequence.pages, sequence.computed)

    def _advance_to(self, sequence: Sequence, end: int) -> None:
        sequence.computed = end
        shared = min(end, sequence.prompt) if self.replays else end
        self.pages.share(sequence.pages, sequence.tokens, shared, sequence.kind)
        self.pages.expire(sequence.pages, end)

    @property
    def begun(self) -> list[Sequence]:
        """Sequences that are under way, running or sent back to wait."""
        return self.running + [sequence for sequence in self.waiting if sequence.has_begun]

    def restart(self, sequences: Iterable[Sequence]) -> None:
        """Begin anew with these, and all pages free and empty."""
        self.pages.reset()
        self.running, self.waiting = [], sorted(sequences, key=lambda sequence: sequence.order)
        for sequence in self.waiting:
            sequence.computed, sequence.pages = 0, PageTable()

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has finished, failed or been cancelled, and free its pages."""
        self.pages.release(sequence.pages)
        for queue in (self.running, self.waiting):
            if sequence in queue:
                queue.remove(sequence)

    def _admit(self, step: _Step) -> None:
        while step.tokens and len(self.running) < self.max_sequences:
            sequence, prefix = self._next()
            if sequence is None:
                return
            sequence.computed = len(prefix.nodes) * self.pages.page_size
            count = self._room(step, sequence)
            if count == 0 or not self.pages.can_admit(
                len(sequence.tokens), sequence.computed + count, prefix
            ):
                sequence.computed = 0
                return
            self.pages.attach(sequence.pages, prefix)
            if sequence.cached is None:
                sequence.cached = sequence.computed
                self.prompt_tokens += sequence.prompt
                self.cached_tokens += sequence.cached
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=lambda other: other.order)
            step.add(self._chunk(sequence, count))

    def _next(self) -> tuple[Sequence | None, Prefix]:
        """Whose turn it is to come in, and what is there of it."""
        for sequence in self.waiting[: self.max_sequences]:
            if self.holds and not sequence.has_begun:
                continue
            if sequence.reported is not None:
                return sequence, Prefix()  # every row of it has to run
            prefix = self.pages.find_prefix(sequence.tokens, sequence.kind)
            if not self._comes_soon(sequence, prefix):
                return sequence, prefix
        return None, Prefix()

    def _comes_soon(self, sequence: Sequence, prefix: Prefix) -> bool:
        """Whether one that runs is about to compute the next page of this one's text.

        n answers to one prompt, and agents that begin alike, wait for the first and take what it has done.
        """
        size, last = self.pages.page_size, prefix.nodes[-1] if prefix.nodes else None
        start = size * len(prefix.nodes)
        end = start + size
        if not self.pages.prefixes or end >= len(sequence.tokens):  # the last token has to run
            return False
        page = sequence.tokens[start:end]
        return any(
            other.computed < end <= other.prompt
            and other.kind == sequence.kind
            and not (other.paused or other.pages.outdated)
            and (other.pages.nodes[len(prefix.nodes) - 1 : len(prefix.nodes)] or [None])[0] is last
            and other.tokens[start:end] == page
            for other in self.running
        )

    def _room(self, step: _Step, sequence: Sequence) -> int:
        """How many of its tokens can still take part."""
        if sequence.paused or (sequence.awaited and sequence.drawn is not None):
            return 0
        count = min(sequence.pending, step.tokens)
        if sequence.reported is not None:
            return min(count, step.rows)
        if self.replays:
            return min(count, max(sequence.prompt - sequence.computed, 1))
        return count

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        start, end = sequence.computed, sequence.computed + count
        self.pages.extend(sequence.pages, end)
        first = sequence.length - 1 if sequence.reported is None else sequence.reported
        return Chunk(sequence, start, count, range(max(start, first), max(end, first)))

    def _add_drafts(self, step: _Step) -> None:
        """Let guesses take what the step has left of tokens and the cache of free pages."""
        left = min(self.max_drafted, step.tokens)
        for sequence, chunk in step.chunks.items():
            if not (sequence.draft and chunk.decodes and chunk.end == len(sequence.tokens)):
                continue
            count = min(len(sequence.draft), left, (sequence.limit or chunk.end + left) - chunk.end)
            while count > 0 and not self.pages.can_extend(sequence.pages, chunk.end + count):
                count -= 1
            if count > 0:
                left -= count
                end = chunk.end + count
                self.pages.extend(sequence.pages, end)
                draft = tuple(sequence.draft[:count])
                step.chunks[sequence] = Chunk(
                    sequence, chunk.start, 1 + count, range(chunk.start, end), draft
                )

    def _preempt_last(self) -> Sequence:
        victim = self.running.pop()
        self.pages.release(victim.pages)
        victim.computed = 0
        insort(self.waiting, victim, key=lambda other: other.order)
        self.preemptions += 1
        return victim
