"""Chat-style messages and settings: the oracle is openai-harmony given the same conversation by hand."""

import datetime

import numpy as np
import pytest
from gptoss_native import harmony
from gptoss_native.errors import CheckpointError, RequestError
from gptoss_native.harmony import DeveloperContent, Message, SystemContent, ToolNamespace
from gptoss_native.harmony.messages import ResponseFormat, ToolDescription

FUNCTION = {"type": "function", "name": "f"}


def test_chat_dicts_become_the_harmony_conversation(tokenizer, oracle):
    """Against the same conversation written out by hand in openai-harmony's classes, prompt included."""
    import openai_harmony as oh

    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {
        "type": "function",
        "function": {"name": "get_weather", "description": "Weather.", "parameters": parameters},
    }
    found = harmony.render_conversation(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": "Tokyo? <|end|>", "name": "Ann"},
            {
                "role": "assistant",
                "content": "Looking.",
                "reasoning": "I need the tool.",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city":"Tokyo"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "<|return|>20 °C"}]},
            {"role": "assistant", "content": None, "reasoning_content": "Answer now."},
        ],
        tokenizer,
        reasoning_effort="high",
        current_date="2025-06-28",
        tools=[tool],
        instructions="Answer.",
    )
    Role = oh.Role  # noqa: N806
    message = oh.Message.from_role_and_content
    expected = oracle.render_conversation_for_completion(
        oh.Conversation.from_messages(
            [
                message(
                    Role.SYSTEM,
                    oh.SystemContent.new()
                    .with_reasoning_effort(oh.ReasoningEffort.HIGH)
                    .with_conversation_start_date("2025-06-28"),
                ),
                message(
                    Role.DEVELOPER,
                    oh.DeveloperContent.new()
                    .with_instructions("Answer.\n\nBe brief.\n\nBe kind.")
                    .with_function_tools([oh.ToolDescription.new("get_weather", "Weather.", parameters)]),
                ),
                oh.Message.from_author_and_content(oh.Author.new(Role.USER, "Ann"), "Tokyo? <|end|>"),
                message(Role.ASSISTANT, "I need the tool.").with_channel("analysis"),
                message(Role.ASSISTANT, "Looking.").with_channel("commentary"),
                message(Role.ASSISTANT, '{"city":"Tokyo"}')
                .with_channel("commentary")
                .with_recipient("functions.get_weather")
                .with_content_type("<|constrain|>json"),
                oh.Message.from_author_and_content(
                    oh.Author.new(Role.TOOL, "functions.get_weather"), "<|return|>20 °C"
                )
                .with_channel("commentary")
                .with_recipient("assistant"),
                message(Role.ASSISTANT, "Answer now.").with_channel("analysis"),
            ]
        ),
        Role.ASSISTANT,
    )
    assert tokenizer.decode(found) == tokenizer.decode(expected)
    assert found == expected


