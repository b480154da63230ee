"""Page bookkeeping, against the plain definition of which positions a query can see."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from gptoss_native.errors import RequestError
from gptoss_native.kv_cache import (
    NOT_HELD,
    PageManager,
    PagePool,
    PageTable,
    table_array,
    window_pages_needed,
)


def test_pool_hands_out_each_page_once():
    pool = PagePool(5)
    pages = pool.take(3) + pool.take(2)
    assert sorted(pages) == [0, 1, 2, 3, 4]
    assert pool.free == 0
    pool.give(pages[:2])
    assert sorted(pool.take(2)) == sorted(pages[:2])


def test_sequence_always_holds_what_it_can_see_and_nothing_else(rng):
    """Random chunks: visible positions have a page, none is held twice, expired window pages are free."""
    for _ in range(50):
        page_size, window = int(rng.integers(1, 9)), int(rng.integers(1, 30))
        length = int(rng.integers(1, 120))
        pages = -(-length // page_size)
        manager = PageManager(page_size, window, pages, pages)
        table, computed = PageTable(), 0
        while computed < length:
            end = min(length, computed + int(rng.integers(1, 20)))
            manager.extend(table, end)
            assert len(table.full) == len(table.window) == -(-end // page_size)
            assert len(set(table.full)) == len(table.full)
            oldest = max(computed - window + 1, 0)
            seen = {position // page_size for position in range(oldest, end)}
            held = {page for page, number in enumerate(table.window) if number != NOT_HELD}
            assert seen <= held
            computed = end
            manager.expire(table, computed)
            first_visible = max(computed - window + 1, 0) // page_size
            held = {page for page, number in enumerate(table.window) if number != NOT_HELD}
            assert held == set(range(min(first_visible, len(table.window)), len(table.window)))
            assert manager.window_pool.free == pages - len(held)
        manager.release(table)
        assert manager.full.free == manager.window_pool.free == pages
        assert table == PageTable()


def test_window_pages_needed_suffice_for_any_split_of_a_step(rng):
    """Sequences at random positions share a step's budget at random; none may lack a window page."""
    for _ in range(100):
        page_size, window = int(rng.integers(1, 33)), int(rng.integers(1, 130))
        sequences, budget = int(rng.integers(1, 6)), int(rng.integers(6, 200))
        bound = window_pages_needed(sequences, 10_000, budget, window, page_size)
        manager = PageManager(page_size, window, 10_000, bound)
        tables = [PageTable() for _ in range(sequences)]
        computed = [0] * sequences
        for _ in range(10):
            cuts = np.sort(rng.integers(0, budget + 1, sequences - 1))
            counts = np.diff([0, *cuts, budget])
            for s, count in enumerate(counts):
                assert manager.can_extend(tables[s], computed[s] + int(count))
                manager.extend(tables[s], computed[s] + int(count))
            for s, count in enumerate(counts):
                computed[s] += int(count)
                manager.expire(tables[s], computed[s])


def test_too_long_a_sequence_is_refused_with_both_numbers():
    manager = PageManager(4, 8, 3, 3)
    manager.check_fits(12)
    with pytest.raises(RequestError, match=r"13 tokens.*12 tokens"):
        manager.check_fits(13)


def test_table_array_pads_with_not_held():
    found = table_array([[3], [NOT_HELD, 5]])
    assert found.dtype == np.int32
    assert found.tolist() == [[3, NOT_HELD], [NOT_HELD, 5]]


def test_table_array_of_one_or_none_is_a_copy():
    for table in ([3, NOT_HELD], []):
        pages = array("i", table)
        found = table_array([pages])
        pages.append(9)  # which an array that looks into it would forbid
        assert found.dtype == np.int32
        assert found.tolist() == [table]
    assert table_array([]).shape == (0, 0)
