"""gptoss-native edit: change numbers of a checkpoint, in a copy of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import open_checkpoint
from ..errors import CheckpointError
from ..export import LAYOUTS, export
from ..parameters import Edit
from ..parameters.history import merged
from ..parameters.patch import read_patch, write_patch
from ..parameters.store import FileStore, Overlay, Region, specs_of
from ..progress import ProgressBar
from . import UsageError
from .options import MODEL_HELP
from .text import counted

PATTERNS = """NAME is a parameter's name, long or short, or a pattern with * ? [seq], such as
model.layers.7.mlp.router.bias, layers.*.router.bias or layers.7.experts.3.*; `gptoss-native inspect MODEL`
lists them. Changes are made in the order given."""


class _InOrder(argparse.Action):
    """Keeps options of several kinds in the order in which they stand."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        found = [*(getattr(namespace, "changes", None) or []), ((option or "").lstrip("-"), values)]
        namespace.changes = found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.epilog = PATTERNS
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument(
        "--set", action=_InOrder, metavar="NAME=NUMBER", help="make all its numbers this one; may be repeated"
    )
    parser.add_argument(
        "--scale", action=_InOrder, metavar="NAME=FACTOR", help="multiply all its numbers; may be repeated"
    )
    parser.add_argument(
        "--patch", action=_InOrder, metavar="FILE", help="apply a patch file; may be repeated"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="apply patches also where they replace other numbers than those they were made from",
    )
    parser.add_argument(
        "--lora", action=_InOrder, metavar="DIR", help="merge a PEFT adapter; may be repeated"
    )
    parser.add_argument("--out", metavar="DIR", help="where the edited checkpoint goes: a new folder")
    parser.add_argument(
        "--save-patch", metavar="FILE", help="write the changes as a patch file, too or instead"
    )
    parser.add_argument(
        "--layout", choices=sorted(LAYOUTS), default="huggingface", help="default: huggingface"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    changes: Sequence[tuple[str, str]] = getattr(args, "changes", None) or []
    if not changes:
        raise UsageError("nothing is to be changed; add --set, --scale, --patch or --lora")
    if args.out is None and args.save_patch is None:
        raise UsageError("say where the result goes: --out DIR, --save-patch FILE, or both")
    parsed = [(kind, _pair(kind, text) if kind in ("set", "scale") else text) for kind, text in changes]
    checkpoint = open_checkpoint(args.model)
    files = FileStore(checkpoint.arrays(), specs_of(checkpoint.config))
    regions: list[Region] = []
    edited = Overlay(files, regions)
    for kind, what in parsed:
        if kind == "patch":
            name, found = read_patch(Path(what), checkpoint.config, edited, force=args.force)
            regions.extend(found)
            print(f"patch {name}: {counted(len(found), 'range')} of rows")
            continue
        with Edit("edit", checkpoint.config, edited, _nothing, lambda new: regions.extend(new or [])) as edit:
            if kind == "lora":
                print(f"lora {what}: {edit.merge_lora(what)}")
                continue
            pattern, number = what
            report = edit.set(pattern, number) if kind == "set" else edit.scale(pattern, number)
        print(f"{kind} {pattern} {'=' if kind == 'set' else 'x'} {number:g}: {report}")
    if args.save_patch is not None:
        spans: dict[str, list[tuple[int, int]]] = {}
        for region in regions:
            spans.setdefault(region.name, []).append((region.first, region.end))
        if Path(args.save_patch).exists():
            raise CheckpointError(f"{args.save_patch}: exists already; choose another name, or remove it")
        touched = {name: merged(found) for name, found in spans.items()}
        size = write_patch(Path(args.save_patch), Path(args.save_patch).stem, touched, files, edited)
        print(f"{args.save_patch}: {size:,} bytes")
    if args.out is not None:
        with ProgressBar(checkpoint.nbytes * len(LAYOUTS[args.layout]), "writing") as progress:
            done = _Counter(progress)
            folder = export(
                checkpoint.config, edited, Path(args.out), checkpoint.path, checkpoint.tokenizer_directory,
                args.layout, 5 << 30, done,
            )  # fmt: skip
        print(folder)
    return 0


def _nothing() -> None:
    """Nobody else edits these files."""


class _Counter:
    """Sums the sizes of pieces for a progress bar."""

    def __init__(self, progress: ProgressBar):
        self._progress, self._done = progress, 0

    def __call__(self, size: int) -> None:
        self._done += size
        self._progress(self._done)


def _pair(kind: str, text: str) -> tuple[str, float]:
    name, equals, number = text.rpartition("=")
    try:
        if not equals or not name:
            raise ValueError
        return name, float(number)
    except ValueError:
        raise UsageError(
            f"--{kind} is {text!r}, expected a name, = and a number, e.g. layers.0.sinks=0"
        ) from None
