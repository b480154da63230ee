"""A model without weights: its logits are a function of what it finds in the pages it is told to read.

So an engine that computes the wrong rows, hands over a wrong page or gives one back too early draws other
tokens than `expected_tokens`, which sees only the true tokens.
"""

from __future__ import annotations

import numpy as np
from gptoss_native import _native
from gptoss_native.speculation import StepCosts

ROW = _native.sample_row_dtype

#: Whether engines of the tests run ahead of the device.
AHEAD = False


def logits_after(history: list[int], window: int, vocab: int) -> np.ndarray:
    """Logits float32 [vocab] after `history`: all of it matters, and its last `window` tokens once more."""
    return np.random.default_rng([*history, 7777, *history[-window:]]).standard_normal(vocab, np.float32)


class SteadyCosts(StepCosts):
    """What a guess costs before any step was timed: tests must not depend on the machine's speed."""

    def saw(self, sequences, guesses, seconds):
        pass

    def needs_plain(self, sequences):
        return False


class FakeCache:
    """Two pools of token ids, poisoned with -1."""

    def __init__(self, page_size: int, full_pages: int, window_pages: int):
        self.page_size = page_size
        self.full = np.full((full_pages, page_size), -1)
        self.window = np.full((window_pages, page_size), -1)


class FakeLogits:
    """What a step leaves on the device until the next."""

    watched: dict = {}  # noqa: RUF012

    def __init__(self, array: np.ndarray, model: FakeModel):
        self.array, self.model, self.step = array, model, len(model.steps)

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, first: int, count: int) -> np.ndarray:
        assert self.step == len(self.model.steps), "the model has gone on"
        return self.array[first : first + count]


class FakeModel:
    """Stores the step's tokens where the page tables say, then reads each row's context back from there."""

    def __init__(self, window: int, vocab: int):
        self.window, self.vocab = window, vocab
        self.steps: list[int] = []  # rows of each step
        self.drawn = np.empty(0, np.int32)  # by the latest draw
        self.draws = 0
        self.fail_at: int | None = None  # number of the step that raises
        self.spoilt: list[int] | None = None  # tokens after which the logits hold a NaN

    def forward(
        self,
        cache,
        token_ids,
        row_start,
        context,
        full_pages,
        window_pages,
        logit_rows,
        decoding,
        screen=False,
    ):
        assert screen in (True, False)
        assert (np.diff(row_start)[:decoding] == 1).all()
        token_ids, unknown = token_ids.copy(), token_ids < 0
        token_ids[unknown] = self.drawn[-1 - token_ids[unknown]]
        assert full_pages.shape == window_pages.shape
        assert all(
            array.dtype == np.int32 for array in (token_ids, row_start, context, full_pages, logit_rows)
        )
        if self.fail_at == len(self.steps):
            self.fail_at = None
            raise RuntimeError("the device is on fire")
        self.steps.append(len(token_ids))
        owner = {}
        for s, start in enumerate(context):
            for row in range(row_start[s], row_start[s + 1]):
                position = int(start + row - row_start[s])
                page, slot = divmod(position, cache.page_size)
                assert full_pages[s, page] >= 0
                assert window_pages[s, page] >= 0
                cache.full[full_pages[s, page], slot] = token_ids[row]
                cache.window[window_pages[s, page], slot] = token_ids[row]
                owner[row] = (s, position)
        result = np.empty((len(logit_rows), self.vocab), np.float32)
        for n, row in enumerate(logit_rows):
            s, last = owner[int(row)]
            full = self._read(cache, cache.full, full_pages[s], 0, last)
            recent = self._read(cache, cache.window, window_pages[s], max(last - self.window + 1, 0), last)
            result[n] = self.logits(full, recent)
            if full == self.spoilt:
                result[n, 0] = np.nan
        return FakeLogits(result, self)

    def logits(self, full, recent):
        """Of the row that has found these tokens in its pages."""
        return np.random.default_rng([*full, 7777, *recent]).standard_normal(self.vocab, np.float32)

    @staticmethod
    def _read(cache, pool, pages, first, last):
        places = [divmod(position, cache.page_size) for position in range(first, last + 1)]
        assert all(pages[page] >= 0 for page, _ in places), "a page was given back too early"
        return [int(pool[pages[page], slot]) for page, slot in places]


class FakeDraws:
    """Results that are there until the next draw, as the native ones."""

    def __init__(self, model: FakeModel, columns: tuple):
        self.model, self.columns = model, columns
        model.draws += 1
        self.number, model.drawn = model.draws, columns[0]

    def collect(self) -> tuple:
        assert self.number == self.model.draws, "another draw has been made since"
        return self.columns


def fake_sample(logits, rows, bias_token, bias_value, history, allowed, logprobs):
    """Gumbel-max from (seed, position), after mask and bias; no other setting."""
    logits = logits.rows(0, len(rows))
    status = 1 - np.isfinite(logits).all(1).astype(np.int32)
    logits = np.nan_to_num(logits).astype(np.float64)
    raw = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    tokens = np.empty(len(rows), np.int32)
    for i, row in enumerate(rows):
        adjusted = logits[i].copy()
        if row["mask_row"] >= 0:
            bits = np.arange(logits.shape[1])
            mask = (allowed[row["mask_row"]][bits // 32] >> (bits % 32).astype(np.uint32)) & 1
            adjusted[mask == 0] = -np.inf
        span = slice(row["bias_start"], row["bias_end"])
        adjusted[bias_token[span]] += bias_value[span]
        if row["temperature"] > 0:
            draw = np.random.default_rng([int(row["seed"]), int(row["position"])])
            adjusted = adjusted / row["temperature"] + draw.gumbel(size=len(adjusted))
        tokens[i] = adjusted.argmax()
    chosen = raw[np.arange(len(rows)), tokens]
    order = np.argsort(-raw, axis=1, kind="stable")[:, :logprobs]
    rank = (raw > chosen[:, None]).sum(1) + 1
    top = np.take_along_axis(raw, order, 1)
    silent = rows["skip_report"] == 1
    chosen[silent], top[silent], rank[silent], order[silent] = np.nan, np.nan, 0, 0
    return tokens, chosen.astype(np.float32), rank, order, top, status


def expected_tokens(prompt: list[int], count: int, window: int, vocab: int) -> list[int]:
    """The greedy continuation, straight from the definition."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_after(tokens, window, vocab).argmax()))
    return tokens[len(prompt) :]