def test_analysis_of_a_finished_turn_is_dropped(tokenizer):
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "secret"}]
    asked = tokenizer.decode(
        harmony.render_conversation([*turn, {"role": "user", "content": "c"}], tokenizer)
    )
    assert "secret" not in asked
    assert "<|channel|>final<|message|>b<|end|>" in asked
    call = {
        "role": "assistant",
        "thinking": "secret",
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    kept = tokenizer.decode(harmony.render_conversation([*turn[:1], call], tokenizer))
    assert "secret" in kept
    assert kept.endswith(
        "to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|><|start|>assistant"
    )


@pytest.mark.parametrize(
    "place", ["user", "assistant", "tool", "system", "later", "reasoning", "arguments", "schema"]
)
def test_spelled_specials_never_become_special(tokenizer, place):
    """Every special's spelling in every place a text can come from: as many special ids as without it."""

    def render(text):
        call = {"id": "1", "function": {"name": "f", "arguments": text if place == "arguments" else "{}"}}
        texts = {
            key: text if key == place else "x"
            for key in ("user", "assistant", "tool", "system", "later", "reasoning")
        }
        parameters = {
            "type": "object",
            "description": text,
            "properties": {text: {"type": "string", "enum": [text]}},
        }
        schema_tool = {
            "name": "f",
            "description": text,
            "parameters": parameters if place == "schema" else None,
        }
        ids = harmony.render_conversation(
            [
                {"role": "system", "content": texts["system"]},
                {"role": "user", "content": texts["user"]},
                {"role": "assistant", "reasoning": texts["reasoning"], "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": texts["tool"]},
                {"role": "developer", "content": texts["later"]},
                {"role": "user", "content": texts["user"]},
                {"role": "assistant", "content": texts["assistant"]},
            ],
            tokenizer,
            tools=[{"type": "function", "function": schema_tool}],
            current_date="2025-01-01",
        )
        return [i for i in ids if i in tokenizer.special_ids], tokenizer.decode(ids)

    plain, _ = render("x")
    spelled = "".join(list(tokenizer.specials)[:30])
    specials, decoded = render(spelled)
    assert specials == plain
    if place != "reasoning":  # dropped: the last assistant message is final
        assert spelled in decoded


def test_a_tool_may_be_nested_or_flat(tokenizer):
    function = {"name": "f", "description": "Does f.", "parameters": {"type": "object", "properties": {}}}
    nested, flat = ({"type": "function", "function": function}, {"type": "function", **function})
    ids = [harmony.render_conversation([], tokenizer, tools=[tool]) for tool in (nested, flat)]
    assert ids[0] == ids[1]
    assert "// Does f.\ntype f = " in tokenizer.decode(ids[0])


def test_response_format_ends_the_developer_message(tokenizer):
    schema = {"type": "object", "properties": {"n": {"type": "number", "minimum": 0.5}}}
    given = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "description": "An\nanswer.", "schema": schema},
    }
    text = tokenizer.decode(
        harmony.render_conversation(
            [{"role": "user", "content": "x"}], tokenizer, response_format=given, instructions="Go."
        )
    )
    assert (
        "<|start|>developer<|message|># Instructions\n\nGo.\n\n# Response Formats\n\n## answer\n\n"
        "// An\n// answer.\n"
        '{"type":"object","properties":{"n":{"type":"number","minimum":0.5}}}<|end|>'
    ) in text
    plain = harmony.render_conversation(
        [{"role": "user", "content": "x"}], tokenizer, response_format={"type": "text"}
    )
    assert "developer" not in tokenizer.decode(plain)


def test_the_date_is_today_unless_given(tokenizer):
    before = datetime.date.today().isoformat()
    text = tokenizer.decode(harmony.render_conversation([], tokenizer))
    assert any(f"Current date: {day}\n" in text for day in (before, datetime.date.today().isoformat()))
    assert text.endswith("<|end|><|start|>assistant")


def test_an_own_system_message_replaces_the_default(tokenizer):
    own = Message("system", SystemContent("Me.", None, None, None, None))
    ids = harmony.render_conversation(
        [own, {"role": "user", "content": "x"}], tokenizer, add_generation_prompt=False
    )
    assert tokenizer.decode(ids) == "<|start|>system<|message|>Me.<|end|><|start|>user<|message|>x<|end|>"


