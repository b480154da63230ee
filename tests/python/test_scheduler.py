"""Which tokens run when. The oracle is a list of promises, checked on every step of random workloads."""

from __future__ import annotations

import pytest
from gptoss_native.kv_cache import PageManager, window_pages_needed
from gptoss_native.scheduler import Scheduler, Sequence


def scheduler_of(
    full_pages,
    *,
    window_pages=1000,
    page_size=4,
    window=8,
    max_sequences=4,
    max_step_tokens=16,
    rows=16,
    prefixes=False,
    replays=False,
    max_drafted=0,
):
    pages = PageManager(page_size, window, full_pages, window_pages, prefixes)
    return Scheduler(pages, max_sequences, max_step_tokens, rows, replays, max_drafted)


def parts(chunks):
    return [(chunk.sequence, chunk.start, chunk.count) for chunk in chunks]


def run_step(scheduler):
    """One step; every answer that reaches its end gains a token, as in the engine."""
    chunks = scheduler.schedule()
    scheduler.advance(chunks)
    for chunk in chunks:
        if chunk.sequence.reported is None and chunk.end == len(chunk.sequence.tokens):
            chunk.sequence.tokens.append(0)
    return chunks


def test_long_prompt_is_cut_into_chunks_while_others_decode():
    scheduler = scheduler_of(100)
    short, long = Sequence([1, 2, 3]), Sequence(list(range(40)))
    scheduler.add(short)
    scheduler.add(long)
    assert parts(run_step(scheduler)) == [(short, 0, 3), (long, 0, 13)]
    assert parts(run_step(scheduler)) == [(short, 3, 1), (long, 13, 15)]
    assert parts(run_step(scheduler)) == [(short, 4, 1), (long, 28, 12)]
    assert parts(run_step(scheduler)) == [(short, 5, 1), (long, 40, 1)]


def test_decodes_come_before_an_older_prefill():
    scheduler = scheduler_of(100, max_step_tokens=4)
    long, short = Sequence(list(range(15))), Sequence([1])
    scheduler.add(long)
    run_step(scheduler)
    scheduler.add(short)
    short.computed = 0
    assert parts(run_step(scheduler)) == [(long, 4, 4)]  # no budget left for the newcomer
    assert parts(run_step(scheduler)) == [(long, 8, 4)]
    assert parts(run_step(scheduler)) == [(long, 12, 3), (short, 0, 1)]
    assert parts(run_step(scheduler)) == [(long, 15, 1), (short, 1, 1)]


def test_prompt_waits_until_all_its_pages_are_free_and_nobody_overtakes_it():
    scheduler = scheduler_of(4)
    first, second, third = Sequence(list(range(8))), Sequence(list(range(12))), Sequence([1])
    for sequence in (first, second, third):
        scheduler.add(sequence)
    assert parts(run_step(scheduler)) == [(first, 0, 8)]
    assert list(scheduler.waiting) == [second, third]
    scheduler.remove(first)
    assert parts(run_step(scheduler)) == [(second, 0, 12), (third, 0, 1)]


