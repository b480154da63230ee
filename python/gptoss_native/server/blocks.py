"""An answer as the Responses and the Messages API see it: blocks of reasoning, text and calls, in order."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..harmony import FUNCTIONS
from ..outputs import ChatCompletionOutput, StreamDelta

REASONING, TEXT, CALL = "reasoning", "text", "call"
_PREFIX = {REASONING: "rs", TEXT: "msg", CALL: "fc"}


@dataclass(eq=False)
class Block:
    """kind: REASONING, TEXT or CALL
    channel: of a text: "final", or "commentary" for what is said beside calls
    name, call_id: of a call; its text is the arguments
    """

    kind: str
    number: int
    channel: str | None = None
    name: str = ""
    call_id: str = ""
    pieces: list[str] = field(default_factory=list)
    item_id: str = ""

    def __post_init__(self) -> None:
        self.item_id = f"{_PREFIX[self.kind]}_{uuid.uuid4().hex}"

    @property
    def text(self) -> str:
        return "".join(self.pieces)


#: "open" and "close" of a block, or "more" text of it.
Change = tuple[str, Block, str]


class Blocks:
    """Grows with the deltas of an answer and says what has changed."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    def push(self, piece: StreamDelta) -> Iterator[Change]:
        """Take a delta; with the last, whose output is set, the open block closes."""
        if piece.text:
            yield from self._add(_block_of(piece), piece.text)
        if piece.output is not None:
            assert isinstance(piece.output, ChatCompletionOutput)
            known = {block.call_id for block in self.all}
            for call in piece.output.tool_calls:
                if call.id not in known:  # it has no arguments, so there was no delta
                    yield from self._add(Block(CALL, 0, None, call.name, call.id), call.arguments)
            yield from self._close()

    def _add(self, block: Block, text: str) -> Iterator[Change]:
        current = self._open
        same = current is not None and (current.kind, current.channel, current.call_id) == (
            block.kind,
            block.channel,
            block.call_id,
        )
        if not same:
            yield from self._close()
            block.number = len(self.all)
            self.all.append(block)
            self._open = current = block
            text = text.removeprefix("\n") if block.kind != CALL else text  # between messages of one kind
            yield "open", block, ""
        assert current is not None
        if text:
            current.pieces.append(text)
            yield "more", current, text

    def _close(self) -> Iterator[Change]:
        if self._open is not None:
            block, self._open = self._open, None
            yield "close", block, ""


def _block_of(piece: StreamDelta) -> Block:
    if piece.tool_call_id is not None:
        return Block(CALL, 0, None, str(piece.recipient).removeprefix(FUNCTIONS), piece.tool_call_id)
    if piece.channel == "analysis":
        return Block(REASONING, 0)
    return Block(TEXT, 0, "commentary" if piece.channel == "commentary" else "final")
