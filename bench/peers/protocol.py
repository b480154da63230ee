"""How a bench talks to the engines it compares: a process each, one line in, one line out.

An engine answers `prefill TOKENS`, `decode CONTEXT TOKENS` with seconds, `logits FILE` (a .npy of token ids)
by writing FILE.out.npy, `peak` with the most bytes of memory that it has had.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Engine(Protocol):
    def prefill(self, tokens: int) -> float:
        """Seconds from a prompt of random tokens to the logits of its last."""

    def decode(self, context: int, tokens: int) -> float:
        """Seconds for so many tokens, one by one, after a prompt of `context`."""

    def logits(self, tokens: list[int]) -> np.ndarray:
        """float32 [vocab] after the last of the tokens."""


def serve(engine: Engine) -> None:
    """In the engine's process: obey until the input ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        what, *arguments = line.split()
        if what == "logits":
            np.save(arguments[0] + ".out.npy", engine.logits(np.load(arguments[0]).tolist()))
            answer = 0.0
        elif what == "peak":
            answer = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        else:
            answer = getattr(engine, what)(*map(int, arguments))
        print(f"= {answer!r}", flush=True)


class Process:
    """An engine in a process of its own, from the bench's side."""

    def __init__(self, command: Sequence[str | Path], **environment: object):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            **environment,
        )
        self._read("ready")

    def ask(self, line: str) -> float:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return float(self._read("= ")[2:])

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _read(self, beginning: str) -> str:
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line.strip()
        raise SystemExit(f"{self._process.args}: ended without an answer; run it by hand to see why")