def test_youngest_gives_way_when_pages_run_out_and_starts_over():
    scheduler = scheduler_of(4)
    old, young = Sequence(list(range(8))), Sequence(list(range(8)))
    scheduler.add(old)
    scheduler.add(young)
    run_step(scheduler)
    assert parts(run_step(scheduler)) == [(old, 8, 1)]  # needs a third page: young gives its two back
    assert list(scheduler.waiting) == [young]
    assert young.computed == 0
    assert len(young.tokens) == 9
    scheduler.remove(old)
    assert parts(run_step(scheduler)) == [(young, 0, 9)]


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("replays", [False, True])
def test_random_workloads_end_within_their_limits_and_leave_no_page_behind(prefixes, replays, rng):
    """Budget, sequence count and pages hold in every step; chunks join up; all come to an end."""
    for _ in range(30):
        page_size, window = int(rng.integers(1, 9)), int(rng.integers(1, 20))
        max_sequences = int(rng.integers(1, 5))
        budget = max_sequences + int(rng.integers(0, 20))
        longest = 60
        full_pages = -(-longest // page_size) + int(rng.integers(0, 10))
        window_pages = window_pages_needed(max_sequences, longest, budget, window, page_size)
        scheduler = scheduler_of(
            full_pages,
            window_pages=window_pages,
            page_size=page_size,
            window=window,
            max_sequences=max_sequences,
            max_step_tokens=budget,
            prefixes=prefixes,
            replays=replays,
        )
        goal = {}
        for _ in range(12):
            prompt = int(rng.integers(1, 50))
            sequence = Sequence(list(range(prompt)))
            goal[sequence] = prompt + int(rng.integers(1, longest - prompt + 1))
            scheduler.add(sequence)
        for _ in range(10_000):
            if not goal:
                break
            computed = {sequence: sequence.computed for sequence in goal}
            chunks = scheduler.schedule()
            assert 0 < sum(chunk.count for chunk in chunks) <= budget
            assert len(scheduler.running) <= max_sequences
            assert len({chunk.sequence for chunk in chunks}) == len(chunks)
            held = [page for sequence in scheduler.running for page in sequence.pages.full]
            assert len(set(held)) == full_pages - scheduler.pages.full.free
            assert prefixes or len(set(held)) == len(held)
            for chunk in chunks:
                sequence = chunk.sequence
                assert chunk.start in (computed[sequence], 0) or (
                    computed[sequence] == 0 and prefixes and chunk.start % page_size == 0
                )
                if replays:  # a chunk belongs to the prompt, or is one drawn token
                    assert chunk.end <= sequence.prompt or chunk.decodes
                assert chunk.end <= page_size * len(chunk.sequence.pages.full)
            scheduler.advance(chunks)
            for chunk in chunks:
                if chunk.end == len(chunk.sequence.tokens):
                    chunk.sequence.tokens.append(0)
                    if len(chunk.sequence.tokens) >= goal[chunk.sequence]:
                        scheduler.remove(chunk.sequence)
                        del goal[chunk.sequence]
        assert not goal
        assert scheduler.pages.full.free == full_pages
        assert scheduler.pages.window_pool.free == window_pages


def test_one_sent_back_is_not_admitted_in_the_same_step():
    """Its pages are free then, but whoever made it give them up has not taken them all."""
    scheduler = scheduler_of(6)
    old, young = Sequence(list(range(16))), Sequence(list(range(4)))
    scheduler.add(old)
    scheduler.add(young)
    old.computed = 8
    scheduler.running.append(scheduler.waiting.pop(0))
    scheduler.pages.extend(old.pages, 8)
    scheduler.running.append(scheduler.waiting.pop(0))
    scheduler.pages.extend(young.pages, 12)  # more than its tokens need, as if it were about to grow
    young.computed = 3
    assert parts(run_step(scheduler)) == [(old, 8, 8)]
    assert list(scheduler.waiting) == [young]


def test_logits_of_every_token_come_in_chunks_of_the_limit_beside_others():
    scheduler = scheduler_of(100, rows=5)
    scored, other = Sequence(list(range(12)), reported=0), Sequence([1] * 9, reported=0)
    answer = Sequence([1])
    for sequence in (scored, answer, other):
        scheduler.add(sequence)
    steps = []
    while len(answer.tokens) < 9:
        steps.append([(chunk.sequence, chunk.logit_positions) for chunk in run_step(scheduler)])
        for sequence in (scored, other):
            if sequence.reported == len(sequence.tokens) and sequence in scheduler.running:
                scheduler.remove(sequence)
    wanted = {scored: [], other: [], answer: []}
    for step in steps:
        for sequence, positions in step:
            wanted[sequence] += positions
        assert sum(len(positions) for sequence, positions in step if sequence is not answer) <= 5
    assert wanted == {scored: list(range(12)), other: list(range(9)), answer: list(range(8))}


def test_logits_handed_out_are_not_handed_out_again_after_starting_over():
    scheduler = scheduler_of(100, rows=5)
    scored = Sequence(list(range(12)), reported=0)
    scheduler.add(scored)
    run_step(scheduler)
    scheduler.restart([scored])
    assert scheduler.pages.full.free == 100
    found = [chunk.logit_positions for _ in range(3) for chunk in run_step(scheduler)]
    assert [list(positions) for positions in found] == [[], [5, 6, 7, 8, 9], [10, 11]]


def test_who_begins_alike_waits_for_the_first_instead_of_doing_its_work_again():
    """Three answers to a prompt of 10 tokens, pages of 4: two whole pages are computed once."""
    scheduler = scheduler_of(100, prefixes=True, max_step_tokens=6)
    same = [Sequence(list(range(10))) for _ in range(3)]
    other = Sequence([9, 9])
    for sequence in [*same, other]:
        scheduler.add(sequence)
    assert parts(run_step(scheduler)) == [(same[0], 0, 6)]
    assert parts(run_step(scheduler)) == [(same[0], 6, 4), (other, 0, 2)]
    assert parts(run_step(scheduler))[-2:] == [(same[1], 8, 2), (same[2], 8, 2)]
    assert scheduler.cached_tokens == 16


def test_nobody_waits_for_another_kind_or_for_one_that_is_paused():
    scheduler = scheduler_of(100, prefixes=True)
    scheduler.add(Sequence(list(range(10)), kind="steered"))
    scheduler.add(Sequence(list(range(10))))
    assert len(run_step(scheduler)) == 2
    scheduler = scheduler_of(100, prefixes=True, max_step_tokens=5)
    first, second = Sequence(list(range(10))), Sequence(list(range(10)))
    scheduler.add(first)
    run_step(scheduler)
    first.paused = True
    scheduler.add(second)
    assert parts(run_step(scheduler)) == [(second, 4, 5)]


def test_guesses_get_what_the_others_leave_of_a_step_and_of_the_pages():
    scheduler = scheduler_of(7, max_step_tokens=8, max_drafted=6)
    first, second = Sequence([1, 2, 3], limit=20), Sequence([4, 5, 6], limit=7)
    for sequence in (first, second):
        scheduler.add(sequence)
    run_step(scheduler)
    first.draft = second.draft = (7,) * 9
    chunks = scheduler.schedule()
    assert [(chunk.count, len(chunk.draft)) for chunk in chunks] == [(7, 6), (1, 0)], "a step has 8 tokens"
    assert [row.ids for row in chunks[0].rows()] == [[0], *[[7]] * 6]
    assert [row.start for row in chunks[0].rows()] == list(range(3, 10))
    assert all(row.decodes for row in chunks[0].rows())
    scheduler.advance(chunks)
    for sequence in (first, second):
        sequence.tokens.append(7)
    scheduler.settle(chunks[0], 0)
    assert (first.computed, len(first.pages.full)) == (4, 1)
    first.draft = ()
    [_, chunk] = chunks = scheduler.schedule()
    assert chunk.draft == (7, 7), "of its 7 positions it has run 4"
    scheduler.advance(chunks)
    first.tokens.append(7)
    second.tokens.append(7)
    scheduler.settle(chunk, 0)
    scheduler.add(long := Sequence(list(range(12))))
    first.draft, first.limit = (7,) * 9, 40
    assert [(part.sequence, part.count) for part in scheduler.schedule()] == [
        (first, 1),
        (second, 1),
        (long, 6),
    ]


def test_one_that_was_sent_back_while_its_guesses_were_checked_starts_over():
    scheduler = scheduler_of(100, replays=True, max_drafted=6)
    sequence = Sequence([1, 2, 3], limit=20)
    scheduler.add(sequence)
    run_step(scheduler)
    sequence.draft = (7, 7)
    [chunk] = scheduler.schedule()
    scheduler.advance([chunk])
    assert scheduler.schedule() == [], "nobody knows yet which of its tokens are right"
    scheduler._preempt_last()
    sequence.tokens += [7, 7, 7]
    scheduler.settle(chunk, 2)
    assert (sequence.computed, list(sequence.pages.full)) == (0, [])
