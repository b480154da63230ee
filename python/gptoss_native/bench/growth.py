"""How cost grows: with context, batch, experts, threads and the length of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config import ModelConfig
from . import whole_model
from .limits import Limits, limits_of, measure_limits
from .op_times import figures
from .ops import cases_of
from .report import Line
from .whole_model import How, Point, Run

EXPERT_OPS = ("moe_up", "moe_down")
EXPERT_ROWS = 8  # tokens of a step of which the experts are measured
FAST = ("q8", "")  # variants of an op that fast numerics run


@dataclass(frozen=True)
class Axes:
    """What is varied, one at a time; the others stay at one sequence, no context and all threads."""

    contexts: Sequence[int]
    batches: Sequence[int]
    experts: Sequence[int]
    threads: Sequence[int]
    prompts: Sequence[int]


@dataclass(frozen=True)
class Effort:
    """tokens: decoded for each point, after contexts made in some way (contexts.WAYS). tries: prompts.
    seconds: of each op's figure."""

    tokens: int
    way: str
    tries: int
    seconds: float


def measure(
    model: str,
    how: How,
    axes: Axes,
    effort: Effort,
    backend_of: Callable[[int], Any],
    tell: Callable[[str], None],
) -> tuple[Run, list[Line], list[Line]]:
    """(the model as it was run, limits, lines); a line's "curve" names its axis, "x" its place there.

    backend_of: threads -> a backend. Limits are measured once for each number of threads, after the models,
    so that their memory is not counted as the models'.
    """
    points: list[tuple[str, int, Point]] = []
    answer = whole_model.answer_room(effort.tokens)
    longest = max([1, *axes.contexts, *axes.prompts])
    with whole_model.loaded(model, how, longest, answer, 1) as (llm, run):
        tell("contexts and prompts")
        if axes.contexts:
            for point in whole_model.decode_points(llm, [1], axes.contexts, effort.tokens, effort.way):
                points.append(("context", point.context, point))
        for point in whole_model.prompt_points(llm, axes.prompts, effort.tries):
            points.append(("prompt", point.rows, point))
    if axes.batches:
        tell("batches")
        with whole_model.loaded(model, how, 1, answer, max(axes.batches)) as (llm, _):
            for point in whole_model.decode_points(llm, axes.batches, [0], effort.tokens):
                points.append(("batch", point.rows, point))
    for threads in axes.threads:
        tell(f"{threads} threads")
        prompt = min(axes.prompts, default=128)
        with whole_model.loaded(model, replace(how, threads=threads), prompt, answer, 1) as (llm, _):
            for point in whole_model.decode_points(llm, [1], [0], effort.tokens):
                points.append(("decode threads", threads, point))
            for point in whole_model.prompt_points(llm, [prompt], effort.tries):
                points.append(("prompt threads", threads, point))
    measured = {
        threads: measure_limits(backend_of(threads))
        for threads in {run.threads, *(p.threads for _, _, p in points)}
    }
    limits = {threads: limits_of(lines) for threads, lines in measured.items()}
    lines = []
    for curve, x, point in points:
        name = f"{curve}={x}"
        line = whole_model.line_of(point, run, limits[point.threads], how.chunk, name)
        line.facts |= {"curve": curve, "x": x}
        lines.append(line)
    if axes.experts:
        tell("experts")
        backend = backend_of(run.threads)
        lines += [
            expert_line(run.config, count, backend, limits[run.threads], effort.seconds)
            for count in axes.experts
        ]
    shown = [
        replace(line, name=f"{line.name}, {threads} threads")
        for threads, found in sorted(measured.items())
        for line in found
    ]
    return run, shown, lines


def expert_line(model: ModelConfig, experts: int, backend: Any, limits: Limits, seconds: float) -> Line:
    """moe_up and moe_down together of a layer with so many experts, in ms."""
    chosen = min(model.num_experts_per_tok, experts)
    shape = replace(model, num_local_experts=experts, num_experts_per_tok=chosen)
    found = [
        figure
        for op in EXPERT_OPS
        for figure in figures(op, cases_of(op), backend, [EXPERT_ROWS], shape, limits, seconds)
        if figure.variant in FAST
    ]
    times = [1e3 * sum(pair) for pair in zip(*(figure.times for figure in found), strict=True)]
    least = 1e3 * sum(figure.least for figure in found)
    line = Line(f"experts={experts}", "ms", times, "less", {"curve": "experts", "x": experts})
    line.facts |= {"predicted": least, "share": least / line.median, "rows": EXPERT_ROWS}
    return line
