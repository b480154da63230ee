"""inspect --tensor and --experts: a tensor's numbers, and which experts a model's tokens go to."""

from __future__ import annotations

import argparse
import json
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
    try:
        found = parameters[args.tensor]
    except KeyError as error:
        raise UsageError(str(error.args[0])) from None
    counts, edges = found.histogram(41)
    statistics = found.statistics()
    if args.json:
        print(json.dumps({**_card(found), **asdict(statistics)}, indent=2))
    else:
        print(f"{found.name}: {found.dtype} {'x'.join(map(str, found.shape))}, {amount(found.nbytes)}")
        for name, value in asdict(statistics).items():
            print(f"  {name:<7}{value:,}" if isinstance(value, int) else f"  {name:<7}{value:.6g}")
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
    if args.json:
        print(
            json.dumps({"tokens": usage.tokens, "counts": usage.counts.tolist(), "entropy": entropy.tolist()})
        )
    else:
        print(f"{usage.tokens:,} tokens of {len(prompts)} conversations\n")
        rows = []
        for layer, row in enumerate(share):
            order = np.argsort(-row, kind="stable")
            most = "  ".join(f"{e}: {row[e]:.1%}" for e in order[:4])
            rows.append((str(layer), f"{entropy[layer]:.2f}", f"{np.count_nonzero(row == 0)}", most))
        print(table(("layer", "entropy", "unused", "most used experts"), rows, right=(0, 1, 2)))
        print(f"\nentropy in bits; {log2(experts):.2f} if all {experts} experts were used alike")
    if args.plot:
        name = f"{llm.name}: experts of {usage.tokens:,} tokens"
        plots.heat_map(share, name, args.plot)
        path = Path(args.plot)
        bars = path.with_name(f"{path.stem}-entropy{path.suffix}")
        plots.bars(entropy, "bits", "entropy of expert use", bars, log2(experts))
        print(f"{args.plot}\n{bars}", file=sys.stderr)
    return 0


def _card(parameter: Parameter) -> dict[str, Any]:
    shape = list(parameter.shape)
    return {"name": parameter.name, "dtype": parameter.dtype, "shape": shape, "bytes": parameter.nbytes}


def _histogram(counts: np.ndarray, edges: np.ndarray) -> str:
    """Bars of text, their lengths by the logarithm of the counts."""
    lines, most = [], log2(counts.max() + 1)
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
