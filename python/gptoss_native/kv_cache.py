"""Which page of the key/value cache holds which tokens. Pure bookkeeping: the pages are native memory.

Full-attention layers share one numbering of pages, sliding-window layers another. A sequence keeps its full
pages until it ends; a window page is let go of as soon as no query to come can see any of its tokens. Pages
that nobody holds keep what they hold until they are needed, and texts that begin alike share them
(prefix_cache.py).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .errors import RequestError
from .prefix_cache import Node, Prefix, PrefixTree

NOT_HELD = -1


class Unshared:
    """The kind of one text that neither takes pages of others nor leaves them any."""


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
    """The pages of one numbering, 0 .. count - 1: held by sequences, kept for their contents, or empty.

    Empty pages are taken first, the one given back last before others; then kept ones, the one that nobody
    has used for longest first.
    """

    def __init__(self, count: int):
        self.count = count
        self._empty = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._forget: dict[int, Callable[[], None]] = {}  # of pages whose contents somebody knows
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._empty) + len(self._kept)

    def is_held(self, page: int) -> bool:
        """Whether a sequence holds it."""
        return self._holders[page] > 0

    def take(self, count: int) -> list[int]:
        """`count` pages; the caller has made sure that they are free."""
        assert count <= self.free, f"{count} pages wanted, {self.free} free"
        pages = [self._empty.pop() if self._empty else self._evict() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        """Hold pages that others hold too or that are kept."""
        for page in pages:
            self._holders[page] += 1
            self._kept.pop(page, None)

    def give(self, pages: Sequence[int]) -> None:
        """Let go of pages held before. Those before others in the list are kept longer."""
        for page in reversed(pages):
            assert self._holders[page] > 0, f"page {page} was given back twice"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._forget:
                    self._kept[page] = None
                else:
                    self._empty.append(page)

    def remember(self, page: int, forget: Callable[[], None]) -> bool:
        """Keep a held page's contents after it is given back; `forget` is told when they go.

        False when they are kept already, for somebody else.
        """
        assert self._holders[page] > 0, f"page {page} is not held"
        return self._forget.setdefault(page, forget) is forget

    def drop(self, page: int) -> None:
        """Its contents are of no use any more."""
        self._forget.pop(page, None)
        if page in self._kept:
            del self._kept[page]
            self._empty.append(page)

    def forget(self) -> None:
        """What is kept is of no use any more; held pages stay with their holders."""
        self._forget.clear()
        self._empty.extend(self._kept)
        self._kept.clear()

    def _evict(self) -> int:
        page, _ = self._kept.popitem(last=False)
        self._forget.pop(page)()
        return page


def _numbers() -> array:
    return array("i")  # NumPy copies it in one go, which a list of Python numbers would not allow


@dataclass
class PageTable:
    """One sequence's pages by logical page (position // page_size); NOT_HELD marks a page given back."""

    full: array = field(default_factory=_numbers)
    window: array = field(default_factory=_numbers)
    window_start: int = 0  # logical pages before this one have been given back
    nodes: list[Node] = field(default_factory=list)  # of the pages that are in the prefix cache
    outdated: bool = False  # some of its keys and values are of numbers that have been edited since