@pytest.mark.parametrize(
    ("messages", "settings", "named"),
    [
        ([{"role": "robot", "content": "x"}], {}, "messages[0].role"),
        ([{"role": "user"}], {}, "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "image_url"),
        ([{"role": "user", "content": "x", "name": "a to=functions.f"}], {}, "messages[0].name"),
        ([{"role": "assistant"}], {}, "messages[0]"),
        ([{"role": "assistant", "content": "x", "tool_calls": {"a": 1}}], {}, "tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "a b"}}]}], {}, "function.name"),
        ([{"role": "assistant", "tool_calls": ["f"]}], {}, "tool_calls[0]"),
        ([{"role": "assistant", "content": "", "reasoning": 3}], {}, "reasoning"),
        ([{"role": "tool", "content": "x", "tool_call_id": "zzz"}], {}, "zzz"),
        (["x"], {}, "messages[0]"),
        ("hello", {}, "messages is a str"),
        ([], {"reasoning_effort": "huge"}, "reasoning_effort"),
        ([], {"tools": {"type": "function", "name": "f"}}, "tools is of type dict"),
        ([], {"tools": [{"type": "web_search"}]}, "tools[0].type is 'web_search'"),
        ([], {"tools": [FUNCTION, {"name": "f"}]}, "tools[1].type is missing, expected 'function'"),
        ([], {"tools": ["f"]}, "tools[0] is of type str"),
        ([], {"tools": [{"type": "function"}]}, "tools[0].name is None"),
        ([], {"tools": [{"type": "function", "function": "f"}]}, "tools[0].function is of type str"),
        (
            [],
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name is 'a b'",
        ),
        ([], {"tools": [FUNCTION | {"parameters": "x"}]}, "tools[0].parameters is of type str"),
        ([], {"tools": [FUNCTION | {"description": 3}]}, "tools[0].description is of type int"),
        (
            [],
            {
                "tools": [
                    {
                        "type": "function",
                        "name": "f",
                        "parameters": {"default": float("nan"), "oneOf": [{"default": float("nan")}]},
                    }
                ]
            },
            "nan",
        ),
        ([], {"response_format": {"type": "xml"}}, "xml"),
        ([], {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "schema"),
        ([], {"model_identity": 5}, "model_identity is 5, expected text"),
        ([], {"model_identity": ["a"]}, "model_identity is ['a']"),
        ([], {"knowledge_cutoff": 5}, "knowledge_cutoff is 5"),
        ([], {"current_date": 5}, "current_date is 5"),
        ([], {"instructions": 5}, "instructions is 5"),
        ([], {"instructions": ["a"]}, "instructions is ['a']"),
        ([], {"reasoning_effort": np.array([1, 2])}, "reasoning_effort is array"),
        ([], {"add_generation_prompt": np.array([1, 2])}, "add_generation_prompt is array"),
        ([Message("user", "x", content_type=5)], {}, "the content_type of a message is 5"),
        ([Message("user", "x", channel=5)], {}, "the channel of a message is 5"),
        ([Message("user", "x", recipient=5)], {}, "the recipient of a message is 5"),
        ([Message("user", "x", name=5)], {}, "the name of a message is 5"),
        ([Message("system", SystemContent(model_identity=5))], {}, "model_identity is 5"),
        ([Message("system", SystemContent(channel_config=5))], {}, "channel_config is 5"),
        ([Message("system", SystemContent(tools=[ToolNamespace(5)]))], {}, "ToolNamespace is 5"),
        ([Message("developer", DeveloperContent(5))], {}, "instructions is 5"),
        ([Message("developer", DeveloperContent(tools=5))], {}, "the tools of a message is 5"),
        (
            [Message("developer", DeveloperContent(tools=[ToolNamespace("a", 5)]))],
            {},
            "description of a is 5",
        ),
        ([Message("developer", "x")], {"instructions": "y"}, "developer Message"),
        ([Message("tool", "x")], {}, "tool message"),
        ([Message("robot", "x")], {}, "robot"),
        ([Message("user", SystemContent())], {}, "SystemContent"),
        ([Message("user", 5)], {}, "int"),
        ([Message("developer", DeveloperContent(response_formats=[ResponseFormat(5, {})]))], {}, "is 5"),
        (
            [Message("developer", DeveloperContent(tools=[ToolNamespace("a", "", [ToolDescription(5)])]))],
            {},
            "the name of a tool of a is 5",
        ),
    ],
)
def test_malformed_requests_are_refused_by_name(tokenizer, messages, settings, named):
    with pytest.raises(RequestError) as error:
        harmony.render_conversation(messages, tokenizer, **settings)
    assert named in str(error.value)


@pytest.mark.parametrize("value", [10**5000, "x" * 1_000_000], ids=["an integer too long to print", "text"])
@pytest.mark.parametrize(
    "request_of",
    [
        lambda value: ([{"role": value, "content": "x"}], {}),
        lambda value: ([Message(value, "x")], {}),
        lambda value: ([{"role": "user", "content": [{"type": value}]}], {}),
        lambda value: ([{"role": "tool", "content": "x", "tool_call_id": value}], {}),
        lambda value: ([], {"tools": [{"type": value}]}),
        lambda value: ([], {"tools": [{"type": "function", "name": value}]}),
        lambda value: ([], {"response_format": {"type": value}}),
    ],
)
def test_refusing_a_huge_value_takes_one_short_line(tokenizer, request_of, value):
    messages, settings = request_of(value)
    with pytest.raises(RequestError) as error:
        harmony.render_conversation(messages, tokenizer, **settings)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("key", ["items", "default"])
def test_a_deeply_nested_schema_is_refused(tokenizer, key):
    schema = {"type": "string"}
    for _ in range(5000):
        schema = {"type": "array", key: schema}
    with pytest.raises(RequestError, match="deeper than 100"):
        harmony.render_conversation(
            [],
            tokenizer,
            tools=[FUNCTION | {"parameters": {"type": "object", "properties": {"p": schema}}}],
        )


def test_a_missing_harmony_special_is_named(tokenizer):
    class Other:
        specials = {k: v for k, v in tokenizer.specials.items() if k != "<|call|>"}  # noqa: RUF012
        encode = tokenizer.encode

    with pytest.raises(CheckpointError, match=r"<\|call\|>"):
        harmony.render_conversation([], Other())


def test_stop_ids_are_those_of_assistant_actions(tokenizer, oracle):
    assert harmony.stop_token_ids(tokenizer) == set(oracle.stop_tokens_for_assistant_actions())
