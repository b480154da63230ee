"""Scheduler and cache against a model of them, under every order of events that hypothesis can think of.

Oracle: each page's contents, written when its tokens run and compared whenever a sequence would read them.
So a page handed out twice, given back too early, or found for another text, for a request that is steered
otherwise, or after the model's numbers have been edited, is seen at once. Guesses at coming tokens are
written too, right and wrong ones.
"""

from __future__ import annotations

from gptoss_native.kv_cache import NOT_HELD, PageManager, window_pages_needed
from gptoss_native.scheduler import Scheduler, Sequence
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

LONGEST = 40


class Serving(RuleBasedStateMachine):
    """Requests come, run, are paused and go, on a device that is up to one step behind."""

    sequences = Bundle("sequences")

    @initialize(
        page_size=st.integers(1, 5),
        window=st.integers(1, 12),
        max_sequences=st.integers(1, 4),
        extra_tokens=st.integers(0, 12),
        extra_pages=st.integers(0, 12),
        replays=st.booleans(),
        max_drafted=st.integers(0, 9),
    )
    def begin(self, page_size, window, max_sequences, extra_tokens, extra_pages, replays, max_drafted):
        self.page_size, self.window, self.budget = page_size, window, max_sequences + extra_tokens
        full = -(-LONGEST // page_size) + extra_pages
        windowed = window_pages_needed(max_sequences, LONGEST, self.budget, window, page_size)
        self.pages = PageManager(page_size, window, full, windowed)
        self.scheduler = Scheduler(self.pages, max_sequences, self.budget, 3, replays, max_drafted)
        self.full, self.windowed = {}, {}  # (page, slot) -> the tokens up to there
        self.goals: dict[Sequence, int] = {}
        self.version, self.began = 0, {}  # of the model's numbers; those with which a sequence has begun

    @rule(
        target=sequences,
        shared=st.integers(0, 12),
        own=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        answer=st.integers(1, 12),
        priority=st.integers(0, 2),
        scored=st.booleans(),
        kind=st.sampled_from([None, "steered"]),
    )
    def add(self, shared, own, answer, priority, scored, kind):
        tokens = [7] * shared + own
        sequence = Sequence(
            tokens,
            priority=priority,
            kind=kind,
            reported=0 if scored else None,
            limit=None if scored else len(tokens) + answer - 1,
        )
        self.goals[sequence] = len(tokens) if scored else len(tokens) + answer
        self.scheduler.add(sequence)
        return sequence

    @rule(sequence=consumes(sequences))
    def cancel(self, sequence):
        if self.goals.pop(sequence, None) is not None:
            self.scheduler.remove(sequence)

    @rule(sequence=sequences, paused=st.booleans())
    def pause(self, sequence, paused):
        sequence.paused = paused

    @rule(holds=st.booleans())
    def hold(self, holds):
        """An edit waits for those under way, or has been made or given up."""
        self.scheduler.holds = holds

    @rule()
    def edit(self):
        """The numbers change between two steps; those under way go on."""
        self.version += 1
        self.pages.outdate(sequence.pages for sequence in self.scheduler.running)

    @rule(guesses=st.integers(0, 6), wrong=st.integers(0, 6))
    def step(self, guesses=0, wrong=0):
        """guesses: at the next tokens of each sequence, all but the one at `wrong` as they will be"""
        for sequence in self.scheduler.running:
            places = range(len(sequence.tokens), len(sequence.tokens) + guesses)
            sequence.draft = tuple((place + (place - places.start == wrong)) % 2 for place in places)
        before = set(self.scheduler.running)
        begun = {sequence for sequence in self.scheduler.waiting if sequence.has_begun}
        chunks = self.scheduler.schedule()
        for sequence in set(self.scheduler.running) - before:
            self.began[sequence] = self.version
            assert sequence in begun or not self.scheduler.holds
        assert sum(chunk.count for chunk in chunks) <= self.budget
        assert sum(len(chunk.draft) for chunk in chunks) <= self.scheduler.max_drafted
        assert len({chunk.sequence for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            self._run(chunk)
        self.scheduler.advance(chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.reported is not None:
                ended = sequence.reported == len(sequence.tokens)
            else:
                if chunk.logit_positions:
                    assert not chunk.draft or len(chunk.logit_positions) == 1 + len(chunk.draft)
                    right = self._draw(sequence, chunk.draft)
                    if chunk.draft:
                        self.scheduler.settle(chunk, right)
                        assert sequence.computed == len(sequence.tokens) - 1
                        assert len(sequence.pages.full) == -(-sequence.computed // self.page_size)
                ended = len(sequence.tokens) == self.goals[sequence]
            if ended:
                del self.goals[sequence]
                self.scheduler.remove(sequence)
        awake = [sequence for sequence in self.goals if not sequence.paused]
        paused = len(awake) < len(self.goals)  # they hold pages and places that others wait for
        held = self.scheduler.holds and not any(sequence.has_begun for sequence in awake)
        assert chunks or not awake or paused or held, "nobody may starve"

    @staticmethod
    def _draw(sequence, draft):
        """Tokens alternate; returns how many guesses were right."""
        for right in range(len(draft) + 1):
            sequence.tokens.append(len(sequence.tokens) % 2)
            if right == len(draft) or draft[right] != sequence.tokens[-1]:
                return right

    def _run(self, chunk):
        sequence, table = chunk.sequence, chunk.sequence.pages
        known = tuple(sequence.tokens[: chunk.sure_end]) + chunk.draft
        for position in range(chunk.start, chunk.end):
            page, slot = divmod(position, self.page_size)
            text = known[: position + 1]
            content = (sequence.kind, text, self.version)
            self.full[table.full[page], slot] = self.windowed[table.window[page], slot] = content
            oldest = max(position - self.window + 1, 0)
            for pool, pages, first in ((self.full, table.full, 0), (self.windowed, table.window, oldest)):
                for seen in range(first, position + 1):
                    page, slot = divmod(seen, self.page_size)
                    assert pages[page] != NOT_HELD
                    kind, found, version = pool[pages[page], slot]
                    assert (kind, found) == (sequence.kind, text[: seen + 1])
                    assert version >= self.began[sequence], "computed with numbers of before it began"

    @invariant()
    def pages_add_up(self):
        if not hasattr(self, "pages"):
            return
        tables = [sequence.pages for sequence in self.scheduler.running]
        full = {page for table in tables for page in table.full}
        windowed = {page for table in tables for page in table.window if page != NOT_HELD}
        assert len(full) == self.pages.full.count - self.pages.full.free
        assert len(windowed) == self.pages.window_pool.count - self.pages.window_pool.free
        assert all(not sequence.pages.full for sequence in self.scheduler.waiting)
        assert len(self.scheduler.running) <= self.scheduler.max_sequences
        assert {*self.scheduler.running, *self.scheduler.waiting} == set(self.goals)

    def teardown(self):
        """All that is left comes to an end, and every page is free."""
        if not hasattr(self, "pages"):
            return
        self.scheduler.holds = False
        for sequence in self.goals:
            sequence.paused = False
        for _ in range(2000):
            if not self.goals:
                break
            self.step()
        assert not self.goals
        assert self.pages.full.free == self.pages.full.count
        assert self.pages.window_pool.free == self.pages.window_pool.count


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
