"""A step on its way through the device, and its chunks as the native forward pass reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from .kv_cache import table_array
from .request import Request, Scoring
from .scheduler import Chunk

Task = Request | Scoring


@dataclass
class Step:
    """A step on its way. Rows that are drawn from come first, in the order of `parts`."""

    parts: list[tuple[Task, Chunk]]
    logits: Any
    draws: Any = None

    @property
    def drawing(self) -> list[tuple[Request, Chunk]]:
        """Requests that have a token drawn, and where there is a draft one after each of its tokens."""
        return [part for part in self.parts if part[1].logit_positions and isinstance(part[0], Request)]

    @property
    def is_scored(self) -> bool:
        return any(isinstance(task, Scoring) for task, _ in self.parts)

    @property
    def decoding(self) -> tuple[int | None, int]:
        """Sequences of a step that only decodes, otherwise None; guesses."""
        chunks = [chunk for _, chunk in self.parts]
        only = all(chunk.decodes or chunk.draft for chunk in chunks)
        return len(chunks) if only else None, sum(len(chunk.draft) for chunk in chunks)


def place_of(task: Task, chunk: Chunk) -> int:
    """Decoded rows come first, for the kernels; scored ones last, for the sampler."""
    if chunk.decodes:
        return 0
    return 1 if chunk.draft else 3 if isinstance(task, Scoring) else 2


def draws_by_screen(parts: Sequence[tuple[Task, Chunk]], vocab_size: int) -> bool:
    """Whether a step is for draws alone that need few exact logits; a hint, no result depends on it."""
    drawing = [task for task, chunk in parts if chunk.logit_positions]
    few = vocab_size / (16 * max(1, min(len(drawing), 4)))  # most_single of csrc/cpu/screen.cpp
    return all(
        isinstance(task, Request) and not task.params.needs_all_logits and task.penalised < few
        for task in drawing
    )


def forward_arguments(chunks: Sequence[Chunk], one_by_one: bool) -> tuple:
    """What the native forward pass is told of the chunks, in the order of their places.

    one_by_one: the tokens of a draft run as decoded rows, each a sequence of its own on the same pages, and
        not as a piece of a prompt; for devices that compute the two differently. Any row sees what those
        before it have written, since each layer writes all keys and values of a step before it reads any.
    """
    if one_by_one:
        chunks = [piece for chunk in chunks for piece in (chunk.rows() if chunk.draft else (chunk,))]
    tokens, row_start, starts, rows, decoding = [], [0], [], [], 0
    for chunk in chunks:
        rows += [len(tokens) + position - chunk.start for position in chunk.logit_positions]
        tokens += chunk.ids
        row_start.append(len(tokens))
        starts.append(chunk.start)
        decoding += chunk.decodes
    *front, wanted = _int32_arrays(tokens, row_start, starts, rows)
    full = table_array([chunk.sequence.pages.full for chunk in chunks])
    window = table_array([chunk.sequence.pages.window for chunk in chunks])
    return *front, full, window, wanted, decoding


def _int32_arrays(*lists: list[int]) -> list[np.ndarray]:
    """Parts of one array: fewer calls, between steps whose weights drive all else out of the caches."""
    array, end = np.array([*chain(*lists)], np.int32), 0
    return [array[(start := end) : (end := start + len(each))] for each in lists]
