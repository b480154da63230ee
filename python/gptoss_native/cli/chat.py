"""gptoss-native chat: one question with --message, otherwise a conversation."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict

from ..errors import GptossError
from ..outputs import ChatCompletionOutput
from . import FAILURE, INTERRUPTED, SUCCESS, UsageError, tell
from .chat_session import EFFORTS, ChatSession
from .chat_view import ChatView
from .endings import cut
from .options import (
    MODEL_HELP,
    add_model_options,
    add_sampling_options,
    check_sampling,
    check_text,
    check_utf8,
    load,
    sampling_params,
)

#: Tokens of a prompt computed in one step, which Ctrl+C has to wait for: fewer than where nobody waits.
STEP_TOKENS = 128


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
    add_sampling_options(parser, max_tokens=None)
    parser.add_argument("text", nargs="*", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    # Whoever writes the message as an argument may have left the model out, too.
    if not args.text and args.message is None and " " in args.model and not os.path.exists(args.model):
        args.model, args.text = "demo", [args.model]
    if args.text:
        asked = shlex.join(["gptoss-native", "chat", args.model, "-m", " ".join(args.text)])
        raise UsageError(f"a message needs -m before it; say {asked}")
    if args.message is not None:
        check_text(args.message, "the message")
    check_utf8(args.system or "", "the text of --system")
    check_sampling(args)
    if args.json and args.message is None:
        raise UsageError("--json needs --message; add it, or leave --json out to talk")
    llm = load(args, max_num_seqs=1, max_num_batched_tokens=STEP_TOKENS)
    session = ChatSession(
        llm,
        sampling_params(args, llm.default_params),
        effort=args.reasoning_effort,
        system=args.system,
        calculator=args.calculator,
    )
    view = ChatView(sys.stdout, args.show_analysis)
    if args.message is None:
        return _converse(session, view, args.model)
    if args.json:
        answer = session.ask(args.message, lambda delta: None)
        print(json.dumps({"messages": session.messages, "answer": asdict(answer)}, ensure_ascii=False))
    else:
        answer = session.ask(args.message, view.show)
        view.end()
    _explain_cut(answer, session, "raise --max-model-len")
    return INTERRUPTED if answer.finish_reason == "abort" else SUCCESS


def _converse(session: ChatSession, view: ChatView, name: str) -> int:
    """Read lines until the end of the input; an error ends the answer, not the conversation.

    Returns the exit code: in a script, which sees no answer being refused, an error makes it a failure.
    """
    interactive, code = sys.stdin.isatty(), SUCCESS
    if interactive:
        with suppress(ImportError):  # Python can be built without it
            import readline  # noqa: F401  (gives input() its history and editing keys)

        view.line(
            f"{name}, {session.llm.numerics} numerics. /help lists the commands, Ctrl+C stops an answer."
        )
    while True:
        try:
            line = input("\n> " if interactive else "").strip()
        except EOFError:
            return code
        except KeyboardInterrupt:
            view.line("\n/exit or Ctrl+D ends the conversation")
            continue
        try:
            if line.startswith("/"):
                text = session.command(line, view)
                if text is None:
                    return code
                view.line(text)
            elif line:
                answer = session.ask(check_text(line, "the message"), view.show)
                view.end()
                if answer.finish_reason == "abort":
                    view.line("[stopped]")
                _explain_cut(
                    answer, session, "/clear starts a new conversation, --max-model-len sets its length"
                )
        except GptossError as error:
            view.end()
            tell(error)
            code = SUCCESS if interactive else FAILURE


def _explain_cut(answer: ChatCompletionOutput, session: ChatSession, more_context: str) -> None:
    """Say on stderr where an answer was cut off, by what, and what to do."""
    why = cut(answer, session.llm, session.params, more_context)
    if why is not None:
        channel = answer.messages[-1].channel if answer.messages else None
        where = f"in the {channel} channel" if channel else "before any text"
        tell(f"the answer was cut off {where} {why}")
