"""What a question is, held-out or not, and how its numbers are drawn."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

HOLD = 16


@dataclass
class Question:
    """One question with its solution. ``low`` is the chain of thought at low effort, "" for none."""

    task: str
    key: str
    text: str
    answer: str
    think: str
    low: str
    expression: str | None = None  # set: answer by a tool call, ``answer`` is the tool's reply

    @property
    def held_out(self) -> bool:
        return zlib.crc32(f"{self.task}:{self.key}".encode()) % HOLD == 0


def number(r: random.Random, digits: int) -> int:
    """Uniform in its number of digits, so that short numbers are not rare."""
    d = r.randint(1, digits)
    return r.randint(10 ** (d - 1) if d > 1 else 0, 10**d - 1)
