"""The command as the tests run it: in this process, or as the argument list of another."""

from __future__ import annotations

import sys

from gptoss_native import cli

COMMAND = [sys.executable, "-m", "gptoss_native"]
GREEDY = ["--temperature", "0", "--max-tokens", "60", "--max-model-len", "1024"]


def run(capsys, *args):
    """(exit code, stdout, stderr)"""
    code = cli.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err
