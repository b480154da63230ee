"""Drives a native model step by step, with page tables as a scheduler would keep them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Step = list[tuple[int, int]]  # (sequence, how many of its next tokens) for each sequence of the step


def whole(lengths: list[int]) -> Iterable[Step]:
    """Each prompt in one step of its own."""
    return [[(s, length)] for s, length in enumerate(lengths)]


def chunked(size: int):
    """Prompts one after the other, `size` tokens a step; 1 is decoding."""

    def schedule(lengths: list[int]) -> Iterable[Step]:
        for s, length in enumerate(lengths):
            for first in range(0, length, size):
                yield [(s, min(size, length - first))]

    return schedule


def ragged(rng: np.random.Generator):
    """Any sequences in any order, each with any number of tokens."""

    def schedule(lengths: list[int]) -> Iterable[Step]:
        left = list(lengths)
        while any(left):
            waiting = [s for s in rng.permutation(len(left)).tolist() if left[s]]
            step = []
            for s in waiting[: int(rng.integers(1, len(waiting) + 1))]:
                count = 1 if rng.random() < 0.5 else int(rng.integers(1, left[s] + 1))
                left[s] -= count
                step.append((s, count))
            yield step

    return schedule


class Pool:
    """Page ids handed out in random order; a page given back is the next one handed out."""

    def __init__(self, rng: np.random.Generator, pages: int):
        self.free = rng.permutation(pages).tolist()

    def grow(self, row: np.ndarray, first: int, last: int) -> None:
        for page in range(first, last + 1):
            if row[page] < 0:
                row[page] = self.free.pop()

    def shrink(self, row: np.ndarray, first: int) -> None:
        """Gives back every page before `first`."""
        for page in range(first):
            if row[page] >= 0:
                self.free.append(int(row[page]))
                row[page] = -1


class Runner:
    """A model, its cache, and the sequences in it."""

    def __init__(self, rng, backend, config, arrays, lengths, numerics="exact", page_size=16):
        from gptoss_native import _native

        self.page_size = page_size
        pages = [-(-length // page_size) for length in lengths]
        self.window = max(config["windows"])
        self.model = _native.Model(backend, config, arrays, numerics, max_rows=sum(lengths))
        self.cache = _native.KvCache(self.model, page_size, sum(pages), sum(pages))
        self.full, self.windowed = Pool(rng, sum(pages)), Pool(rng, sum(pages))
        self.full_pages = np.full((len(lengths), max(pages)), -1, np.int32)
        self.window_pages = self.full_pages.copy()
        self.context = np.zeros(len(lengths), np.int32)

    def step(self, tokens: list[list[int]], step: Step, logit_rows=None, decoding=-1) -> np.ndarray:
        """Feeds `tokens[s]` to each sequence s of the step, in its order; returns all logits by default."""
        chosen = [s for s, _ in step]
        counts = [count for _, count in step]
        ids = np.concatenate([np.asarray(tokens[s], np.int32) for s in chosen])
        for s, count in step:
            last = (self.context[s] + count - 1) // self.page_size
            oldest = max(0, self.context[s] - self.window + 1) // self.page_size
            self.full.grow(self.full_pages[s], 0, last)
            self.windowed.shrink(self.window_pages[s], oldest)
            self.windowed.grow(self.window_pages[s], oldest, last)
        self.logits = self.model.forward(
            self.cache,
            ids,
            np.cumsum([0, *counts], dtype=np.int32),
            self.context[chosen],
            self.full_pages[chosen],
            self.window_pages[chosen],
            np.arange(len(ids), dtype=np.int32) if logit_rows is None else logit_rows,
            decoding,
        )
        self.context[chosen] += np.array(counts, np.int32)
        return self.logits.numpy()


def run(rng, backend, config, arrays, sequences, schedule=whole, decoding=-1, **settings) -> list[np.ndarray]:
    """Logits [tokens, vocab] of each sequence, fed as the schedule says; decoding=0: all are prompts."""
    lengths = [len(tokens) for tokens in sequences]
    runner = Runner(rng, backend, config, arrays, lengths, **settings)
    logits: list[list[np.ndarray]] = [[] for _ in sequences]
    for step in schedule(lengths):
        fed = {s: sequences[s][runner.context[s] : runner.context[s] + count] for s, count in step}
        out = runner.step(fed, step, decoding=decoding)
        for (s, _), part in zip(
            step, np.split(out, np.cumsum([count for _, count in step])[:-1]), strict=True
        ):
            logits[s].append(part)
    return [np.concatenate(parts) for parts in logits]


def greedy(rng, backend, config, arrays, prompt: list[int], count: int) -> list[int]:
    """`count` tokens, each the likeliest after those before."""
    runner = Runner(rng, backend, config, arrays, [len(prompt) + count])
    tokens, fed = list(prompt), list(prompt)
    while len(tokens) < len(prompt) + count:
        logits = runner.step([fed], [(0, len(fed))], np.array([len(fed) - 1], np.int32))
        fed = [int(logits[0].argmax())]
        tokens += fed
    return tokens[len(prompt) :]
