"""Nothing this package does by itself opens a socket. Oracle: a socket module that refuses."""

import socket
import subprocess
import sys

import pytest
from gptoss_native import LLM, SamplingParams


class NetworkUsedError(AssertionError):
    pass


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise NetworkUsedError(f"a socket was asked for: {arguments}")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def test_the_fixture_catches_a_connection(no_network):
    with pytest.raises(NetworkUsedError):
        socket.create_connection(("127.0.0.1", 9))


def test_chat_and_generate_need_no_network(no_network):
    with LLM("demo", max_model_len=1024) as llm:
        settings = SamplingParams(temperature=0, max_tokens=4)
        assert len(llm.chat([{"role": "user", "content": "hello"}], settings)[0].outputs[0].token_ids) == 4
        assert len(llm.generate("hello", settings)[0].outputs[0].token_ids) == 4


def test_import_loads_neither_tiktoken_nor_the_native_module():
    code = "import sys, gptoss_native; assert not {'tiktoken', 'gptoss_native._native'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
