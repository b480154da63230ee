"""gptoss-native generate."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..outputs import CompletionOutput
from . import UsageError, tell
from .endings import exit_code
from .options import (
    MODEL_HELP,
    add_model_options,
    add_sampling_options,
    check_sampling,
    check_text,
    load,
    sampling_params,
)

if TYPE_CHECKING:
    from ..llm import LLM
    from ..sampling import SamplingParams

MAX_TOKENS = 256  # of an answer, where none is asked for: a plain text need not come to an end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("prompt", nargs="*", help="texts to continue; default: standard input as one text")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, one a prompt")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens=MAX_TOKENS)
    parser.add_argument("-n", "--n", type=int, metavar="N", help="answers to each prompt; default: 1")
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="K",
        help="with --json: log-probabilities of the K likeliest tokens and of the one drawn",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    check_sampling(args)
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs needs --json; add it")
    prompts = args.prompt or [sys.stdin.read()]
    for number, prompt in enumerate(prompts, 1):
        check_text(prompt, "the prompt" if len(prompts) == 1 else f"prompt {number}")
    llm = load(args)
    params = sampling_params(args, llm.default_params)
    if params.n > 1 and params.temperature == 0:
        tell(f"at temperature 0 the {params.n} answers to a prompt are the same; raise --temperature")
    if len(prompts) == 1 and params.n == 1 and not args.json:
        return exit_code([_stream(llm, prompts[0], params)], llm, params)
    outputs = llm.generate(prompts, params)
    for number, output in enumerate(outputs, 1):
        if args.json:
            print(json.dumps(to_json(output.prompt, output.outputs), ensure_ascii=False))
            continue
        for answer in output.outputs:
            print(f"--- prompt {number}, answer {answer.index + 1} ---\n{answer.text}")
    sys.stdout.flush()
    return exit_code([answer for output in outputs for answer in output.outputs], llm, params)


def to_json(prompt: str | None, answers: list[CompletionOutput]) -> dict[str, Any]:
    """What --json prints of one prompt."""
    return {"prompt": prompt, "outputs": [asdict(answer) for answer in answers]}


def _stream(llm: LLM, prompt: str, params: SamplingParams) -> CompletionOutput:
    for delta in llm.stream(prompt, params):
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    print(flush=True)
    return delta.output
