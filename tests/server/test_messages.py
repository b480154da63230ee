"""The Messages API. Oracle: chat completions on the same model, the vendor's order of events and errors."""

from __future__ import annotations

import json

import pytest
from gptoss_native.demo import calculator

from .test_server import CALL, CHAT, QUESTION

PATH = "/v1/messages"
TOOL = calculator.TOOL
CALCULATOR = {"name": TOOL["name"], "description": TOOL["description"], "input_schema": TOOL["parameters"]}


def create(client, **body):
    given = {"messages": QUESTION, "max_tokens": 400, "temperature": 0} | body
    response = client.post(PATH, json=given)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client, **body):
    found, name = [], None
    given = {"messages": QUESTION, "max_tokens": 400, "temperature": 0, "stream": True} | body
    with client.stream("POST", PATH, json=given) as response:
        assert response.status_code == 200
        for line in filter(None, response.iter_lines()):
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            else:
                found.append(json.loads(line.removeprefix("data: ")))
                assert found[-1]["type"] == name
    return found


def test_it_says_what_chat_says(client):
    said = client.post(CHAT, json={"messages": QUESTION, "temperature": 0}).json()["choices"][0]["message"]
    message = create(client)
    assert message["content"] == [{"type": "text", "text": said["content"]}]
    assert (message["type"], message["role"], message["stop_reason"]) == ("message", "assistant", "end_turn")
    thought, text = create(client, thinking={"type": "enabled", "budget_tokens": 1024})["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", said["reasoning"])
    assert text["text"] == said["content"]


def test_a_stream_has_the_same_blocks(client):
    for body in (
        {},
        {"thinking": {"type": "adaptive"}},
        {"messages": CALL, "tools": [CALCULATOR], "tool_choice": {"type": "any"}},
    ):
        events, whole = stream(client, **body), create(client, **body)
        assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
        assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
        assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"]
        for number, block in enumerate(whole["content"]):
            first, *deltas, last = [event for event in events if event.get("index") == number]
            assert (first["type"], last["type"]) == ("content_block_start", "content_block_stop")
            assert first["content_block"]["type"] == block["type"]
            pieces = [value for event in deltas for name, value in event["delta"].items() if name != "type"]
            said = block.get("text") or block.get("thinking")
            if block["type"] == "tool_use":
                assert json.loads("".join(pieces)) == block["input"]
            else:
                assert "".join(pieces) == said


def test_a_call_and_its_result(client):
    tools = {"tools": [CALCULATOR], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    tools["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    first = create(client, messages=CALL, **tools)
    assert first["stop_reason"] == "tool_use"
    _, call = first["content"]
    assert call["input"]["expression"].replace(" ", "") == "12*34"
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "408"}]}
    talk = [*CALL, {"role": "assistant", "content": first["content"]}, {"role": "user", "content": [result]}]
    assert "408" in create(client, messages=talk, **tools)["content"][-1]["text"]


def test_limits_and_stops(client):
    assert create(client, max_tokens=3)["stop_reason"] == "max_tokens"
    message = create(client, stop_sequences=["2"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "2")
    assert message["content"] == [{"type": "text", "text": "4"}]


def test_tokens_are_counted(client):
    counted = client.post(f"{PATH}/count_tokens", json={"messages": QUESTION}).json()["input_tokens"]
    usage = create(client)["usage"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"messages": []}, "messages must hold"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role must be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].type must be",
        ),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "4"}]}, "must not end"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type must be custom"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.type must be"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"thinking": {"type": "deep"}}, "thinking.type must be"),
        ({"temperature": 1e9}, "temperature must be"),
        ({"no_such_field": 1}, "no_such_field is no field"),
        ({"container": "x"}, "container is not supported"),
    ],
)
def test_errors_have_the_vendors_shape(client, body, words):
    given = {"messages": QUESTION, "max_tokens": 5} | body
    response = client.post(PATH, json=given)
    assert response.status_code == 400
    error = response.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert words in error["error"]["message"]


def test_the_key_may_be_an_x_api_key(start):
    client = start(api_key="secret").client
    assert client.post(f"{PATH}/count_tokens", json={"messages": QUESTION}).status_code == 200
    body = {"json": {"messages": QUESTION}, "headers": {"Authorization": "", "x-api-key": "secret"}}
    assert client.post(f"{PATH}/count_tokens", **body).status_code == 200
    assert client.get("/", headers={"Authorization": ""}).headers["WWW-Authenticate"].startswith("Basic")
    assert client.get("/", headers={"Authorization": ""}, auth=("any", "secret")).status_code == 200
    body["headers"]["x-api-key"] = "wrong"
    refused = client.post(f"{PATH}/count_tokens", **body)
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
