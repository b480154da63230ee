"""Bodies of the vendors' APIs with parts replaced, removed or moved: an answer or a 4xx, never a failure."""

from __future__ import annotations

import copy
import json
import random

import pytest

from .test_server import QUESTION, TOOL, assert_nothing_is_left

FUNCTION = {"type": "function", **TOOL["function"]}
GARBAGE = [None, True, False, -1, 0, 1, 0.5, 1e300, "", "x", "auto", [], {}, [[]], [None], [{}], {"type": 5}]
GARBAGE += [
    "\ud800",
    10**30,
    {"type": "function"},
    {"type": "tool"},
    {"role": "user"},
    [{"type": "text"}],
    "a" * 300,
]
GOOD = {
    "/v1/chat/completions": {
        "messages": [*QUESTION, {"role": "assistant", "content": "42", "reasoning": "sum"}, *QUESTION],
        "max_tokens": 2,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object"}},
        },
        "structured_outputs": None,
        "stop": ["x"],
        "n": 1,
        "stream_options": None,
    },
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ],
        "tools": [FUNCTION],
        "tool_choice": {"type": "function", "name": "weather"},
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": {"a": "b"},
        "max_output_tokens": 2,
    },
    "/v1/messages": {
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}]},
        ],
        "tools": [{"name": "weather", "input_schema": TOOL["function"]["parameters"]}],
        "tool_choice": {"type": "any"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low"},
        "stop_sequences": ["x"],
        "max_tokens": 2,
    },
}


def places(value, path=()):
    """Every (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner, (*path, key))


def mutated(source, good):
    body = copy.deepcopy(good)
    for _ in range(source.randint(1, 3)):
        container, key = source.choice(list(places(body)))
        if source.random() < 0.2:
            del container[key]
        elif source.random() < 0.2:
            container[key] = copy.deepcopy(source.choice([value[k] for value, k in places(good)]))
        else:
            container[key] = copy.deepcopy(source.choice(GARBAGE))
        if not body:
            break
    return body


@pytest.mark.parametrize("path", GOOD)
def test_no_body_makes_the_server_fail(server, client, request, path):
    source = random.Random(request.config.test_seed)
    assert client.post(path, json=GOOD[path]).status_code == 200
    codes = []
    for _ in range(400):
        body = mutated(source, GOOD[path])
        response = client.post(path, content=json.dumps(body).encode())
        assert response.status_code < 500, (body, response.text)
        codes.append(response.status_code)
        if response.status_code >= 400:
            assert response.json()["error"]["message"]
    assert 100 < codes.count(400) < 400
    assert_nothing_is_left(server)
