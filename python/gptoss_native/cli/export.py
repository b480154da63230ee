"""gptoss-native export: a checkpoint in another layout, other shards, or with a patch applied."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoint import open_checkpoint
from ..export import LAYOUTS, export
from ..parameters.store import FileStore, specs_of
from .options import MODEL_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--layout",
        choices=sorted(LAYOUTS),
        default="huggingface",
        help="huggingface, the default; openai; both: that one in the folder's `original`",
    )
    parser.add_argument(
        "--shard-bytes", type=int, metavar="N", default=5 << 30, help="a file's size at most; default: 5 GiB"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    checkpoint = open_checkpoint(args.model)
    store = FileStore(checkpoint.arrays(), specs_of(checkpoint.config))
    print(
        export(
            checkpoint.config,
            store,
            Path(args.out),
            checkpoint.path,
            checkpoint.tokenizer_directory,
            args.layout,
            args.shard_bytes,
        )
    )
    return 0
