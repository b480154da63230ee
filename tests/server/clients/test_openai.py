"""OpenAI's Python client, unchanged, against the server."""

from __future__ import annotations

import json

import pytest

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
CALL = [{"role": "user", "content": "What is 12 * 34?"}]
FUNCTION = {
    "name": "calculator",
    "description": "Evaluate an arithmetic expression.",
    "parameters": {
        "type": "object",
        "required": ["expression"],
        "properties": {"expression": {"type": "string", "description": "For example 12*34"}},
    },
}
TOOLS = [{"type": "function", "function": FUNCTION}]


class Sign(pydantic.BaseModel):
    """What is asked for as structured output."""

    is_positive: bool


@pytest.fixture
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)


def test_models(client):
    [model] = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id


def test_chat(client):
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == "42"
    assert answer.choices[0].message.reasoning_content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_is_streamed(client):
    stream = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "42"
    assert chunks[-1].usage.completion_tokens > 0


def test_the_streaming_helper_follows(client):
    with client.chat.completions.stream(model="demo", messages=CALL, tools=TOOLS, temperature=0) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["expression"].replace(" ", "") == "12*34"


def test_tools_go_round(client):
    first = client.chat.completions.create(model="demo", messages=CALL, tools=TOOLS, temperature=0)
    message = first.choices[0].message
    [call] = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "408"}
    talk = [*CALL, message.model_dump(exclude_none=True), result]
    second = client.chat.completions.create(model="demo", messages=talk, tools=TOOLS, temperature=0)
    assert "408" in second.choices[0].message.content


def test_a_schema_is_parsed(client):
    answer = client.chat.completions.parse(
        model="demo", messages=QUESTION, response_format=Sign, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Sign)


def test_logprobs_n_and_stop(client):
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, logprobs=True, top_logprobs=2, n=2, seed=1, stop=["2"]
    )
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) >= 2


def test_completions(client):
    answer = client.completions.create(model="demo", prompt="1, 2, 3", max_tokens=4, temperature=0)
    assert answer.usage.completion_tokens <= 4
    chunks = client.completions.create(model="demo", prompt="1, 2", max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks)


def test_responses_with_state(client):
    first = client.responses.create(model="demo", input="What is 12 + 30?", temperature=0)
    assert first.output_text == "42"
    second = client.responses.create(
        model="demo", input="What is 1 + 1?", previous_response_id=first.id, temperature=0
    )
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == "42"
    assert next(item.type for item in client.responses.input_items.list(second.id)) == "message"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_responses_are_streamed(client):
    with client.responses.stream(model="demo", input="What is 12 + 30?", temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert final.output_text == "42"


def test_responses_tools_go_round(client):
    tools = [{"type": "function", "strict": False, **FUNCTION}]
    first = client.responses.create(model="demo", input=CALL[0]["content"], tools=tools, temperature=0)
    [call] = [item for item in first.output if item.type == "function_call"]
    second = client.responses.create(
        model="demo",
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "408"}],
        previous_response_id=first.id,
        tools=tools,
        temperature=0,
    )
    assert "408" in second.output_text


def test_responses_parse(client):
    answer = client.responses.parse(model="demo", input="Is 5 positive?", text_format=Sign, temperature=0)
    assert isinstance(answer.output_parsed, Sign)


def test_a_background_response_is_cancelled(client):
    begun = client.responses.create(
        model="demo", input="x " * 100, background=True, extra_body={"min_tokens": 1500}
    )
    assert client.responses.cancel(begun.id).status in ("cancelled", "completed", "incomplete")


def test_a_stream_can_be_left(client):
    stream = client.chat.completions.create(model="demo", messages=QUESTION, stream=True)
    next(stream)
    stream.close()
    assert client.chat.completions.create(model="demo", messages=QUESTION, temperature=0).choices


def test_errors_have_the_vendors_types_and_codes(client, address):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=QUESTION, temperature=-1)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x" * 9000}])
    assert caught.value.code == "context_length_exceeded"
    stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"


def test_the_asynchronous_client(address):
    import asyncio

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="secret") as client:
            create = client.chat.completions.create
            return await asyncio.gather(
                *(create(model="demo", messages=QUESTION, temperature=0) for _ in range(16))
            )

    assert {answer.choices[0].message.content for answer in asyncio.run(ask())} == {"42"}
