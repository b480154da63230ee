"""gptoss-native version."""

from __future__ import annotations

import argparse
import json
import os
import platform

from .. import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from .. import _native

    facts = {
        "version": __version__,
        "cpu_isas": _native.cpu_isas(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    if args.json:
        print(json.dumps(facts))
    else:
        print(f"gptoss-native {__version__}")
        print(f"cpu: {facts['cores']} cores, instruction sets {', '.join(facts['cpu_isas'])}")
        print(f"python {facts['python']} on {facts['platform']}")
    return 0
