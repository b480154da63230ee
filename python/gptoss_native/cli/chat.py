"""gptoss-native chat: one question with --message, otherwise a conversation."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from ..errors import GptossError
from . import INTERRUPTED, SUCCESS, UsageError
from .chat_session import EFFORTS, ChatSession
from .chat_view import ChatView
from .options import (
    MODEL_HELP,
    add_model_options,
    add_sampling_options,
    check_sampling,
    load,
    sampling_params,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", nargs="?", default="demo", help=f"{MODEL_HELP}; default: demo")
    parser.add_argument("-m", "--message", metavar="TEXT", help="ask this, print the answer and leave")
    parser.add_argument("--system", metavar="TEXT", help="instructions for the model")
    parser.add_argument("--reasoning-effort", choices=EFFORTS, default="medium", help="default: medium")
    parser.add_argument("--show-analysis", action="store_true", help="show the model's chain of thought")
    parser.add_argument("--calculator", action="store_true", help="offer the model a calculator to call")
    parser.add_argument("--json", action="store_true", help="with --message: print a JSON object")
    add_model_options(parser)
    add_sampling_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    check_sampling(args)
    if args.json and args.message is None:
        raise UsageError("--json needs --message; add it, or leave --json out to talk")
    llm = load(args, max_num_seqs=1)
    view = ChatView(sys.stdout, args.show_analysis, labels=args.message is None or args.show_analysis)
    session = ChatSession(
        llm,
        sampling_params(args, llm.default_params),
        effort=args.reasoning_effort,
        system=args.system,
        calculator=args.calculator,
    )
    if args.message is None:
        return _converse(session, view, args.model)
    if args.json:
        answer = session.ask(args.message, lambda delta: None)
        print(json.dumps({"messages": session.messages, "answer": asdict(answer)}, ensure_ascii=False))
    else:
        if view.labels:
            view.line(f"You: {args.message}")
        answer = session.ask(args.message, view.show)
        view.end()
    return INTERRUPTED if answer.finish_reason == "abort" else SUCCESS


def _converse(session: ChatSession, view: ChatView, name: str) -> int:
    """Read lines until the end of the input; an error ends the answer, not the conversation."""
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (gives input() its history and editing keys)

        view.line(
            f"{name}, {session.llm.numerics} numerics. /help lists the commands, Ctrl+C stops an answer."
        )
    while True:
        try:
            line = input("\n> " if interactive else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            view.line("\n/exit or Ctrl+D ends the conversation")
            continue
        try:
            if line.startswith("/"):
                text = session.command(line, view)
                if text is None:
                    return 0
                view.line(text)
            elif line:
                answer = session.ask(line, view.show)
                view.end()
                if answer.finish_reason == "abort":
                    view.line("[stopped]")
        except (GptossError, OSError) as error:
            view.end()
            print(f"gptoss-native: {error}", file=sys.stderr, flush=True)
