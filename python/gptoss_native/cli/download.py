"""gptoss-native download."""

from __future__ import annotations

import argparse

from ..checkpoint.download import download


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", help="organisation/model, such as openai/gpt-oss-20b (13.8 GB)")
    parser.add_argument("--revision", metavar="REV", help="a branch, tag or commit; default: main")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code. Prints the folder."""
    print(download(args.name, args.revision))
    return 0
