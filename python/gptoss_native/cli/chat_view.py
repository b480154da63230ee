"""How a streamed chat answer looks: the chain of thought dim, calls and results on lines of their own."""

from __future__ import annotations

from typing import TextIO

from ..outputs import StreamDelta

DIM, RESET = "\033[2m", "\033[0m"
LABELS = {"analysis": "Thinking", "final": "Answer"}
#: The channel of a delta that shows what a tool answered; its recipient is the tool.
TOOL_ANSWER = "tool"


class ChatView:
    """Writes deltas to a stream as they come.

    A part is introduced by a word, except for an answer that stands alone: nothing precedes it, so that
    whoever pipes it gets the answer and no more.

    show_analysis: the analysis channel is shown too
    """

    def __init__(self, stream: TextIO, show_analysis: bool):
        self.stream, self.show_analysis = stream, show_analysis
        self.colours = stream.isatty()
        self._part: tuple[str | None, str | None] | None = None
        self._parts = 0  # of the answer being shown

    def show(self, delta: StreamDelta) -> None:
        """Write a piece of the answer."""
        if not delta.text or (delta.channel == "analysis" and not self.show_analysis):
            return
        part = (delta.channel, delta.recipient)
        if part != self._part:
            self._end_part()
            self._begin(part)
        self.stream.write(delta.text)
        self.stream.flush()

    def end(self) -> None:
        """End the answer."""
        self._end_part()
        self._parts = 0

    def line(self, text: str) -> None:
        """Write a line of our own."""
        self.end()
        self.stream.write(text + "\n")
        self.stream.flush()

    def _end_part(self) -> None:
        if self._part is not None:
            self.stream.write((RESET if self.colours else "") + "\n")
            self._part = None
        self.stream.flush()

    def _begin(self, part: tuple[str | None, str | None]) -> None:
        channel, recipient = part
        label = LABELS.get(channel or "", "Note")
        if recipient:
            label = f"{recipient} answers" if channel == TOOL_ANSWER else f"Call to {recipient}"
        if self.colours and channel == "analysis":
            self.stream.write(DIM)
        if self._parts or part != ("final", None):
            self.stream.write(f"{label}: ")
        self._part = part
        self._parts += 1
