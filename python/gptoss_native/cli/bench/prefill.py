"""gptoss-native bench prefill."""

from __future__ import annotations

import argparse

from ...bench import whole_model
from . import models, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_run_options(parser)
    parser.add_argument(
        "--prompt", nargs="+", type=int, default=[128, 512, 2048], metavar="N",
        help="tokens of a prompt; default: 128 512 2048",
    )  # fmt: skip
    parser.add_argument(
        "--tries", type=int, default=5, metavar="N", help="prompts of each length; default: %(default)s"
    )
    options.add_threads(parser)
    options.add_result_options(parser, "tokens a second over the length, the predicted limit beside them")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    options.check_counts(args, 1, "prompt")
    options.check_counts(args, 1, "tries", most=10_000)
    settings = {"model": args.model, "prompt": args.prompt, "tries": args.tries, "chunk": args.chunk}

    def points(llm):
        return whole_model.prompt_points(llm, args.prompt, args.tries)

    def name(point: whole_model.Point) -> str:
        return f"prefill prompt={point.rows}"

    return models.run("prefill", args, settings, points, name, max(args.prompt), 2, 1)
