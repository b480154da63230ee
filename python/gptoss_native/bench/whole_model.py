"""Whole models: the steps of decoding and of prompts, through the engine as any caller meets it."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np

from .. import LLM, SamplingParams
from ..checkpoint import open_checkpoint
from ..config import ModelConfig
from ..errors import RequestError
from . import costs
from .contexts import FILLED, WAYS
from .limits import Limits
from .report import Line

SLACK = 8  # tokens until all answers of a batch are under way
ORDINARY = 199_998  # tokens below are no special ones


@dataclass(frozen=True)
class How:
    """How a model is run. chunk: the most tokens in a step."""

    device: str = "auto"
    numerics: str = "auto"
    dense_dtype: str = "bf16"
    threads: int = 0
    chunk: int = 512


@dataclass(frozen=True)
class Point:
    """Steps of one kind.

    rows: tokens of a step, or of a prompt
    grown: tokens that come to the context until the middle of what was measured
    seconds: of each step or prompt
    """

    is_prompt: bool
    rows: int
    context: int
    grown: int
    threads: int
    seconds: list[float]
    peak_rss: int


@dataclass(frozen=True)
class Run:
    """A model as it was run."""

    name: str
    config: ModelConfig
    nbytes: int
    device: str
    formats: costs.Formats
    isa: str
    threads: int
    load_seconds: float

    @property
    def how(self) -> str:
        """In words."""
        return f"{self.formats.numerics} numerics, dense weights in {self.formats.dense_dtype}"

    @property
    def settings(self) -> dict[str, Any]:
        """For a report."""
        formats = self.formats
        return {"numerics": formats.numerics, "dense_dtype": formats.dense_dtype, "weights": self.nbytes}


@contextmanager
def loaded(model: str, how: How, context: int, answer: int, sequences: int) -> Iterator[tuple[LLM, Run]]:
    """The model with room for so many sequences of `context` tokens and `answer` more, as far as it reaches.

    Raises what LLM raises, and RequestError for a context beyond the model's.
    """
    checkpoint = open_checkpoint(model)
    most = checkpoint.config.max_position_embeddings
    if (needed := max(context, answer)) > most:
        raise RequestError(
            f"this takes {needed:,} tokens of context, {checkpoint.name} has {most:,}; ask for less"
        )
    begin = time.perf_counter()
    llm = LLM(
        model,
        device=how.device,
        numerics=how.numerics,
        dense_dtype=how.dense_dtype,
        threads=how.threads,
        max_model_len=min(context + answer, most),
        max_num_seqs=sequences,
        max_num_batched_tokens=max(how.chunk, sequences),
    )
    load = time.perf_counter() - begin
    with llm:
        yield (
            llm,
            Run(
                checkpoint.name, checkpoint.config, checkpoint.nbytes, llm.device,
                costs.Formats(llm.device, llm.numerics, how.dense_dtype), llm.isa,
                llm.threads, load,
            ),
        )  # fmt: skip


def answer_room(tokens: int) -> int:
    """Tokens after a context of which `tokens` steps are to be measured."""
    return tokens + SLACK + 1


def decode_points(
    llm: LLM, batches: Sequence[int], contexts: Sequence[int], tokens: int, way: str = FILLED
) -> Iterator[Point]:
    """Steps that decode one token of each of `batch` sequences of `context` tokens, `tokens` of them.

    way: how a context is made, see contexts.WAYS. The longest leave room for the decoded tokens.
    """
    rng = np.random.default_rng(0)
    longest = llm.max_model_len - answer_room(tokens)
    contexts = sorted({min(context, longest) for context in contexts})
    streams = rng.integers(0, _vocab(llm), (max(batches), max(*contexts, 1))).tolist()
    _run(llm, [streams[0][:1]], 8)  # the weights are touched for the first time
    for context in contexts:
        for batch in batches:
            prompts = [stream[: max(context, 1)] for stream in streams[:batch]]
            if context > 0:
                # Then the answers find them and begin together. A longer context begins with the shorter one,
                # which is there already.
                WAYS[way](llm, prompts)
            steps = decode_steps(llm, prompts, tokens)
            yield Point(False, batch, context, tokens // 2, llm.threads, steps, peak_rss())


def decode_steps(llm: LLM, prompts: list[list[int]], tokens: int) -> list[float]:
    """Seconds of each step in which every answer grew by a token."""
    params = SamplingParams(temperature=0, max_tokens=tokens + SLACK, ignore_eos=True)
    requests = [llm.request(prompt, params, {}) for prompt in prompts]
    moments: dict[int, list[float]] = {id(request): [] for request in requests}
    ended: SimpleQueue[Any] = SimpleQueue()

    def listen(task: Any) -> None:  # on the engine's thread, after each step that moved a task
        if len(task.output) > len(moments[id(task)]):
            moments[id(task)].append(time.perf_counter())
        if task.ended:
            ended.put(task)

    llm.engine.submit(requests, listen)
    for _ in requests:
        if (task := ended.get()).error is not None:
            raise task.error
    # From when the last has begun until the first ends.
    begin, end = max(each[0] for each in moments.values()), min(each[-1] for each in moments.values())
    together = [moment for moment in moments[id(requests[-1])] if begin <= moment <= end]
    found = np.diff(together).tolist()
    if not found:
        raise RequestError(
            f"{len(prompts)} sequences of {len(prompts[0]):,} tokens never decoded together: memory may not "
            "hold all of them; use a smaller --batch or --context"
        )
    return found[1:] or found  # the first follows a step with other rows


def prompt_points(llm: LLM, lengths: Sequence[int], tries: int) -> Iterator[Point]:
    """Prompts of so many tokens, each until its first token."""
    rng = np.random.default_rng(1)
    for length in lengths:
        _run(llm, [rng.integers(0, _vocab(llm), length).tolist()], 1)
        seconds = []
        for _ in range(tries):
            prompt = rng.integers(
                0, _vocab(llm), length
            ).tolist()  # new each time: none is found in the cache
            begin = time.perf_counter()
            _run(llm, [prompt], 1)
            seconds.append(time.perf_counter() - begin)
        yield Point(True, length, 0, 0, llm.threads, seconds, peak_rss())


def _run(llm: LLM, prompts: list[list[int]], tokens: int) -> None:
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))


def _vocab(llm: LLM) -> int:
    return min(llm.config.vocab_size, ORDINARY)


def peak_rss() -> int:
    """Bytes of memory that this process has had at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def line_of(point: Point, run: Run, limits: Limits, chunk: int, name: str) -> Line:
    """A point as tokens a second, beside what bytes, products and limits predict that it reaches at most."""
    rates = [point.rows / each for each in point.seconds]
    line = Line(name, "tok/s", rates, "more")
    formats = run.formats
    if point.is_prompt:
        steps = costs.prompt_costs(run.config, point.rows, chunk, formats.number_bytes)
    else:
        context = point.context + point.grown
        steps = [costs.op_costs(run.config, point.rows, context, False, formats.number_bytes)]
    least = sum(costs.least_seconds(step, limits, formats) for step in steps)
    products = sum(costs.flop_seconds(step, limits, formats) for step in steps)
    nbytes = sum(costs.bytes_of(step) for step in steps)
    seconds = point.rows / line.median
    line.facts = {
        "rows": point.rows, "context": point.context, "threads": point.threads, "bytes": nbytes,
        "predicted": point.rows / least, "share": least / seconds,
        "of_bandwidth": nbytes / limits.bandwidth / seconds, "of_peak": products / seconds,
        "peak_rss": point.peak_rss,
    }  # fmt: skip
    return line


HEADER = (
    f"{'':32}{'tok/s':>10} {'spread':>7} {'predicted':>10} {'share':>6} {'of bandwidth':>13} {'of peak':>8} "
    f"{'peak RSS':>10}"
)


def row(line: Line) -> str:
    """For the table under HEADER."""
    facts: dict[str, Any] = line.facts
    return (
        f"{line.name:32}{line.median:10.2f} {line.spread:7.1%} {facts['predicted']:10.2f} "
        f"{facts['share']:6.0%} "
        f"{facts['of_bandwidth']:13.0%} {facts['of_peak']:8.0%} {facts['peak_rss'] / 1e9:7.2f} GB"
    )
