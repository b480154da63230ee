"""The command line, run as a user runs it: output, exit codes and one-sentence errors."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from gptoss_native import LLM, SamplingParams, cli, open_checkpoint
from gptoss_native.engine import Engine

from tests.python.command import COMMAND, GREEDY, run
from tests.python.test_adapters import write_adapter


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
        (["generate", "demo", "x", "--lora", "/nowhere"], 1, "/nowhere: is no folder"),
        (["inspect"], 2, "model"),
        (["inspect", "/nowhere"], 1, "/nowhere"),
        (["chat", "/nowhere", "-m", "hi"], 1, "/nowhere"),
        (["generate", "demo", "x", "--max-model-len", "0"], 2, "--max-model-len must be"),
        (["generate", "demo", "x", "--max-model-len", "9999999"], 2, "lower --max-model-len"),
        (["generate", "demo", "x" * 50, "--max-model-len", "20"], 1, "50 tokens, --max-model-len is 20"),
        (["generate", "demo", "x", "--top-k", "-2"], 2, "--top-k must be"),
        (["generate", "demo", "x", "-n", "0"], 2, " -n must be"),
        (["generate", "demo", "x", ""], 2, "prompt 2 is empty; give it some text"),
        (["generate", "demo", " \n"], 2, "the prompt is empty; give it some text"),
        (["generate", "demo", "a\udcff"], 2, "the prompt is not valid UTF-8 at character 2"),
        (["chat", "demo", "-m", ""], 2, "the message is empty; give it some text"),
        (["chat", "demo", "-m", " "], 2, "the message is empty; give it some text"),
        (["chat", "demo", "-m", "\udcff"], 2, "the message is not valid UTF-8 at character 1"),
        (["chat", "demo", "--system", "\udcff", "-m", "hi"], 2, "--system is not valid UTF-8"),
        (["tokenize", "demo", "\udcff"], 2, "the text is not valid UTF-8"),
        (["chat", "demo", "hi", "there"], 2, "say gptoss-native chat demo -m 'hi there'"),
        (["chat", "What is 1 + 2?"], 2, "say gptoss-native chat demo -m 'What is 1 + 2?'"),
        (["chat", "demo", "-m", "hi", "--threads", "9999"], 2, "--threads must be"),
        (["chat", "demo", "-m", "hi", "--device", "tpu"], 2, "--device is 'tpu', expected auto, cpu or cuda"),
        (["plan", "demo", "--device", "tpu"], 2, "--device is 'tpu', expected auto, cpu or cuda"),
        (["generate", "demo", "a", "--gpu-memory-utilization", "2"], 2, "--gpu-memory-utilization must be"),
        (["plan", "demo", "--sequences", "0"], 2, "--sequences must be"),
        (["plan", "demo", "--lora-rank", "-1"], 2, "--lora-rank must be a whole number from 0 to"),
        (["inspect", "gpt2"], 1, "pass demo or openai/gpt-oss-20b"),
        (["inspect", "gpt-oss-120b"], 1, "write openai/gpt-oss-120b"),
        (["tokenize", "demo", "--decode", "999999"], 1, "999999"),
        (["plan", "demo", "--context", "0"], 2, "--context must be"),
        (["download", "not-a-name"], 1, "not-a-name"),
    ],
)
def test_an_error_is_one_sentence_on_stderr(capsys, args, code, message):
    found, out, err = run(capsys, *args)
    assert (found, out) == (code, "")
    assert err.startswith("gptoss-native: ")
    assert message in err
    assert err.count("\n") == 1
    assert ".h:" not in err


def test_input_that_is_not_utf8():
    done = subprocess.run([*COMMAND, "tokenize", "demo"], input=b"a\xff", capture_output=True)
    assert done.returncode == 2
    assert done.stderr == b"gptoss-native: the text is not valid UTF-8 at character 2; convert it to UTF-8\n"


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
    assert json.loads(out)["weight_bytes"] == 65_248_815_744 + 201_088 * (23 * 104 + 8)


def test_generate_streams_and_reports(capsys, monkeypatch):
    code, out, _ = run(capsys, "generate", "demo", "abc", *GREEDY)
    _, text, _ = run(capsys, "generate", "demo", "abc", *GREEDY, "--json", "--logprobs", "2")
    found = json.loads(text)
    assert (code, out) == (0, found["outputs"][0]["text"] + "\n")
    assert len(found["outputs"][0]["logprobs"]) == len(found["outputs"][0]["token_ids"])
    _, several, _ = run(capsys, "generate", "demo", "abc", "xyz", *GREEDY)
    assert f"--- prompt 1, answer 1 ---\n{out}" in several
    assert "--- prompt 2, answer 1 ---" in several


def test_generate_says_that_greedy_answers_are_the_same(capsys):
    code, out, err = run(capsys, "generate", "demo", "abc", "-n", "2", *GREEDY)
    first, second = (part.split(" ---\n")[1] for part in out.split("--- prompt 1, ")[1:])
    assert (code, first) == (0, second)
    assert "at temperature 0 the 2 answers" in err


def test_an_answer_that_failed_is_reported(capsys, monkeypatch):
    """Oracle: a model whose logits are not finite."""

    def broken(engine, chunks, **extras):
        return np.full(
            (sum(len(chunk.logit_positions) for chunk in chunks), engine.vocab_size), np.nan, np.float32
        )

    monkeypatch.setattr(Engine, "forward", broken)
    for args in (["generate", "demo", "a"], ["generate", "demo", "a", "--json"], ["chat", "demo", "-m", "a"]):
        code, _, err = run(capsys, *args)
        assert code == 1
        assert err.startswith("gptoss-native: the logits after")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (["--max-tokens", "3"], "cut off after 3 tokens; raise --max-tokens"),
        ([], "cut off after 256 tokens; raise --max-tokens"),
        (
            ["--max-model-len", "9"],
            "cut off because all 9 tokens of the context are used; raise --max-model-len",
        ),
    ],
)
def test_generate_says_that_an_answer_was_cut_off(capsys, limits, why):
    """Oracle: the finish reason and the number of tokens that --json prints."""
    command = ["generate", "demo", "1, 2, 3,", "--temperature", "0", *limits]
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, f"gptoss-native: the answer was {why}\n")
    code, text, again = run(capsys, *command, "--json")
    [answer] = json.loads(text)["outputs"]
    assert (code, again, answer["finish_reason"], answer["text"] + "\n") == (0, err, "length", out)
    assert f" {len(answer['token_ids']) + (8 if 'context' in why else 0)} tokens" in why


def test_generate_counts_the_answers_that_were_cut_off(capsys):
    command = [
        "generate",
        "demo",
        "1, 2, 3,",
        "a, b, c,",
        "--temperature",
        "0",
        "--max-tokens",
        "40",
        "--json",
    ]

    def answers(*more):
        _, text, err = run(capsys, *command, *more)
        return [json.loads(line)["outputs"][0] for line in text.splitlines()], err

    (first, second), err = answers()
    assert err == "gptoss-native: 2 of 2 answers were cut off after 40 tokens; raise --max-tokens\n"
    stop = next(letter for letter in first["text"] if letter not in second["text"])
    found, err = answers("--stop", stop)
    assert [answer["finish_reason"] for answer in found] == ["stop", "length"]
    assert err == "gptoss-native: 1 of 2 answers were cut off after 40 tokens; raise --max-tokens\n"
    _, _, err = run(capsys, "generate", "demo", "1, 2, 3,", "--temperature", "0", "--stop", stop)
    assert err == ""


def test_a_reader_that_leaves_early_causes_no_noise():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run([*COMMAND, "inspect", "demo"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode == cli.BROKEN_PIPE


def test_an_adapter_answers(tmp_path, rng, capsys):
    """Of generate and of chat. Oracle: LLM."""
    folder = tmp_path / "lora"
    write_adapter(folder, rng, open_checkpoint("demo").config, size=0.2)
    params = SamplingParams(temperature=0, max_tokens=8, adapter="x")
    with LLM("demo", max_model_len=256) as llm:
        llm.adapters.load("x", folder)
        expected = llm.generate(["7 + 8"], params)[0].outputs[0]
        scored = llm.generate(["7 + 8"], replace(params, logprobs=1))[0].outputs[0].cumulative_logprob
        plain = replace(params, adapter=None, logprobs=1)
        assert abs(llm.generate(["7 + 8"], plain)[0].outputs[0].cumulative_logprob - scored) > 1e-3
    more = ("--temperature", "0", "--max-tokens", "8", "--max-model-len", "256", "--lora", str(folder))
    assert run(capsys, "generate", "demo", "7 + 8", *more)[1] == expected.text + "\n"
    found = json.loads(run(capsys, "generate", "demo", "7 + 8", "--json", "--logprobs", "1", *more)[1])
    assert found["outputs"][0]["cumulative_logprob"] == pytest.approx(scored, abs=1e-5)
    code, text, _ = run(capsys, "chat", "demo", "-m", "7 + 8", "--json", *more)
    assert code in (0, 1)
    assert json.loads(text)
