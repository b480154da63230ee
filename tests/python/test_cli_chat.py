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
from gptoss_native.cli.chat_view import TOOL_ANSWER, ChatView
from gptoss_native.engine import Engine
from gptoss_native.outputs import ChatCompletionOutput, StreamDelta, ToolCall
from gptoss_native.sampling import SamplingParams

from tests.python.command import COMMAND, GREEDY, run

LONGER = [*GREEDY, "--max-tokens", "300"]


def test_one_message_prints_the_answer_and_on_request_the_thinking(capsys):
    args = ["chat", "demo", "-m", "What is 12 + 30?", "--temperature", "0", "--max-model-len", "1024"]
    found = json.loads(run(capsys, *args, "--json")[1])["answer"]
    assert run(capsys, *args)[1] == found["content"] + "\n"
    shown = run(capsys, *args, "--show-analysis")[1]
    assert shown == f"Thinking: {found['reasoning']}\nAnswer: {found['content']}\n"


@pytest.mark.parametrize(
    ("limits", "fix"),
    [
        (["--max-tokens", "20"], "after 20 tokens; raise --max-tokens"),
        (["--max-model-len", "280"], "all 280 tokens of the context are used; raise --max-model-len"),
    ],
)
def test_an_answer_that_is_cut_off_says_where_and_by_what(capsys, limits, fix):
    question = ["chat", "demo", "-m", "What is 4732 + 918?", "--temperature", "0"]
    code, out, err = run(capsys, *question, *limits)
    assert (code, out) == (0, "")
    assert "cut off in the analysis channel" in err
    assert fix in err
    done = subprocess.run(
        [*COMMAND, "chat", "demo", *question[4:], *limits], input=question[3], capture_output=True, text=True
    )
    assert "cut off in the analysis channel" in done.stderr
    _, text, told = run(capsys, *question, *limits, "--json")
    assert json.loads(text)["answer"]["finish_reason"] == "length"
    assert told == err


def test_a_conversation_through_a_pipe(tmp_path):
    saved = tmp_path / "talk.json"
    lines = ["/HELP", "/system Be kind.", "hi", "", "/effort Low", "/Analysis on", "What is 1 + 2?"]
    lines += [
        f"/save {saved}",
        "/clear",
        f"/save {tmp_path}/empty.json",
        "/exit",
        "not read",
    ]
    done = subprocess.run(
        [*COMMAND, "chat", *LONGER], input="\n".join(lines), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert "/clear" in done.stdout
    assert f"4 messages written to {saved}" in done.stdout
    talk = json.loads(saved.read_text())
    assert [message["role"] for message in talk] == ["system", "user", "assistant", "user", "assistant"]
    assert talk[0]["content"] == "Be kind."
    assert json.loads((tmp_path / "empty.json").read_text()) == [{"role": "system", "content": "Be kind."}]
    assert "> " not in done.stdout


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/dance", "/dance is not a command; /help lists them"),
        ("/save", "/save needs the file to write, found nothing; say /save talk.json"),
        (
            "/save /nowhere/x",
            "/save cannot write /nowhere/x (No such file or directory); name a file in",
        ),
        ("/effort", "/effort takes low, medium or high, found nothing; say /effort high"),
        ("/EFFORT huge", "/effort takes low, medium or high, found 'huge'; say /effort high"),
        ("/analysis maybe", "/analysis takes on or off, found 'maybe'; say /analysis off"),
        (b"a\xff", "the message is not valid UTF-8 at character 2"),
        ("x" * 900, "tokens, --max-model-len is 1024 and leaves no room for an answer"),
    ],
)
def test_an_error_in_a_script_ends_the_turn_and_fails_the_whole(line, sentence):
    script = (line if isinstance(line, bytes) else line.encode()) + b"\nWhat is 1 + 2?\n"
    done = subprocess.run([*COMMAND, "chat", *LONGER], input=script, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert sentence in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert done.stdout  # the next question is answered


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


def test_parts_are_labelled_except_for_an_answer_that_stands_alone(capsys):
    view = ChatView(sys.stdout, show_analysis=False)
    for delta in (StreamDelta("Hm.", "analysis"), StreamDelta("4", "final"), StreamDelta("2", "final")):
        view.show(delta)
    view.end()
    assert capsys.readouterr().out == "42\n"
    view.show_analysis = True
    for delta in (
        StreamDelta("Hm.", "analysis"),
        StreamDelta("Looking.", "commentary"),
        StreamDelta("{}", "commentary", "functions.f"),
        StreamDelta("3", TOOL_ANSWER, "f"),
        StreamDelta("42", "final"),
    ):
        view.show(delta)
    view.end()
    labels = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert labels == ["Thinking", "Note", "Call to functions.f", "f answers", "Answer"]


def answer_of(content="", calls=()):
    return ChatCompletionOutput(
        0, content, [], 0.0, None, "stop", content=content, tool_calls=[ToolCall(*call) for call in calls]
    )


def test_calculator_round_trip(capsys):
    call = ("call_1", "calculator", '{"expression": "12*34"}')
    model = ScriptedModel(answer_of(calls=[call]), answer_of("It is 408."))
    session = ChatSession(model, SamplingParams(), "low", None, calculator=True)
    view = ChatView(sys.stdout, show_analysis=False)
    assert session.ask("12 * 34?", view.show).content == "It is 408."
    view.end()
    messages, options = model.told[1]
    assert messages[-1] == {"role": "tool", "tool_call_id": "call_1", "content": "408"}
    assert messages[-2]["tool_calls"][0]["function"]["name"] == "calculator"
    assert options["tools"][0]["name"] == "calculator"
    assert capsys.readouterr().out == "calculator answers: 408\n"  # the scripted model streams no text
    assert [message["role"] for message in session.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_tool_that_there_is_not_answers_so():
    call = ("call_1", "python", "12*34")
    model = ScriptedModel(answer_of(calls=[call]), answer_of("408."))
    session = ChatSession(model, SamplingParams(), "low", None, calculator=True)
    session.ask("12 * 34?", lambda delta: None)
    assert model.told[1][0][-1]["content"] == "error: there is no tool python, only calculator"


def test_a_model_that_only_calls_tools_is_stopped_and_forgotten():
    answers = [answer_of(calls=[("c", "calculator", "{}")]) for _ in range(20)]
    session = ChatSession(ScriptedModel(*answers), SamplingParams(), "low", None, calculator=True)
    with pytest.raises(cli.GptossError, match="called tools 8 times"):
        session.ask("?", lambda delta: None)
    assert session.messages == []
