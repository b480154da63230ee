"""The gptoss-native command: one file per subcommand, imported when it is used."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from .. import __version__
from ..errors import GptossError, RequestError

#: name -> what it does, in the order of the help text; cli/NAME.py has add_arguments(parser) and run(args),
#: or is a folder with COMMANDS of its own
COMMANDS = {
    "chat": "talk with a model, or ask it one question",
    "generate": "continue a text",
    "serve": "answer requests over HTTP, with OpenAI's API",
    "inspect": "show a checkpoint's layers, tensors and sizes, or one tensor's numbers",
    "edit": "write a copy of a checkpoint with some numbers changed",
    "diff": "show which numbers of two checkpoints differ",
    "export": "write a checkpoint in Hugging Face's or OpenAI's layout",
    "convert": "quantise a BF16 fine-tune's experts to MXFP4, or write a checkpoint in BF16",
    "plan": "say how much memory a model needs, before loading anything",
    "tokenize": "turn text into token ids, or ids into text",
    "download": "fetch a checkpoint from Hugging Face (the only command that uses the network)",
    "bench": "measure kernels, whole models, the server and the start",
    "version": "show the version and what this machine can run",
}
SUCCESS, FAILURE, USAGE, INTERRUPTED, BROKEN_PIPE, TERMINATED = 0, 1, 2, 130, 141, 143


class UsageError(RequestError):
    """Arguments that make no sense: exit code 2."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for a failure, 2 for wrong usage. Never raises."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # As in arguments: what is not UTF-8 arrives as lone surrogates, which check_utf8 refuses.
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        with _ended_by_signal():
            args = _parse(sys.argv[1:] if argv is None else list(argv))
            code = args.run(args)
            sys.stdout.flush()
            return code
    except SystemExit as stop:  # argparse, after printing --help
        return stop.code if isinstance(stop.code, int) else SUCCESS
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except UsageError as error:
        return _fail(error, USAGE)
    except GptossError as error:
        return _fail(error, FAILURE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}; check the path and its permissions", FAILURE)
    except MemoryError:
        return _fail("not enough memory; see `gptoss-native plan`, or lower --max-model-len", FAILURE)
    except Exception as error:
        if os.environ.get("GPTOSS_TRACEBACK"):
            raise
        return _fail(
            f"a mistake in gptoss-native ({type(error).__name__}: {error}); "
            "run it again with GPTOSS_TRACEBACK=1 and report what it prints",
            FAILURE,
        )


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl+C does: what it has half written is removed."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return

    def end(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(argv: list[str]) -> argparse.Namespace:
    """Only the command that is named is imported, so that --help and version answer at once."""
    if argv and argv[0] in COMMANDS:
        return _parse_command("gptoss-native", __name__, COMMANDS, argv)
    parser = _chooser(
        "gptoss-native",
        COMMANDS,
        description="Run gpt-oss models from their open checkpoints, offline.",
        epilog="`gptoss-native COMMAND --help` says more. Try: gptoss-native chat demo",
    )
    parser.add_argument("--version", action="version", version=f"gptoss-native {__version__}")
    return _help_unless_chosen(parser, argv)


def _parse_command(
    prog: str, package: str, commands: Mapping[str, str], argv: list[str]
) -> argparse.Namespace:
    """argv begins with one of `commands`, whose modules are in `package`."""
    name, rest = argv[0], argv[1:]
    prog, summary = f"{prog} {name}", commands[name]
    module = import_module(f".{name}", package)
    if hasattr(module, "COMMANDS"):
        if rest and rest[0] in module.COMMANDS:
            return _parse_command(prog, module.__name__, module.COMMANDS, rest)
        parser = _chooser(prog, module.COMMANDS, description=module.DESCRIPTION, epilog=module.EPILOG)
        return _help_unless_chosen(parser, rest)
    parser = Parser(prog=prog, description=f"{summary[0].upper()}{summary[1:]}.")
    module.add_arguments(parser)
    # Intermixed: an optional argument may stand between the model and the text.
    return parser.parse_intermixed_args(rest, argparse.Namespace(run=module.run))


def _chooser(prog: str, commands: Mapping[str, str], **texts: str) -> Parser:
    """A parser for whoever has not said which of the commands."""
    parser = Parser(prog=prog, **texts)
    choices = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in commands.items():
        choices.add_parser(name, help=summary)
    return parser


def _help_unless_chosen(parser: Parser, argv: list[str]) -> argparse.Namespace:
    if not argv:
        parser.print_help()
        raise SystemExit(USAGE)
    return parser.parse_args(argv)


# Settings in the messages of the Python interface. Those that are everyday words too are only meant where
# they begin the sentence.
_SETTING = re.compile(
    r"\b(max_model_len|max_tokens|gpu_memory_utilization|speculative_config|dense_dtype|top_p|top_k|min_p)\b"
    r"|^(temperature|seed|stop|n|logprobs|threads|device|numerics|context|sequences|lora_rank)(?= must | is )"
)


def tell(message: str | Exception) -> None:
    """One sentence on stderr; a request's error names the flag where Python's has the parameter."""
    text = " ".join(str(message).split())
    text = text.replace("force=True", "--force")
    if isinstance(message, RequestError):
        text = _SETTING.sub(
            lambda found: ("-" if found[0] == "n" else "--") + found[0].replace("_", "-"), text
        )
    print(f"gptoss-native: {text}", file=sys.stderr, flush=True)


def _fail(message: str | Exception, code: int) -> int:
    tell(message)
    return code
