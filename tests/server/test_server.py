"""The server of the demo model over real sockets. Oracle: LLM on the same checkpoint, OpenAI's reference."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gptoss_native import LLM, SamplingParams
from gptoss_native.demo import calculator

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
TOOLS = [{"type": "function", "function": calculator.TOOL}]
CALL = [{"role": "user", "content": "What is 12 * 34?"}]


@pytest.fixture(scope="module")
def llm():
    with LLM("demo", max_model_len=2048) as llm:
        yield llm


def chat(client, **body):
    response = client.post(CHAT, json={"messages": QUESTION, "temperature": 0} | body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client, path=CHAT, **body):
    """The events of a stream, the last [DONE] left out."""
    given = {"stream": True, "temperature": 0} | ({"messages": QUESTION} if path == CHAT else {}) | body
    with client.stream("POST", path, json=given) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def slow_down(running, monkeypatch):
    """Each step takes 5 ms longer, so that there is time to do something while an answer is generated."""
    engine = running.llm._engine
    forward = engine.forward

    def slowly(chunks, **extras):
        time.sleep(0.005)
        return forward(chunks, **extras)

    monkeypatch.setattr(engine, "forward", slowly)


def assert_nothing_is_left(server):
    for _ in range(200):
        stats = server.llm.stats()
        if (
            stats["running"]
            == stats["waiting"]
            == stats["kv_pages_used"]
            == stats["kv_window_pages_used"]
            == 0
        ):
            return
        time.sleep(0.02)
    raise AssertionError(stats)


def test_an_answer_is_that_of_the_library(client, llm):
    found = chat(client)
    expected = llm.chat(QUESTION, SamplingParams(temperature=0))[0].outputs[0]
    message = found["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == (expected.content, expected.reasoning)
    assert message["reasoning_content"] == expected.reasoning
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == len(expected.token_ids)
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + len(expected.token_ids)
    assert "reasoning" not in chat(client, include_reasoning=False)["choices"][0]["message"]


def test_a_stream_adds_up_to_the_answer(client):
    whole = chat(client)["choices"][0]["message"]
    events = stream(client, stream_options={"include_usage": True})
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["content"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == whole["reasoning"]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] > 0
    assert len({event["id"] for event in events}) == 1


def test_a_tool_is_called_and_its_result_used(client):
    tools = TOOLS
    first = chat(client, messages=CALL, tools=tools)["choices"][0]
    assert first["finish_reason"] == "tool_calls"
    [call] = first["message"]["tool_calls"]
    assert call["function"]["name"] == calculator.TOOL["name"]
    result = {
        "role": "tool",
        "tool_call_id": call["id"],
        "content": calculator.calculate(call["function"]["arguments"]),
    }
    second = chat(client, messages=[*CALL, first["message"], result], tools=tools)
    assert "408" in second["choices"][0]["message"]["content"]
    events = [event["choices"][0] for event in stream(client, messages=CALL, tools=tools)]
    pieces = [piece for event in events for piece in event["delta"].get("tool_calls", [])]
    assert len(pieces) > 2  # the arguments come as they are written
    assert {piece["index"] for piece in pieces} == {0}
    assert [piece["function"].get("name") for piece in pieces] == [calculator.TOOL["name"]] + [None] * (
        len(pieces) - 1
    )
    assert all(("id" in piece) == (piece is pieces[0]) for piece in pieces)
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    assert (events[-1]["finish_reason"], arguments) == ("tool_calls", call["function"]["arguments"])


def test_several_answers_repeat_with_their_seed(client):
    body = {"prompt": "zz", "n": 3, "seed": 7, "temperature": 2.0, "max_tokens": 20}
    found = [client.post(TEXT, json=body).json() for _ in range(2)]
    texts = [[choice["text"] for choice in one["choices"]] for one in found]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    assert found[0]["usage"]["completion_tokens"] > 3
    pieces = ["", "", ""]
    for event in stream(client, TEXT, **body):
        pieces[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert pieces == texts[0]


def test_logprobs_stop_and_length(client, llm):
    found = chat(client, logprobs=True, top_logprobs=2, max_tokens=5)
    choice = found["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["content"]) == 5
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
    text = chat(client)["choices"][0]["message"]["content"]
    stopped = chat(client, stop=[text[1]])["choices"][0]
    assert stopped["message"]["content"] == text[: text.index(text[1])]


def test_plain_completions_of_texts_and_ids(client, llm):
    prompts = ["1, 2, 3,", "a, b,"]
    body = {"prompt": prompts, "max_tokens": 9, "temperature": 0}
    found = client.post(TEXT, json=body).json()
    expected = [
        out.outputs[0].text for out in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=9))
    ]
    assert [choice["text"] for choice in found["choices"]] == expected
    ids = client.post("/tokenize", json={"prompt": prompts[0]}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": ids}).json() == {"prompt": prompts[0]}
    assert client.post(TEXT, json=body | {"prompt": ids}).json()["choices"][0]["text"] == expected[0]
    events = stream(client, TEXT, prompt=prompts[1], max_tokens=9)
    assert "".join(event["choices"][0]["text"] for event in events) == expected[1]


def test_a_second_turn_finds_the_first_in_the_cache(client):
    question = [{"role": "user", "content": "Sort 9, 4, 7, 1. " * 10}]
    first = chat(client, messages=question)
    again = chat(client, messages=question)
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32


def test_models_health_version_and_metrics(client):
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == client.get("/v1/models/demo").json()["id"] == "demo"
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json() == {"status": "ready"}
    assert client.get("/version").json()["version"]
    chat(client, max_tokens=3)
    text = client.get("/metrics").text
    for name in (
        "running",
        "waiting",
        "kv_pages_used",
        "prefix_hit_ratio",
        "time_to_first_token_seconds_count",
    ):
        assert f"\ngptoss_native_{name} " in text or f"gptoss_native_{name} " in text, name
    assert 'answers_total{finish_reason="length"}' in text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 10_000}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"functions": []}, "functions"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stream": 1}, "stream"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, body, param):
    response = client.post(CHAT, json={"messages": QUESTION} | body)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert error["message"].startswith(param)


def test_what_changes_nothing_is_named(client):
    response = client.post(CHAT, json={"messages": QUESTION, "max_tokens": 1, "user": "me", "store": True})
    assert response.headers["x-ignored-parameters"] == "user, store"


def test_other_models_paths_and_methods(client):
    assert (
        client.post(CHAT, json={"messages": QUESTION, "model": "gpt-9"}).json()["error"]["code"]
        == "model_not_found"
    )
    assert "there is no GET /v2" in client.get("/v2").json()["error"]["message"]
    assert client.get(CHAT).status_code == 405


def test_a_prompt_that_is_too_long_says_so(client):
    response = client.post(TEXT, json={"prompt": [5] * 3000})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_two_thousand_malformed_bodies_get_an_answer_of_four_hundred(server, client, request):
    r = random.Random(request.config.test_seed)
    good = json.dumps({"messages": QUESTION, "max_tokens": 1, "tools": TOOLS, "logit_bias": {"5": 1}})
    garbage = [None, True, -1, 1e300, "x", [], {}, [[]], [None], {"type": 5}, "\ud800", 10**30]
    names = [
        "messages",
        "temperature",
        "tools",
        "stop",
        "n",
        "seed",
        "logit_bias",
        "stream",
        "top_p",
        "max_tokens",
    ]

    def body():
        kind = r.randrange(3)
        if kind == 0:  # bytes that are no JSON object
            data = bytearray(good.encode())
            for _ in range(r.randint(1, 4)):
                data[r.randrange(len(data))] = r.randrange(256)
            return bytes(data[: r.randrange(len(data))])
        found = json.loads(good)
        if kind == 1:
            found[r.choice(names)] = r.choice(garbage[2:])
            found["messages"] = r.choice(
                [*garbage, [r.choice(garbage)], [{"role": r.choice(garbage), "content": "x"}]]
            )
        else:
            found[r.choice(names) + r.choice("xyz")] = r.choice(garbage[1:])
        return json.dumps(found).encode()

    bodies = [body() for _ in range(2000)]
    for data in bodies:
        path = r.choice([CHAT, TEXT, "/v1/responses", "/v1/messages", "/tokenize", "/detokenize"])
        response = client.post(path, content=data)
        assert 400 <= response.status_code < 500, (path, data, response.text)
        assert response.json()["error"]["message"]
    assert client.get("/health").status_code == 200
    assert_nothing_is_left(server)


def test_a_client_that_goes_away_frees_what_it_held(server, client, monkeypatch):
    slow_down(server, monkeypatch)
    with client.stream(
        "POST", CHAT, json={"messages": QUESTION, "stream": True, "ignore_eos": True}
    ) as response:
        lines = response.iter_lines()
        next(lines)
        assert server.llm.stats()["running"] == 1
    assert_nothing_is_left(server)
    with pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json={"messages": QUESTION, "ignore_eos": True}, timeout=0.3)
    assert_nothing_is_left(server)


def test_a_crowd_is_answered_as_each_alone(server, client):
    questions = [[{"role": "user", "content": f"What is {n} + {3 * n}?"}] for n in range(1, 17)]
    alone = [chat(client, messages=question)["choices"] for question in questions]
    with ThreadPoolExecutor(16) as pool:
        crowd = list(pool.map(lambda question: chat(client, messages=question)["choices"], questions))
    assert crowd == alone
    assert_nothing_is_left(server)


def test_the_key_is_needed_everywhere(start):
    running = start(api_key="secret-of-the-house")
    bare = httpx.Client(base_url=running.client.base_url)
    for path in ("/health", "/metrics", "/v1/models", "/nowhere"):
        response = bare.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert bare.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert bare.get(path, headers={"x-api-key": "secret-of-the-house"}).status_code != 401
    assert running.client.get("/v1/models").status_code == 200


def test_an_overload_is_told_to_come_back(start, monkeypatch):
    running = start(max_num_seqs=1, max_waiting=0)
    slow_down(running, monkeypatch)
    with running.client.stream(
        "POST", CHAT, json={"messages": QUESTION, "stream": True, "ignore_eos": True}
    ) as held:
        lines = held.iter_lines()
        next(lines)
        response = httpx.post(f"{running.client.base_url}{CHAT}", json={"messages": QUESTION})
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert response.json()["error"]["type"] == "rate_limit_error"
    assert_nothing_is_left(running)


def test_a_body_that_is_too_large_is_refused(start):
    running = start(max_body_bytes=1000)
    response = running.client.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 2000}]})
    assert response.status_code == 413


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_a_schema_binds_the_answer(client):
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    body = {"messages": QUESTION, "temperature": 0, "response_format": form}
    message = client.post(CHAT, json=body).json()["choices"][0]["message"]
    assert json.loads(message["content"])["n"] in (1, 2)
    body = {"prompt": "n:", "structured_outputs": {"json": schema}, "max_tokens": 200}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    if choice["finish_reason"] == "stop":
        assert json.loads(choice["text"])["n"] in (1, 2)


def test_a_call_can_be_required(client):
    body = {"messages": QUESTION, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    choice = client.post(CHAT, json=body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"items": {"type": "x"}}}}},
            "response_format.json_schema.schema.items",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"yaml": "a"}}, "structured_outputs.yaml"),
    ],
)
def test_a_bad_grammar_is_named_by_its_path(client, body, param):
    response = client.post(CHAT, json={"messages": QUESTION} | body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