class PageManager:
    """Both pools, and the rules by which sequences take pages, share them and give them back.

    window: tokens that a query of a sliding layer sees, itself included
    prefixes: whether texts that begin alike share pages
    """

    def __init__(
        self, page_size: int, window: int, full_pages: int, window_pages: int, prefixes: bool = True
    ):
        self.page_size, self.window, self.prefixes = page_size, window, prefixes
        self.full = PagePool(full_pages)
        self.window_pool = PagePool(window_pages)
        self._tree = PrefixTree(page_size, window)

    def check_fits(self, tokens: int) -> None:
        """Raise RequestError if a sequence of `tokens` tokens could not be held even alone."""
        capacity = self.full.count * self.page_size
        if tokens > capacity:
            raise RequestError(
                f"a sequence of {tokens} tokens does not fit the key/value cache of {capacity} tokens; "
                "shorten it or raise kv_cache_tokens"
            )

    def find_prefix(self, tokens: Sequence[int], kind: Hashable = None) -> Prefix:
        """The longest beginning of `tokens` whose pages are there, the last token left out."""
        shares = self.prefixes and not isinstance(kind, Unshared)
        return self._tree.find(tokens, kind) if shares else Prefix()

    def can_admit(self, tokens: int, first_end: int, prefix: Prefix) -> bool:
        """Whether a new sequence should start: all its tokens known so far fit, not just its first chunk."""
        shared = sum(self.full.is_held(node.full) for node in prefix.nodes)
        window = [node.window for node in prefix.nodes[prefix.first_window :]]
        shared_window = sum(self.window_pool.is_held(page) for page in window)
        first_pages = pages_for(first_end, self.page_size) - prefix.first_window
        return (
            pages_for(tokens, self.page_size) - shared <= self.full.free
            and first_pages - shared_window <= self.window_pool.free
        )

    def attach(self, table: PageTable, prefix: Prefix) -> None:
        """Hold the pages of a beginning, for an empty table."""
        assert not table.full, "a sequence finds its beginning before it has pages"
        first = prefix.first_window
        table.nodes = list(prefix.nodes)
        table.full.extend(node.full for node in prefix.nodes)
        table.window.extend([NOT_HELD] * first)
        table.window.extend(node.window for node in prefix.nodes[first:])
        table.window_start = first
        self.full.hold(table.full)
        self.window_pool.hold(table.window[first:])

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

    def share(self, table: PageTable, tokens: Sequence[int], computed: int, kind: Hashable = None) -> None:
        """Let others of the same kind find the whole pages of the first `computed` tokens."""
        if not self.prefixes or table.outdated or isinstance(kind, Unshared):
            return
        for place in range(len(table.nodes), min(computed, len(tokens)) // self.page_size):
            parent = table.nodes[-1] if table.nodes else None
            if parent is not None and parent.full is None:
                return  # another's, whose page has been taken since: nobody would come past it
            start, page = place * self.page_size, table.full[place]
            node = self._tree.add(parent or kind, tokens[start : start + self.page_size], page)
            table.nodes.append(node)
            if node.full == page:
                self.full.remember(page, lambda node=node: self._forget(node))
            if node.window is None and place >= table.window_start:
                page = table.window[place]
                if self.window_pool.remember(page, node.forget_window):
                    node.window = page

    def expire(self, table: PageTable, computed: int) -> None:
        """Give back the window pages that no query from position `computed` on can see."""
        end = min(self._tree.first_visible(computed), len(table.window))
        if end > table.window_start:
            self.window_pool.give(table.window[table.window_start : end])
            table.window[table.window_start : end] = array("i", [NOT_HELD]) * (end - table.window_start)
            table.window_start = end

    def shorten(self, table: PageTable, length: int) -> None:
        """Give back the pages after those of the first `length` tokens."""
        pages = pages_for(length, self.page_size)
        self.full.give(table.full[pages:])
        self.window_pool.give(table.window[pages:])
        del table.full[pages:], table.window[pages:]

    def release(self, table: PageTable) -> None:
        """Give back every page; the table is empty afterwards."""
        self.full.give(table.full)
        self.window_pool.give(table.window[table.window_start :])
        table.full, table.window, table.window_start, table.nodes = _numbers(), _numbers(), 0, []
        table.outdated = False

    def outdate(self, tables: Iterable[PageTable]) -> None:
        """The model's numbers have changed: nobody may find pages of before; `tables` still use theirs."""
        self.full.forget()
        self.window_pool.forget()
        self._tree = PrefixTree(self.page_size, self.window)
        for table in tables:
            table.nodes, table.outdated = [], bool(table.full)

    def reset(self) -> None:
        """All pages are free and empty; tables handed out before are void."""
        self.full, self.window_pool = PagePool(self.full.count), PagePool(self.window_pool.count)
        self._tree = PrefixTree(self.page_size, self.window)

    def _forget(self, node: Node) -> None:
        node.forget_full()
        self._tree.drop(node)
        if node.window is not None:
            self.window_pool.drop(node.window)
            node.forget_window()


def table_array(tables: Sequence[Sequence[int]]) -> np.ndarray:
    """int32 [sequences, longest table], padded with NOT_HELD: what the native forward pass reads."""
    if len(tables) == 1:
        return np.array(tables[0], np.int32).reshape(1, -1)
    array = np.full((len(tables), max(map(len, tables), default=0)), NOT_HELD, np.int32)
    for row, table in zip(array, tables, strict=True):
        row[: len(table)] = table
    return array
