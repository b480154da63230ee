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

    show_analysis: the analysis channel is shown too
    labels: each part is introduced by a word, so that they can be told apart without colours
    """

    def __init__(self, stream: TextIO, show_analysis: bool, labels: bool):
        self.stream, self.show_analysis, self.labels = stream, show_analysis, labels
        self.colours = stream.isatty()
        self._part: tuple[str | None, str | None] | None = None

    def show(self, delta: StreamDelta) -> None:
        """Write a piece of the answer."""
        if not delta.text or (delta.channel == "analysis" and not self.show_analysis):
            return
        part = (delta.channel, delta.recipient)
        if part != self._part:
            self.end()
            self._begin(part)
        self.stream.write(delta.text)
        self.stream.flush()

    def end(self) -> None:
        """End the line of the part being written."""
        if self._part is not None:
            self.stream.write((RESET if self.colours else "") + "\n")
            self._part = None
        self.stream.flush()

    def line(self, text: str) -> None:
        """Write a line of our own."""
        self.end()
        self.stream.write(text + "\n")
        self.stream.flush()

    def _begin(self, part: tuple[str | None, str | None]) -> None:
        channel, recipient = part
        label = LABELS.get(channel or "", "Note")
        if recipient:
            label = f"{recipient} answers" if channel == TOOL_ANSWER else f"Call to {recipient}"
        if self.colours and channel == "analysis":
            self.stream.write(DIM)
        if recipient or channel == "analysis" or self.labels:
            self.stream.write(f"{label}: ")
        self._part = part
