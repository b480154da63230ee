"""gptoss-native generate."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..outputs import CompletionOutput
from . import UsageError
from .options import (
    MODEL_HELP,
    add_model_options,
    add_sampling_options,
    check_sampling,
    load,
    sampling_params,
)

if TYPE_CHECKING:
    from ..llm import LLM
    from ..sampling import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("prompt", nargs="*", help="texts to continue; default: standard input as one text")
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt")
    add_model_options(parser)
    add_sampling_options(parser)
    parser.add_argument("-n", "--n", type=int, metavar="N", help="answers to each prompt")
    parser.add_argument(
        "--logprobs", type=int, metavar="K", help="with --json: log-probabilities of K tokens"
    )
    parser.set_defaults(max_tokens=256)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    check_sampling(args)
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs needs --json; add it")
    prompts = args.prompt or [sys.stdin.read()]
    llm = load(args)
    params = sampling_params(args, llm.default_params)
    if len(prompts) == 1 and params.n == 1 and not args.json:
        _stream(llm, prompts[0], params)
        return 0
    for number, output in enumerate(llm.generate(prompts, params), 1):
        if args.json:
            print(json.dumps(to_json(output.prompt, output.outputs), ensure_ascii=False))
            continue
        for answer in output.outputs:
            print(f"--- prompt {number}, answer {answer.index + 1} ---\n{answer.text}")
    return 0


def to_json(prompt: str | None, answers: list[CompletionOutput]) -> dict[str, Any]:
    """What --json prints of one prompt."""
    return {"prompt": prompt, "outputs": [asdict(answer) for answer in answers]}


def _stream(llm: LLM, prompt: str, params: SamplingParams) -> None:
    for delta in llm.stream(prompt, params):
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    print()
