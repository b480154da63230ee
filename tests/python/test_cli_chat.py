"""`gptoss-native chat`: one message, conversations, Ctrl+C and rounds of tool calls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from gptoss_native import cli
from gptoss_native.cli.chat_session import ChatSession
from gptoss_native.cli.chat_view import ChatView
from gptoss_native.engine import Engine
from gptoss_native.outputs import ChatCompletionOutput, StreamDelta, ToolCall
from gptoss_native.sampling import SamplingParams

from tests.python.command import COMMAND, GREEDY, run


def test_one_message_prints_the_answer_and_on_request_the_thinking(capsys):
    args = ["chat", "demo", "-m", "What is 12 + 30?", "--temperature", "0", "--max-model-len", "1024"]
    found = json.loads(run(capsys, *args, "--json")[1])["answer"]
    assert run(capsys, *args)[1] == found["content"] + "\n"
    shown = run(capsys, *args, "--show-analysis")[1]
    assert shown.startswith("You: What is 12 + 30?\n")
    assert f"Thinking: {found['reasoning']}\n" in shown
    assert shown.endswith(f"Answer: {found['content']}\n")


def test_a_conversation_through_a_pipe(tmp_path):
    saved = tmp_path / "talk.json"
    lines = ["/help", "/system Be kind.", "hi", "", "/effort low", "/analysis on", "What is 1 + 2?", "/dance"]
    lines += [
        f"/save {saved}",
        "/clear",
        "/save /nowhere/x",
        f"/save {tmp_path}/empty.json",
        "/exit",
        "not read",
    ]
    done = subprocess.run(
        [*COMMAND, "chat", *GREEDY], input="\n".join(lines), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "/clear" in done.stdout
    assert "/dance is not a command" in done.stdout
    assert "/nowhere/x" in done.stderr
    talk = json.loads(saved.read_text())
    assert [message["role"] for message in talk] == ["system", "user", "assistant", "user", "assistant"]
    assert talk[0]["content"] == "Be kind."
    assert json.loads((tmp_path / "empty.json").read_text()) == [{"role": "system", "content": "Be kind."}]
    assert "> " not in done.stdout


def test_ctrl_c_stops_the_answer_and_not_the_conversation():
    talk = subprocess.Popen(
        [*COMMAND, "chat", "demo", "--show-analysis", "--max-model-len", "100000", "--temperature", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        talk.stdin.write("/analysis on\nwhat?\n")
        talk.stdin.flush()
        assert "shown" in talk.stdout.readline()
        talk.stdout.read(8)  # the answer has begun
        talk.send_signal(signal.SIGINT)
        time.sleep(0.5)
        out, err = talk.communicate("/effort high\n/exit\n", timeout=60)
    finally:
        talk.kill()
    assert talk.returncode == 0
    assert "\n[stopped]\n" in out
    assert "reasoning effort: high" in out
    assert "Traceback" not in err


class ScriptedModel:
    """Answers each turn with the next of `answers`, recording what it was told."""

    def __init__(self, *answers):
        self.answers, self.told = list(answers), []

    def stream(self, messages, params, **options):
        self.told.append((list(messages), options))
        yield StreamDelta(output=self.answers.pop(0))


class EndlessModel:
    """Talks until it is closed; Ctrl+C arrives during the third piece."""

    closed, channel = False, "final"

    def stream(self, messages, params, **options):
        try:
            for piece in range(1000):
                if piece == 2:
                    os.kill(os.getpid(), signal.SIGINT)
                yield StreamDelta(f"{piece} ", self.channel)
        finally:
            self.closed = True


def test_ctrl_c_keeps_what_was_said():
    model, shown = EndlessModel(), []
    session = ChatSession(model, SamplingParams(), "low", None, calculator=False)
    before = signal.getsignal(signal.SIGINT)
    answer = session.ask("talk", lambda delta: shown.append(delta.text))
    assert (answer.content, answer.finish_reason) == ("0 1 2 ", "abort")
    assert shown == ["0 ", "1 ", "2 "]
    assert model.closed
    assert session.messages[-1] == {"role": "assistant", "content": "0 1 2 "}
    assert signal.getsignal(signal.SIGINT) is before


class Interrupted:
    """Engine.forward that presses Ctrl+C during its step number `at`."""

    def __init__(self, monkeypatch, at):
        forward, self.steps = Engine.forward, 0

        def interrupted(engine, *args, **options):
            self.steps += 1
            if self.steps == at:
                os.kill(os.getpid(), signal.SIGINT)
            return forward(engine, *args, **options)

        monkeypatch.setattr(Engine, "forward", interrupted)


LONG = "12 + 30 " * 400  # 3,200 tokens of the demo model: a prompt of seven steps


@pytest.mark.parametrize("command", [["generate", "demo", LONG], ["chat", "demo", "-m", LONG]])
def test_ctrl_c_ends_a_long_prompt_after_the_step_that_runs(capsys, monkeypatch, command):
    model = Interrupted(monkeypatch, at=2)
    code, out, err = run(capsys, *command, "--temperature", "0")
    assert (code, out.strip(), err.strip()) == (cli.INTERRUPTED, "", "")
    assert model.steps == 2


def test_ctrl_c_keeps_what_generate_has_printed(capsys, monkeypatch):
    command = ["generate", "demo", "abc", *GREEDY]
    _, whole, _ = run(capsys, *command)
    Interrupted(monkeypatch, at=20)
    code, out, _ = run(capsys, *command)
    assert code == cli.INTERRUPTED
    assert len(out) > 5
    assert whole.startswith(out.rstrip("\n"))


def test_a_question_stopped_before_its_answer_is_forgotten(monkeypatch):
    model = EndlessModel()
    session = ChatSession(model, SamplingParams(), "low", None, calculator=False)
    monkeypatch.setattr(EndlessModel, "channel", "analysis")
    assert session.ask("talk", lambda delta: None).finish_reason == "abort"
    assert session.messages == []


def answer_of(content="", calls=()):
    return ChatCompletionOutput(
        0, content, [], 0.0, None, "stop", content=content, tool_calls=[ToolCall(*call) for call in calls]
    )


def test_calculator_round_trip(capsys):
    call = ("call_1", "calculator", '{"expression": "12*34"}')
    model = ScriptedModel(answer_of(calls=[call]), answer_of("It is 408."))
    session = ChatSession(model, SamplingParams(), "low", None, calculator=True)
    view = ChatView(sys.stdout, show_analysis=False, labels=False)
    assert session.ask("12 * 34?", view.show).content == "It is 408."
    view.end()
    messages, options = model.told[1]
    assert messages[-1] == {"role": "tool", "tool_call_id": "call_1", "content": "408"}
    assert messages[-2]["tool_calls"][0]["function"]["name"] == "calculator"
    assert options["tools"][0]["name"] == "calculator"
    assert "calculator answers: 408\n" in capsys.readouterr().out
    assert [message["role"] for message in session.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_model_that_only_calls_tools_is_stopped_and_forgotten():
    answers = [answer_of(calls=[("c", "calculator", "{}")]) for _ in range(20)]
    session = ChatSession(ScriptedModel(*answers), SamplingParams(), "low", None, calculator=True)
    with pytest.raises(cli.GptossError, match="called tools 8 times"):
        session.ask("?", lambda delta: None)
    assert session.messages == []
