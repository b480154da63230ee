"""Flags, environment and file of `serve`. Oracle: the order that the help text promises."""

from __future__ import annotations

import argparse

import pytest
from gptoss_native.errors import RequestError
from gptoss_native.server.settings import Settings, add_flags, notes, read_settings


def parse(*flags):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(flags)


def test_flags_win_over_environment_and_environment_over_the_file(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("port: 1\nmax-num-seqs: 2\nmax_model_len: 3\nhost: '0.0.0.0'\n")
    environment = {"GPTOSS_PORT": "10", "GPTOSS_MAX_NUM_SEQS": "20"}
    found = read_settings(parse("--config", str(path), "--port", "100"), environment)
    assert (found.port, found.max_num_seqs, found.max_model_len, found.host) == (100, 20, 3, "0.0.0.0")
    assert found.max_waiting == Settings.max_waiting


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--port", "many"], {}, "--port must be a whole number"),
        ([], {"GPTOSS_SEED": "x"}, "GPTOSS_SEED must be a whole number"),
        (["--enable-prefix-caching", "maybe"], {}, "must be true or false"),
        (["--kv-cache-dtype", "fp8"], {}, "kv-cache-dtype must be auto or bfloat16"),
        (["--tensor-parallel-size", "2"], {}, "one server uses one device"),
    ],
)
def test_what_is_wrong_is_named_with_its_source(flags, environment, message):
    with pytest.raises(RequestError, match=message):
        read_settings(parse(*flags), environment)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not YAML"), ("- 1", "must hold settings"), ("por: 1", "por")]
)
def test_a_bad_file_is_refused(tmp_path, text, message):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        read_settings(parse("--config", str(path)), {})


def test_flags_of_vllm_are_taken_and_named():
    args = parse("--tool-call-parser", "openai", "--enable-auto-tool-choice", "--no-enable-prefix-caching")
    assert [note.split()[0] for note in notes(args)] == ["--tool-call-parser", "--enable-auto-tool-choice"]
    assert read_settings(args, {}).enable_prefix_caching is False


def test_several_adapters_are_named_in_each_way(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("lora-modules: [a=/x, b=/y]\n")
    for found in (
        read_settings(parse("--lora-modules", "a=/x", "b=/y"), {}),
        read_settings(parse(), {"GPTOSS_LORA_MODULES": "a=/x b=/y"}),
        read_settings(parse("--config", str(path)), {}),
    ):
        assert found.lora_modules == ("a=/x", "b=/y")
    assert read_settings(parse(), {}).lora_modules is None


def test_drafts_are_asked_for_as_json_or_as_yaml(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("speculative-config: {method: ngram, num_speculative_tokens: 5}\n")
    wanted = {"method": "ngram", "num_speculative_tokens": 5}
    text = '{"method": "ngram", "num_speculative_tokens": 5}'
    for found in (
        read_settings(parse("--speculative-config", text), {}),
        read_settings(parse(), {"GPTOSS_SPECULATIVE_CONFIG": text}),
        read_settings(parse("--config", str(path)), {}),
    ):
        assert found.model_settings()["speculative_config"] == wanted
    assert read_settings(parse(), {}).model_settings()["speculative_config"] is None
    with pytest.raises(RequestError, match="num_speculative_tokens must be"):
        read_settings(parse("--speculative-config", '{"num_speculative_tokens": 0}'), {}).model_settings()
