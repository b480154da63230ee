"""Anthropic's Python client, unchanged, against the server."""

from __future__ import annotations

import pytest

anthropic = pytest.importorskip("anthropic")

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
CALL = [{"role": "user", "content": "What is 12 * 34?"}]
TOOLS = [
    {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression.",
        "input_schema": {
            "type": "object",
            "required": ["expression"],
            "properties": {"expression": {"type": "string", "description": "For example 12*34"}},
        },
    }
]
GREEDY = {"temperature": 0}  # the client itself has no argument for it
THINK = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture
def client(address):
    return anthropic.Anthropic(base_url=address, api_key="secret", max_retries=0)


def test_messages(client):
    message = client.messages.create(model="demo", max_tokens=400, messages=QUESTION, extra_body=GREEDY)
    assert [block.text for block in message.content] == ["42"]
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 0


def test_thinking_and_the_streaming_helper(client):
    with client.messages.stream(
        model="demo", max_tokens=2000, messages=QUESTION, extra_body=GREEDY, thinking=THINK
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "42"
    assert [block.type for block in message.content] == ["thinking", "text"]


def test_tools_go_round(client):
    settings = {"model": "demo", "max_tokens": 2000, "extra_body": GREEDY, "tools": TOOLS, "thinking": THINK}
    with client.messages.stream(messages=CALL, **settings) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    [call] = [block for block in first.content if block.type == "tool_use"]
    assert call.input["expression"].replace(" ", "") == "12*34"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "408"}
    talk = [*CALL, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(messages=talk, **settings)
    assert "408" in second.content[-1].text


def test_a_call_can_be_required(client):
    message = client.messages.create(
        model="demo",
        max_tokens=400,
        messages=QUESTION,
        tools=TOOLS,
        tool_choice={"type": "tool", "name": "calculator", "disable_parallel_tool_use": True},
    )
    assert [block.name for block in message.content if block.type == "tool_use"] == ["calculator"]


def test_tokens_are_counted(client):
    assert client.messages.count_tokens(model="demo", messages=QUESTION).input_tokens > 10


def test_errors_have_the_vendors_types(client, address):
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(model="demo", max_tokens=5, messages=QUESTION, extra_body={"temperature": -1})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="no-such-model", max_tokens=5, messages=QUESTION)
    stranger = anthropic.Anthropic(base_url=address, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="demo", max_tokens=5, messages=QUESTION)


def test_a_stream_can_be_left(client):
    with client.messages.stream(model="demo", max_tokens=400, messages=QUESTION) as stream:
        next(iter(stream))
    assert client.messages.create(model="demo", max_tokens=5, messages=QUESTION).content is not None
