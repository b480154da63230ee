"""Responses kept for later turns: in memory, bounded in number and in bytes, the oldest go first."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

MAX_NUMBER = 10_000
MAX_BYTES = 256 << 20


@dataclass
class Stored:
    """response: as the API shows it; conversation: all messages up to its answer, for the next turn"""

    response: dict[str, Any]
    conversation: list[dict[str, Any]]
    size: int = 0


class Store:
    """Responses by id. Used on the event loop's thread only."""

    def __init__(self, max_number: int = MAX_NUMBER, max_bytes: int = MAX_BYTES):
        self._max_number, self._max_bytes = max_number, max_bytes
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, stored: Stored) -> None:
        """Keep it, in place of an earlier state of the same response."""
        response_id = stored.response["id"]
        self.pop(response_id)
        stored.size = len(json.dumps([stored.response, stored.conversation]))
        self._kept[response_id] = stored
        self.bytes += stored.size
        while len(self._kept) > self._max_number or self.bytes > self._max_bytes:
            self.pop(next(iter(self._kept)))

    def get(self, response_id: str) -> Stored | None:
        return self._kept.get(response_id)

    def pop(self, response_id: str) -> Stored | None:
        stored = self._kept.pop(response_id, None)
        if stored is not None:
            self.bytes -= stored.size
        return stored
