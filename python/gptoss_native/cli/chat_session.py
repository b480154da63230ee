"""A conversation: its messages, its settings, the commands that change them, and the rounds of tool calls."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from ..demo import calculator
from ..errors import RequestError
from ..outputs import ChatCompletionOutput, StreamDelta, ToolCall
from ..strict_json import show
from .chat_view import TOOL_ANSWER, ChatView
from .text import counted

if TYPE_CHECKING:
    from ..llm import LLM
    from ..sampling import SamplingParams

EFFORTS, SWITCH = ("low", "medium", "high"), ("on", "off")
MAX_ROUNDS = 8  # of tool calls in one answer

HELP = """\
/help                     this list
/clear                    forget the conversation
/effort low|medium|high   how long the model thinks
/analysis [on|off]        show its chain of thought
/system [TEXT]            set the instructions; without TEXT, remove them
/save FILE                write the conversation as JSON
/exit                     leave, as does Ctrl+D; Ctrl+C stops an answer"""


class ChatSession:
    """What the model has been told, and how it is asked."""

    def __init__(self, llm: LLM, params: SamplingParams, effort: str, system: str | None, calculator: bool):
        self.llm, self.params, self.effort = llm, params, effort
        self.system, self.calculator = system, calculator
        self.messages: list[dict[str, Any]] = []

    def ask(self, text: str, show: Callable[[StreamDelta], None]) -> ChatCompletionOutput:
        """The answer to `text`, shown as it comes; a question that fails is forgotten.

        Ctrl+C ends it after the step that runs, with finish_reason "abort".
        """
        start = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            for _ in range(MAX_ROUNDS):
                answer = self._round(show)
                if answer.error is not None:
                    raise RequestError(answer.error)
                if answer.finish_reason == "abort" and not answer.content:
                    del self.messages[start:]  # a question that was stopped before its answer began
                    return answer
                self.messages.append(answer.message)
                if not (self.calculator and answer.tool_calls) or answer.finish_reason != "stop":
                    return answer
                for call in answer.tool_calls:
                    result = _result(call)
                    show(StreamDelta(result, TOOL_ANSWER, call.name))
                    self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
            raise RequestError(
                f"the model called tools {MAX_ROUNDS} times without an answer; ask differently"
            )
        except BaseException:
            del self.messages[start:]
            raise

    def command(self, line: str, view: ChatView) -> str | None:
        """Obey a line that begins with a slash; returns what to print, None to leave.

        Raises RequestError for a command that is none or whose argument makes no sense.
        """
        name, *words = line.split(None, 1)
        name, rest = name.lower(), words[0] if words else ""
        if name in ("/exit", "/quit"):
            return None
        if name == "/help":
            return HELP
        if name == "/clear":
            self.messages.clear()
            return "the conversation is forgotten"
        if name == "/effort":
            self.effort = _choice(name, rest, EFFORTS)
            return f"reasoning effort: {self.effort}"
        if name == "/analysis":
            view.show_analysis = not view.show_analysis if not rest else _choice(name, rest, SWITCH) == "on"
            return f"chain of thought: {'shown' if view.show_analysis else 'hidden'}"
        if name == "/system":
            self.system = rest or None
            return "instructions set" if rest else "instructions removed"
        if name == "/save":
            return self._save(rest)
        raise RequestError(f"{name} is not a command; /help lists them")

    def _save(self, path: str) -> str:
        if not path:
            raise RequestError("/save needs the file to write, found nothing; say /save talk.json")
        try:
            with open(os.path.expanduser(path), "w", encoding="utf-8") as file:
                json.dump(self._conversation(), file, ensure_ascii=False, indent=2)
                file.write("\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(
                f"/save cannot write {path} ({reason}); name a file in a folder that you can write to"
            ) from None
        return f"{counted(len(self.messages), 'message')} written to {path}"

    def _conversation(self) -> list[dict[str, Any]]:
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.messages

    def _round(self, show: Callable[[StreamDelta], None]) -> ChatCompletionOutput:
        tools = [calculator.TOOL] if self.calculator else None
        options = {"reasoning_effort": self.effort, "tools": tools}
        deltas = self.llm.stream(self._conversation(), self.params, **options)
        shown = ""
        with closing(deltas), stop_requested() as stop:
            for delta in deltas:
                if delta.output is not None:
                    return delta.output
                show(delta)
                shown += delta.text if delta.channel == "final" else ""
                if stop.is_set():
                    break
        return ChatCompletionOutput(0, shown, [], 0.0, None, "abort", content=shown)


def _result(call: ToolCall) -> str:
    name = calculator.TOOL["name"]
    if call.name != name:
        return f"error: there is no tool {call.name}, only {name}"
    return calculator.calculate(call.arguments)


def _choice(command: str, found: str, choices: tuple[str, ...]) -> str:
    if found.lower() not in choices:
        *most, last = choices
        raise RequestError(
            f"{command} takes {', '.join(most)} or {last}, found {show(found) if found else 'nothing'}; "
            f"say {command} {last}"
        )
    return found.lower()


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that the first Ctrl+C sets, so that a step is never torn apart; the second one interrupts."""
    event = threading.Event()

    def on_interrupt(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
