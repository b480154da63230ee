"""The command line, run as a user runs it: output, exit codes and one-sentence errors."""

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
from gptoss_native.demo.calculator import calculate
from gptoss_native.outputs import ChatCompletionOutput, StreamDelta, ToolCall
from gptoss_native.sampling import SamplingParams

GREEDY = ["--temperature", "0", "--max-tokens", "60", "--max-model-len", "1024"]
COMMAND = [sys.executable, "-m", "gptoss_native"]


def run(capsys, *args):
    """(exit code, stdout, stderr)"""
    code = cli.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_help_of_every_command(capsys, command):
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: gptoss-native")
    assert all(name in out for name in (cli.COMMANDS if not command else ["--help"]))


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["dance"], 2, "dance"),
        (["chat", "demo", "--hop"], 2, "--hop"),
        (["chat", "demo", "--reasoning-effort", "huge"], 2, "huge"),
        (["chat", "demo", "--json"], 2, "--json needs --message"),
        (["generate", "demo", "x", "--temperature", "-1"], 2, "temperature"),
        (["generate", "demo", "x", "--logprobs", "3"], 2, "--json"),
        (["generate", "demo", "x", "--max-tokens", "many"], 2, "many"),
        (["tokenize", "demo", "--decode", "12 x"], 2, "'x'"),
        (["inspect"], 2, "model"),
        (["inspect", "/nowhere"], 1, "/nowhere"),
        (["chat", "/nowhere", "-m", "hi"], 1, "/nowhere"),
        (["generate", "demo", "x", "--max-model-len", "0"], 1, "max_model_len"),
        (["generate", "demo", "x" * 50, "--max-model-len", "20"], 1, "50 tokens, max_model_len is 20"),
        (["tokenize", "demo", "--decode", "999999"], 1, "999999"),
        (["plan", "demo", "--context", "0"], 1, "context"),
        (["download", "not-a-name"], 1, "not-a-name"),
    ],
)
def test_an_error_is_one_sentence_on_stderr(capsys, args, code, message):
    found, out, err = run(capsys, *args)
    assert (found, out) == (code, "")
    assert err.startswith("gptoss-native: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_mistake_of_ours_is_no_traceback_either(capsys, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("gptoss_native.cli.tokenize.locate", broken)
    code, _, err = run(capsys, "tokenize", "demo", "x")
    assert code == 1
    assert "a mistake in gptoss-native (ZeroDivisionError: by zero)" in err
    monkeypatch.setenv("GPTOSS_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["tokenize", "demo", "x"])


def test_tokenize_both_ways(capsys):
    code, out, _ = run(capsys, "tokenize", "demo", "Hé", "--json")
    found = json.loads(out)
    assert (code, found["text"]) == (0, "Hé")
    ids = " ".join(map(str, found["ids"]))
    assert run(capsys, "tokenize", "demo", "--decode", ids)[1] == "Hé\n"
    assert run(capsys, "tokenize", "demo", "Hé", "--count")[1] == f"{len(found['ids'])}\n"
    assert len(run(capsys, "tokenize", "demo", "Hé")[1].splitlines()) == len(found["ids"])


def test_inspect_plan_and_version_print_tables_and_json(capsys):
    for args, key in (
        (["inspect", "demo"], "tensors"),
        (["plan", "demo"], "total_bytes"),
        (["version"], "version"),
    ):
        code, out, err = run(capsys, *args)
        assert (code, err) == (0, "")
        assert len(out.splitlines()) > 1
        assert key in json.loads(run(capsys, *args, "--json")[1])


def test_plan_of_a_model_that_is_not_here(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    _, out, _ = run(capsys, "plan", "openai/gpt-oss-120b", "--json", "--context", "100000")
    assert json.loads(out)["weight_bytes"] == 65_248_815_744


def test_generate_streams_and_reports(capsys, monkeypatch):
    code, out, _ = run(capsys, "generate", "demo", "abc", *GREEDY)
    _, text, _ = run(capsys, "generate", "demo", "abc", *GREEDY, "--json", "--logprobs", "2")
    found = json.loads(text)
    assert (code, out) == (0, found["outputs"][0]["text"] + "\n")
    assert len(found["outputs"][0]["logprobs"]) == len(found["outputs"][0]["token_ids"])
    _, several, _ = run(capsys, "generate", "demo", "abc", "xyz", *GREEDY)
    assert f"--- prompt 1, answer 1 ---\n{out}" in several
    assert "--- prompt 2, answer 1 ---" in several


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
    assert "reasoning effort: high" in out
    assert "Traceback" not in err


def test_a_reader_that_leaves_early_causes_no_noise():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run([*COMMAND, "inspect", "demo"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode == cli.BROKEN_PIPE


class ScriptedModel:
    """Answers each turn with the next of `answers`, recording what it was told."""

    def __init__(self, *answers):
        self.answers, self.told = list(answers), []

    def stream(self, messages, params, **options):
        self.told.append((list(messages), options))
        yield StreamDelta(output=self.answers.pop(0))


class EndlessModel:
    """Talks until it is closed; Ctrl+C arrives during the third piece."""

    closed = False

    def stream(self, messages, params, **options):
        try:
            for piece in range(1000):
                if piece == 2:
                    os.kill(os.getpid(), signal.SIGINT)
                yield StreamDelta(f"{piece} ", "final")
        finally:
            self.closed = True


def test_ctrl_c_keeps_what_was_said():
    model, shown = EndlessModel(), []
    session = ChatSession(model, SamplingParams(), "low", None, calculator=False)
    before = signal.getsignal(signal.SIGINT)
    answer = session.ask("talk", lambda delta: shown.append(delta.text))
    assert (answer.content, answer.finish_reason) == ("0 1 2 ", "abort")
    assert shown[-1] == " [stopped]"
    assert model.closed
    assert session.messages[-1] == {"role": "assistant", "content": "0 1 2 "}
    assert signal.getsignal(signal.SIGINT) is before


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


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("12*34", "408"),
        ("0.1 + 0.2", "0.3"),
        ("7/2", "3.5"),
        ("7//2 - 7%4", "0"),
        ("-(2**10)", "-1024"),
        ("1/3", "0.333333333333"),
        ("99999*99999", "9999800001"),
        ("1/0", "error: division by zero"),
        ("2**1000", "error: an exponent must be a whole number up to 64"),
        ("9**64**64", "error: an exponent must be a whole number up to 64"),
        ("(9**64)**64", "error: the number is too large"),
        ("__import__('os')", "error: only numbers, parentheses and + - * / // % ** can be used"),
        ("'a'*3", "error: only numbers, parentheses and + - * / // % ** can be used"),
        ("True + 1", "error: only numbers, parentheses and + - * / // % ** can be used"),
        ("1" * 201, "error: the expression has 201 characters, at most 200 are read"),
    ],
)
def test_calculator(expression, expected):
    assert calculate(json.dumps({"expression": expression})) == expected


@pytest.mark.parametrize("arguments", ["", "12*34", "[1]", "{}", '{"expression": 5}'])
def test_calculator_says_what_arguments_it_wants(arguments):
    assert calculate(arguments).startswith("error: the arguments must be JSON")


def test_calculator_answers_any_text():
    for expression in (
        "(" * 150,
        "1 +",
        "",
        "1e400",
        "1e-4000",
        "1j",
        "0x10",
        "1_000",
        "\x00",
        "9**9999999999",
    ):
        assert calculate(json.dumps({"expression": expression})) != ""
