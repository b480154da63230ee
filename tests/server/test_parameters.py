"""docs/api.md against the server: every parameter of the vendors' request schemas does what its row says.

The vendors' parameters are those of the openai 3.54 and anthropic 2.12 clients' type definitions.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .test_server import QUESTION, TOOL

DOC = Path(__file__).resolve().parents[2] / "docs" / "api.md"
FUNCTION = {"type": "function", **TOOL["function"]}
CLAUDE_TOOL = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}

VENDOR = {
    "/v1/chat/completions": """
        messages model audio frequency_penalty function_call functions logit_bias logprobs
        max_completion_tokens max_tokens metadata modalities moderation n parallel_tool_calls
        prediction presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention
        reasoning_effort response_format safety_identifier seed service_tier stop store stream
        stream_options temperature tool_choice tools top_logprobs top_p user verbosity
        web_search_options
    """,
    "/v1/completions": """
        model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n
        presence_penalty seed stop stream stream_options suffix temperature top_p user
    """,
    "/v1/responses": """
        access_programs background background_options context_management conversation image
        include input instructions max_output_tokens max_tool_calls metadata model moderation
        parallel_tool_calls previous_response_id prompt prompt_cache_key prompt_cache_options
        prompt_cache_retention reasoning safety_identifier service_tier store stream
        stream_options temperature text tool_choice tools top_logprobs top_p truncation user
    """,
    "/v1/messages": """
        max_tokens messages prefill model cache_control container diagnostics inference_geo
        metadata output_config service_tier speed stop_sequences stream system temperature
        thinking tool_choice tools top_k top_p user_profile_id workspace_id
    """,
}
BASE = {
    "/v1/chat/completions": {"messages": QUESTION, "max_tokens": 1},
    "/v1/completions": {"prompt": "1", "max_tokens": 1},
    "/v1/responses": {"input": "1", "max_output_tokens": 1},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 1},
}
#: A value that asks for something, where 1 is none.
VALUES = {
    "messages": QUESTION,
    "model": "demo",
    "prompt": "1",
    "input": "1",
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "stop": ["x"],
    "stop_sequences": ["x"],
    "include": ["reasoning.encrypted_content"],
    "instructions": "Be brief.",
    "system": "Be brief.",
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "text"}},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "low"},
    "truncation": "disabled",
    "logit_bias": {"5": 1},
    "echo": True,
}
FLAGS = ("logprobs", "parallel_tool_calls", "store", "stream", "background")


def rows():
    path = None
    for line in DOC.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## `POST (\S+)`", line):
            path = heading[1]
        elif path and (row := re.match(r"\| `(\w+)` \| (works|refused|ignored)", line)):
            yield path, row[1], row[2]


def value_of(path, name):
    if name in FLAGS and (path, name) != ("/v1/completions", "logprobs"):
        return True
    if name == "tools":
        return [CLAUDE_TOOL if path == "/v1/messages" else FUNCTION if path == "/v1/responses" else TOOL]
    if name == "tool_choice":
        return {"type": "auto"} if path == "/v1/messages" else "auto"
    if name == "metadata" and path == "/v1/messages":
        return {"user_id": "a"}
    return VALUES.get(name, 1)


def test_every_parameter_of_the_vendors_has_a_row():
    found = {path: set() for path in VENDOR}
    for path, name, _ in rows():
        found[path].add(name)
    for path, names in VENDOR.items():
        assert not set(names.split()) - found[path], path


@pytest.mark.parametrize(("path", "name", "what"), list(rows()))
def test_a_parameter_does_what_its_row_says(client, path, name, what):
    body = BASE[path] | {name: value_of(path, name)}
    if name == "top_logprobs":
        body["logprobs"] = True
    if name == "stream_options":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if path == "/v1/responses":
            body["stream_options"] = {"include_obfuscation": False}
    if name == "previous_response_id":
        body[name] = client.post(path, json=BASE[path]).json()["id"]
    response = client.post(path, json=body)
    ignored = response.headers.get("x-ignored-parameters", "").split(", ")
    if what == "refused":
        assert response.status_code == 400
        error = response.json()["error"]
        assert name in error["message"]
        assert error.get("param", name).startswith(name)
    else:
        assert response.status_code == 200, response.text
        assert (name in ignored) == (what == "ignored")
