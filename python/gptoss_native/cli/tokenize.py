"""gptoss-native tokenize."""

from __future__ import annotations

import argparse
import json
import sys

from ..checkpoint.locate import locate
from ..tokenizer import Tokenizer
from . import UsageError
from .options import MODEL_HELP, check_utf8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("text", nargs="?", help="default: standard input")
    parser.add_argument("--decode", action="store_true", help="TEXT is token ids, to be turned into text")
    parser.add_argument("--count", action="store_true", help="print only how many tokens there are")
    parser.add_argument("--json", action="store_true", help="print a JSON object with ids, pieces and text")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    text = check_utf8(sys.stdin.read() if args.text is None else args.text, "the text")
    tokenizer = Tokenizer.for_checkpoint(locate(args.model))
    ids = _ids(text) if args.decode else tokenizer.encode(text)
    pieces = [tokenizer.decode([token]) for token in ids]
    if args.json:
        print(json.dumps({"ids": ids, "pieces": pieces, "text": tokenizer.decode(ids)}, ensure_ascii=False))
    elif args.count:
        print(len(ids))
    elif args.decode:
        print(tokenizer.decode(ids))
    else:
        for token, piece in zip(ids, pieces, strict=True):
            print(f"{token:>7}  {piece!r}")
    return 0


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    for word in words:
        if not word.isdecimal():
            raise UsageError(
                f"--decode needs token ids, found {word[:40]!r}; give numbers such as 200006 1428"
            )
    return [int(word) for word in words]
