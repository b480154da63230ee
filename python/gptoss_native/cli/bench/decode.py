"""gptoss-native bench decode."""

from __future__ import annotations

import argparse

from ...bench import whole_model
from . import models, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_run_options(parser)
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[1], metavar="N", help="sequences of a step; default: 1"
    )
    parser.add_argument(
        "--context", nargs="+", type=int, default=[0], metavar="N",
        help="tokens before the decoded ones; default: 0",
    )  # fmt: skip
    options.add_context_way(parser)
    parser.add_argument(
        "--tokens",
        type=int,
        default=32,
        metavar="N",
        help="decoded tokens of each figure; default: %(default)s",
    )
    options.add_threads(parser)
    options.add_result_options(
        parser, "tokens a second over context and batch, the predicted limit beside them"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    options.check_counts(args, 1, "batch", most=1024)
    options.check_counts(args, 0, "context")
    options.check_counts(args, 2, "tokens", most=65_536)
    answer = whole_model.answer_room(args.tokens)
    names = ("batch", "context", "tokens", "chunk")
    settings = {"model": args.model, **{name: getattr(args, name) for name in names}}
    settings["context is"] = args.way

    def points(llm):
        return whole_model.decode_points(llm, args.batch, args.context, args.tokens, args.way)

    def name(point: whole_model.Point) -> str:
        return f"decode batch={point.rows} context={point.context}"

    return models.run("decode", args, settings, points, name, max(args.context), answer, max(args.batch))
