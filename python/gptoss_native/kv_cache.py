"""Which page of the key/value cache holds which tokens. Pure bookkeeping: the pages are native memory.

Full-attention layers share one numbering of pages, sliding-window layers another. A sequence keeps its full
pages until it ends; a window page goes back as soon as no query to come can see any of its tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .errors import RequestError

NOT_HELD = -1


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens` tokens from position 0."""
    return -(-tokens // page_size)


def window_pages_needed(sequences: int, longest: int, step_tokens: int, window: int, page_size: int) -> int:
    """Window pages that always suffice for `sequences` sequences of at most `longest` tokens.

    Of them, `step_tokens` in all are new in one step. A sequence with n new tokens looks at n + window - 1
    positions, wherever they start: at most (n + window - 3) // page_size + 2 pages. The sum of these floors
    is at most the floor of the sum.
    """
    bound = (step_tokens + sequences * (window - 3)) // page_size + 2 * sequences
    return min(bound, sequences * pages_for(longest, page_size))


class PagePool:
    """The free pages of one numbering, 0 .. count - 1; the one given back last is taken first."""

    def __init__(self, count: int):
        self.count = count
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` pages; the caller has made sure that they are free."""
        assert count <= len(self._free), f"{count} pages wanted, {len(self._free)} free"
        return [self._free.pop() for _ in range(count)]

    def give(self, pages: Sequence[int]) -> None:
        """Return pages taken before."""
        self._free.extend(pages)
        assert len(self._free) <= self.count, "a page was given back twice"


def _numbers() -> array:
    return array("i")  # NumPy copies it in one go, which a list of Python numbers would not allow


@dataclass
class PageTable:
    """One sequence's pages by logical page (position // page_size); NOT_HELD marks a page given back."""

    full: array = field(default_factory=_numbers)
    window: array = field(default_factory=_numbers)
    window_start: int = 0  # logical pages before this one have been given back


class PageManager:
    """Both pools, and the rules by which sequences take pages and give them back.

    window: tokens that a query of a sliding layer sees, itself included.
    """

    def __init__(self, page_size: int, window: int, full_pages: int, window_pages: int):
        self.page_size, self.window = page_size, window
        self.full = PagePool(full_pages)
        self.window_pool = PagePool(window_pages)

    def check_fits(self, tokens: int) -> None:
        """Raise RequestError if a sequence of `tokens` tokens could not be held even alone."""
        capacity = self.full.count * self.page_size
        if tokens > capacity:
            raise RequestError(
                f"a sequence of {tokens} tokens does not fit the key/value cache of {capacity} tokens; "
                "shorten it or raise kv_cache_tokens"
            )

    def can_admit(self, tokens: int, first_chunk: int) -> bool:
        """Whether a new sequence should start: all its tokens known so far fit, not just its first chunk."""
        first_pages = pages_for(first_chunk, self.page_size)
        return pages_for(tokens, self.page_size) <= self.full.free and first_pages <= self.window_pool.free

    def can_extend(self, table: PageTable, length: int) -> bool:
        """Whether the pages for a sequence of `length` tokens are there for the taking."""
        pages = pages_for(length, self.page_size)
        return (
            pages - len(table.full) <= self.full.free and pages - len(table.window) <= self.window_pool.free
        )

    def extend(self, table: PageTable, length: int) -> None:
        """Take the pages that a sequence of `length` tokens lacks."""
        pages = pages_for(length, self.page_size)
        table.full.extend(self.full.take(max(pages - len(table.full), 0)))
        table.window.extend(self.window_pool.take(max(pages - len(table.window), 0)))

    def expire(self, table: PageTable, computed: int) -> None:
        """Give back the window pages that no query from position `computed` on can see."""
        first_visible = max(computed - self.window + 1, 0) // self.page_size
        end = min(first_visible, len(table.window))
        if end > table.window_start:
            self.window_pool.give(table.window[table.window_start : end])
            table.window[table.window_start : end] = array("i", [NOT_HELD]) * (end - table.window_start)
            table.window_start = end

    def release(self, table: PageTable) -> None:
        """Give back every page; the table is empty afterwards."""
        self.full.give(table.full)
        self.window_pool.give(table.window[table.window_start :])
        table.full, table.window, table.window_start = _numbers(), _numbers(), 0

    def reset(self) -> None:
        """All pages are free; tables handed out before are void."""
        self.full, self.window_pool = PagePool(self.full.count), PagePool(self.window_pool.count)


def table_array(tables: Sequence[Sequence[int]]) -> np.ndarray:
    """int32 [sequences, longest table], padded with NOT_HELD: what the native forward pass reads."""
    array = np.full((len(tables), max(map(len, tables), default=0)), NOT_HELD, np.int32)
    for row, table in zip(array, tables, strict=True):
        row[: len(table)] = table
    return array
