"""inspect --tensor and --experts: a tensor's numbers, and which experts a model's tokens go to."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from math import log2
from pathlib import Path
from typing import Any

import numpy as np

from .. import plots
from ..checkpoint import open_checkpoint
from ..errors import RequestError
from ..parameters import Parameter, Parameters
from ..parameters.parameter import Statistics
from ..parameters.store import FileStore, specs_of
from . import UsageError
from .text import amount, table

#: What a model is asked where nobody says what: short, and of several kinds.
QUESTIONS = (
    "What is 4732 + 918?",
    "Which is larger, 45 or 312?",
    "What is 902 - 77?",
    "Hello! How are you?",
    "Write one sentence about the sea.",
    "Name three colours.",
)
BAR = " ▏▎▍▌▋▊▉█"


def run_tensor(args: argparse.Namespace) -> int:
    """What --tensor prints and draws."""
    checkpoint = open_checkpoint(args.model)
    parameters = Parameters(checkpoint.config, FileStore(checkpoint.arrays(), specs_of(checkpoint.config)))
    if re.search(r"[*?\[]", args.tensor):
        return _run_pattern(args, parameters)
    try:
        found = parameters[args.tensor]
    except KeyError as error:
        raise UsageError(str(error.args[0])) from None
    counts, edges = found.histogram(41)
    statistics = found.statistics()
    if args.json:
        print(json.dumps(_as_json(found, statistics), indent=2))
    else:
        print(f"{found.name}: {found.dtype} {'x'.join(map(str, found.shape))}, {amount(found.nbytes)}")
        for name, value in asdict(statistics).items():
            label = name.replace("_", " ")
            print(f"  {label:<11}{value:,}" if isinstance(value, int) else f"  {label:<11}{value:.6g}")
        print()
        print(_histogram(counts, edges))
        if len(found.shape) == 3:
            print()
            print(_experts_table(found))
    if args.plot:
        counts, edges = found.histogram(121)
        plots.histogram(counts, edges, f"{found.name} ({found.dtype})", args.plot)
        print(args.plot, file=sys.stderr)
    return 0


def _run_pattern(args: argparse.Namespace, parameters: Parameters) -> int:
    """A line for each parameter that fits, or an expert's part of one."""
    if args.plot:
        raise UsageError("--plot draws one tensor, --tensor is a pattern; name one")
    try:
        found = [(each, each.statistics()) for each in parameters.match(args.tensor)]
    except RequestError as error:
        raise UsageError(str(error)) from None
    if args.json:
        print(json.dumps([_as_json(*each) for each in found], indent=2))
        return 0
    rows = [
        (
            parameter.name,
            parameter.dtype,
            "x".join(map(str, parameter.shape)),
            *(f"{value:.4g}" for value in (each.norm, each.mean, each.std, each.min, each.max)),
            f"{each.not_finite:,}",
        )
        for parameter, each in found
    ]
    header = ("parameter", "dtype", "shape", "norm", "mean", "std", "min", "max", "not finite")
    print(table(header, rows, right=(3, 4, 5, 6, 7, 8)))
    return 0


def run_experts(args: argparse.Namespace) -> int:
    """What --experts prints and draws: the model answers prompts, and its router is watched."""
    from ..llm import LLM
    from ..sampling import SamplingParams

    prompts = args.prompt or list(QUESTIONS)
    try:
        llm = LLM(args.model, device=args.device, max_model_len=args.max_model_len)
    except RequestError as error:
        raise UsageError(str(error)) from None
    params = SamplingParams(temperature=0, max_tokens=args.max_tokens)
    with llm, llm.expert_usage() as usage:
        llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], params)
    share, entropy, experts = usage.share, usage.entropy, usage.counts.shape[1]
    chosen, router = llm.config.num_experts_per_tok, usage.router_entropy
    if args.json:
        print(
            json.dumps(
                {
                    "tokens": usage.tokens,
                    "counts": usage.counts.tolist(),
                    "entropy": entropy.tolist(),
                    "router_entropy": router.tolist(),
                }
            )
        )
    else:
        print(f"{usage.tokens:,} tokens of {len(prompts)} conversations\n")
        rows = []
        for layer, row in enumerate(share):
            order = np.argsort(-row, kind="stable")
            most = "  ".join(f"{e}: {row[e]:.1%}" for e in order[:4])
            unused = f"{np.count_nonzero(row == 0)}"
            rows.append((str(layer), f"{entropy[layer]:.2f}", f"{router[layer]:.2f}", unused, most))
        print(table(("layer", "use", "router", "unused", "most used experts"), rows, right=(0, 1, 2, 3)))
        print(f"\nuse: entropy in bits; {log2(experts):.2f} if all {experts} experts were used alike")
        print(
            f"router: that of its weights for a token, on average; {log2(chosen):.2f} if all {chosen} were "
            "the same"
        )
    if args.plot:
        name = f"{llm.name}: experts of {usage.tokens:,} tokens"
        plots.heat_map(share, name, args.plot)
        path = Path(args.plot)
        lines = path.with_name(f"{path.stem}-entropy{path.suffix}")
        series = {"use of experts": entropy, "router's weights of a token": usage.router_entropy}
        limits = {f"all {experts} used alike": log2(experts), f"all {chosen} weighted alike": log2(chosen)}
        plots.by_layer(series, limits, "bits", f"{llm.name}: entropy", lines)
        print(f"{args.plot}\n{lines}", file=sys.stderr)
    return 0


def _as_json(parameter: Parameter, statistics: Statistics) -> dict[str, Any]:
    """JSON has no NaN: null where there are no finite values."""
    values = {name: None if value != value else value for name, value in asdict(statistics).items()}
    return {**_card(parameter), **values}


def _card(parameter: Parameter) -> dict[str, Any]:
    shape = list(parameter.shape)
    return {"name": parameter.name, "dtype": parameter.dtype, "shape": shape, "bytes": parameter.nbytes}


def _histogram(counts: np.ndarray, edges: np.ndarray) -> str:
    """Bars of text, their lengths by the logarithm of the counts."""
    lines, most = [], log2(max(counts.max(), 1) + 1)
    for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        eighths = round(8 * 40 * log2(count + 1) / most)
        bar = BAR[8] * (eighths // 8) + BAR[eighths % 8].strip()
        middle = (low + high) / 2
        middle = 0.0 if abs(middle) < 1e-6 * (high - low) else middle
        lines.append(f"  {middle:>11.4g}  {bar} {count:,}")
    return "\n".join(lines)


def _experts_table(parameter: Parameter) -> str:
    rows = []
    for number, expert in enumerate(parameter.experts):
        found = expert.statistics()
        rows.append(
            (str(number), f"{found.norm:.4g}", f"{found.std:.4g}", f"{found.max:.4g}", f"{found.min:.4g}")
        )
    return table(("expert", "norm", "std", "max", "min"), rows, right=(0, 1, 2, 3, 4))
