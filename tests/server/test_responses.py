"""The Responses API. Oracle: chat completions on the same model, the vendor's order of events."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from gptoss_native.server.store import Store, Stored

from .test_server import CALL, CHAT, QUESTION, TOOL, slow_down

PATH = "/v1/responses"
ASK = "What is 12 + 30?"
CALCULATOR = {
    "type": "function",
    "name": "calculator",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
    },
}


def create(client, **body):
    response = client.post(PATH, json={"input": ASK, "temperature": 0} | body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client, **body):
    """The events; each is named by its type."""
    found, name = [], None
    with client.stream(
        "POST", PATH, json={"input": ASK, "temperature": 0, "stream": True} | body
    ) as response:
        assert response.status_code == 200
        for line in filter(None, response.iter_lines()):
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            else:
                found.append(json.loads(line.removeprefix("data: ")))
                assert found[-1]["type"] == name
    return found


def text_of(response):
    return "".join(
        part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]
    )


def without_ids(item):
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


def test_it_says_what_chat_says(client):
    response = create(client)
    message = client.post(CHAT, json={"messages": QUESTION, "temperature": 0}).json()["choices"][0]["message"]
    assert text_of(response) == message["content"] == "42"
    [reasoning] = [item for item in response["output"] if item["type"] == "reasoning"]
    assert reasoning["content"][0]["text"] == message["reasoning"]
    assert (response["status"], response["object"]) == ("completed", "response")
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]


def test_a_stream_has_the_same_items_in_the_vendors_order(client):
    for body in ({}, {"input": CALL[0]["content"], "tools": [CALCULATOR], "tool_choice": "required"}):
        events, whole = stream(client, **body), create(client, **body)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        kinds = [kind for kind, _ in itertools.groupby(event["type"] for event in events)]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        final = events[-1]["response"]
        assert list(map(without_ids, final["output"])) == list(map(without_ids, whole["output"]))
        for number, item in enumerate(final["output"]):
            mine = [event for event in events if event.get("output_index") == number]
            assert mine[0]["type"] == "response.output_item.added"
            assert mine[-1] == {
                "type": "response.output_item.done",
                "sequence_number": mine[-1]["sequence_number"],
                "output_index": number,
                "item": item,
            }
            said = "".join(event["delta"] for event in mine if event["type"].endswith(".delta"))
            assert said == (item.get("arguments") or item["content"][0]["text"])
            ids = {event["item_id"] for event in mine if "item_id" in event}
            assert ids == {item["id"]}


def test_a_call_and_its_result(client):
    first = create(client, input=CALL[0]["content"], tools=[CALCULATOR])
    [call] = [item for item in first["output"] if item["type"] == "function_call"]
    assert json.loads(call["arguments"])["expression"].replace(" ", "") == "12*34"
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "408"}
    kept = create(client, input=[result], previous_response_id=first["id"], tools=[CALCULATOR])
    sent = create(
        client,
        input=[{"role": "user", "content": CALL[0]["content"]}, *first["output"], result],
        tools=[CALCULATOR],
    )
    assert "408" in text_of(kept)
    assert text_of(kept) == text_of(sent)


def test_state_goes_on_and_can_be_looked_at_and_deleted(client):
    first = create(client, metadata={"a": "b"})
    assert client.get(f"{PATH}/{first['id']}").json() == first
    second = create(client, input="And 1 + 1?", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    items = client.get(f"{PATH}/{second['id']}/input_items").json()["data"]
    assert [item["type"] for item in items] == ["message", "reasoning", "message", "message"]
    assert items[-1]["content"] == [{"type": "input_text", "text": "And 1 + 1?"}]
    both = [*QUESTION, {"role": "assistant", "content": "42"}, {"role": "user", "content": "And 1 + 1?"}]
    chat = client.post(CHAT, json={"messages": both, "temperature": 0}).json()
    assert text_of(second) == chat["choices"][0]["message"]["content"]
    assert client.delete(f"{PATH}/{first['id']}").json()["deleted"] is True
    assert client.get(f"{PATH}/{first['id']}").status_code == 404
    gone = client.post(PATH, json={"input": "x", "previous_response_id": first["id"]})
    assert (gone.status_code, gone.json()["error"]["code"]) == (400, "previous_response_not_found")
    unkept = create(client, store=False)
    assert client.get(f"{PATH}/{unkept['id']}").status_code == 404


def test_a_background_response_is_made_and_can_be_cancelled(start, monkeypatch):
    running = start()
    slow_down(running, monkeypatch)
    client = running.client
    begun = create(client, background=True)
    assert begun["status"] == "queued"
    early = client.post(PATH, json={"input": "x", "previous_response_id": begun["id"]})
    assert "not finished" in early.json()["error"]["message"]
    while (now := client.get(f"{PATH}/{begun['id']}").json())["status"] in ("queued", "in_progress"):
        time.sleep(0.02)
    assert (now["status"], text_of(now)) == ("completed", "42")
    wrong = create(client, background=True, tools=[CALCULATOR], tool_choice="must")
    time.sleep(0.1)
    failed = client.get(f"{PATH}/{wrong['id']}").json()
    assert failed["status"] == "failed"
    assert "tool_choice must be" in failed["error"]["message"]
    long = create(client, background=True, input="count " * 200, min_tokens=1500)
    time.sleep(0.1)
    cancelled = client.post(f"{PATH}/{long['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert client.post(f"{PATH}/{long['id']}/cancel").json() == cancelled
    assert client.post(f"{PATH}/{now['id']}/cancel").json()["status"] == "completed"


def test_a_cut_answer_is_incomplete(client):
    response = create(client, max_output_tokens=5)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert stream(client, max_output_tokens=5)[-1]["type"] == "response.incomplete"


def test_a_schema_binds_the_text(client):
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    assert json.loads(text_of(create(client, text={"format": form})))["n"] in (1, 2)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "image"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True, "stream": True}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"messages": QUESTION}, "messages"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "bad"}}}}, "text.format.schema"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "1"}]}, "input[0]"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"tools": [TOOL["function"] | {"type": "function"}], "tool_choice": "must"}, "tool_choice"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, body, param):
    response = client.post(PATH, json={"input": ASK} | body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_what_changes_nothing_is_named(client):
    response = client.post(PATH, json={"input": "1", "max_output_tokens": 1, "user": "me", "include": []})
    assert response.headers["x-ignored-parameters"] == "user, include"


def test_the_store_is_bounded():
    store = Store(max_number=3, max_bytes=2000)
    for number in range(5):
        store.put(Stored({"id": str(number), "status": "completed"}, [{"role": "user"}]))
    assert (len(store), store.get("1"), store.get("4") is None) == (3, None, False)
    store.put(Stored({"id": "big", "text": "x" * 1945}, []))
    assert store.get("4") is None
    assert store.get("big") is not None
    store.put(Stored({"id": "big", "text": ""}, []))  # in its own place
    assert len(store) == 1
    store.put(Stored({"id": "too big", "text": "x" * 3000}, []))
    assert (len(store), store.bytes) == (0, 0)


def test_half_of_a_character_comes_back_as_the_replacement(server):
    """JSON can name half of a UTF-16 pair; whole ones, written as two escapes, stay."""
    body = b'{"input": "1 + 2? \\ud800", "metadata": {"a": "\\udfff \\ud83d\\ude00"}, "max_output_tokens": 5}'
    found = server.client.post("/v1/responses", content=body)
    assert found.status_code == 200, found.text
    assert found.json()["metadata"] == {"a": "\ufffd \U0001f600"}
