"""Which pages hold the beginnings of texts seen before: one that begins alike need not run from the start.

A tree in a dictionary: a full page of tokens after a known beginning leads to the node of the longer
beginning. Tokens are compared, not hashes of them, so that no two texts are ever taken for each other. A node
knows the page of the full-attention layers and, as long as it lasts, that of the sliding layers, which need
only the last window.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Node:
    """A beginning of whole pages; `full` and `window` are the pages of its last `page_size` tokens.

    parent: the node before, or of a first page the kind of its texts
    full: None once that page has been taken for other tokens; whatever follows is then out of reach
    """

    parent: Node | Hashable
    tokens: bytes
    full: int | None
    window: int | None = None

    def forget_full(self) -> None:
        """Its full page is another's from now on."""
        self.full = None

    def forget_window(self) -> None:
        """Its window page is another's from now on."""
        self.window = None


@dataclass(frozen=True)
class Prefix:
    """The longest beginning of a text that is in the cache.

    nodes: one for each page; first_window: the first of them whose window page a coming query sees
    """

    nodes: Sequence[Node] = ()
    first_window: int = 0


@dataclass
class PrefixTree:
    """All nodes, found by the beginning they prolong. A dead one is dropped when somebody comes across it."""

    page_size: int
    window: int
    _children: dict[tuple[Node | Hashable, bytes], Node] = field(default_factory=dict)

    def find(self, tokens: Sequence[int], kind: Hashable = None) -> Prefix:
        """The longest usable beginning, short of the last token: that has to run, to have logits.

        kind: only what was computed for texts of this kind
        """
        nodes: list[Node] = []
        parent: Node | Hashable = kind
        text = array("i", tokens[: max(len(tokens) - 1, 0)])
        for start in range(0, len(text) - self.page_size + 1, self.page_size):
            node = self._children.get((parent, text[start : start + self.page_size].tobytes()))
            if node is None or node.full is None:
                break
            nodes.append(node)
            parent = node
        while nodes:
            first = self.first_visible(len(nodes) * self.page_size)
            missing = [place for place in range(first, len(nodes)) if nodes[place].window is None]
            if not missing:
                return Prefix(nodes, first)
            del nodes[missing[-1] :]
        return Prefix()

    def first_visible(self, computed: int) -> int:
        """The first page that a query of a sliding layer at position `computed` or later can see."""
        return max(computed - self.window + 1, 0) // self.page_size

    def add(self, parent: Node | Hashable, tokens: Sequence[int], full: int) -> Node:
        """The node of `tokens`, one page, after `parent` or first of a kind; a new one if none lives."""
        key = (parent, array("i", tokens).tobytes())
        node = self._children.get(key)
        if node is None or node.full is None:
            self._children[key] = node = Node(parent, key[1], full)
        return node

    def drop(self, node: Node) -> None:
        """Forget a node whose full page has gone."""
        key = (node.parent, node.tokens)
        if self._children.get(key) is node:
            del self._children[key]
