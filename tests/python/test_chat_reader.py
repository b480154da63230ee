"""What a caller reads of a harmony answer. Oracles: openai-harmony for the next turn, written-out answers."""

from __future__ import annotations

import json
import random

import pytest
from gptoss_native import LLM, SamplingParams
from gptoss_native.harmony import render_conversation, stop_token_ids
from gptoss_native.readers import ChatReader, call_id
from gptoss_native.request import Request

from . import harmony_cases as cases

DATE = "2025-06-28"
QUESTION = {"role": "user", "content": "What is 47 + 18?"}
THINK = "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant"
NOTE = "<|channel|>commentary<|message|>Looking.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>'
FINAL = "<|channel|>final<|message|>Yes.<|end|><|start|>assistant"


def read(tokenizer, written, params=None, *, request_id="0", index=0, prompt=(1,)):
    """(the answer, the deltas) of a model that writes `written`, special tokens by their spelling."""
    ids = cases.as_special_ids(tokenizer, written) if isinstance(written, str) else written
    params = params or SamplingParams()
    reader = ChatReader(tokenizer, params, call_id(request_id, prompt, index))
    stops = frozenset() if params.ignore_eos else frozenset(stop_token_ids(tokenizer))
    request = Request(list(prompt), params, 0, len(ids), stops, reader)
    for token in ids:
        request.accept(token)
        if request.finished:
            break
    request.end()
    return reader.output(request, index), list(reader.deltas)


def streamed(deltas, channel):
    return "".join(delta.text for delta in deltas if delta.channel == channel and not delta.recipient)


@pytest.mark.parametrize(
    ("header", "role"),
    [
        ("<|start|>user<|message|>", "user"),
        ("<|start|>user:Ann<|message|>", "user"),
        ("<|start|>functions.f to=assistant<|channel|>commentary<|message|>", "tool"),
        ("<|start|>system<|message|>", "system"),
        ("<|start|>user and so on and so on", "user"),
    ],
)
def test_the_answer_ends_where_the_model_writes_for_another(tokenizer, header, role):
    written = "<|channel|>final<|message|>Yes.<|end|>" + header
    rest = "And now?<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>"
    answer, deltas = read(tokenizer, written + rest)
    assert (answer.content, answer.finish_reason, answer.stop_reason) == ("Yes.", "stop", None)
    assert streamed(deltas, "final") == "Yes."
    assert [message.content for message in answer.messages] == ["Yes."]
    assert len(answer.token_ids) <= len(cases.as_special_ids(tokenizer, written))
    assert answer.recoveries[-1] == f"message 1: the model writes as {role}, so its answer ends before"


@pytest.mark.parametrize("settings", [{"min_tokens": 20}, {"ignore_eos": True}])
def test_tokens_drawn_after_the_end_are_no_part_of_the_answer(tokenizer, settings):
    written = FINAL.removesuffix("<|start|>assistant") + "<|start|>user<|message|>And now? And now?<|end|>"
    written += "<|start|>assistant<|channel|>final<|message|>No. No. No. No. No. No. No. No. No. No."
    answer, deltas = read(tokenizer, written, SamplingParams(**settings))
    assert (answer.content, streamed(deltas, "final")) == ("Yes.", "Yes.")
    assert "the model writes as user" in answer.recoveries[-1]
    ids = cases.as_special_ids(tokenizer, written)
    if "min_tokens" in settings:
        assert (answer.token_ids, answer.finish_reason) == (ids[:21], "stop")
    else:
        assert (answer.token_ids, answer.finish_reason) == (ids, "length")


def test_messages_of_a_kind_are_separated_by_a_newline(tokenizer):
    written = THINK + NOTE + THINK + FINAL + "<|channel|>final<|message|>Sure.<|return|>"
    answer, deltas = read(tokenizer, written)
    assert (answer.content, answer.reasoning) == ("Yes.\nSure.", "Think.\nThink.")
    assert streamed(deltas, "final") == answer.content == answer.text
    assert streamed(deltas, "analysis") == answer.reasoning


@pytest.mark.parametrize(
    ("written", "content", "reasoning", "calls"),
    [
        (THINK + NOTE + CALL, "Looking.", "Think.", [("f", '{"a":1}')]),
        (THINK + CALL, "", "Think.", [("f", '{"a":1}')]),
        (THINK + NOTE + FINAL, "Yes.", "Think.", []),
        (THINK + NOTE, "Looking.", "Think.", []),
        (THINK + FINAL + CALL, "Yes.", "Think.", [("f", '{"a":1}')]),
        (
            THINK + "<|channel|>analysis to=python code<|message|>1+1<|call|>",
            "",
            "Think.",
            [("python", "1+1")],
        ),
        (
            "<|channel|>analysis to=browser.open code<|message|>{}<|call|>",
            "",
            "",
            [("browser.open", "{}")],
        ),
        ("<|channel|>commentary to=calculator json<|message|>{}<|call|>", "", "", [("calculator", "{}")]),
        ("<|channel|>final to=user<|message|>Hi.<|return|>", "Hi.", "", []),
        ("<|channel|>commentary to=all<|message|>Hi.<|return|>", "Hi.", "", []),
        ("<|channel|>analysis to=assistant<|message|>Hm.<|end|>", "", "Hm.", []),
        ("<|message|>Hi.<|return|>", "Hi.", "", []),
    ],
)
def test_every_message_is_answer_note_reasoning_or_call(tokenizer, written, content, reasoning, calls):
    answer, deltas = read(tokenizer, written)
    assert (answer.content, answer.reasoning) == (content, reasoning)
    assert [(call.name, call.arguments) for call in answer.tool_calls] == calls
    message = answer.message
    assert (message["content"], message.get("reasoning", "")) == (content, reasoning)
    assert [call["function"]["name"] for call in message.get("tool_calls", [])] == [name for name, _ in calls]
    assert "".join(delta.text for delta in deltas if delta.recipient) == "".join(text for _, text in calls)


@pytest.mark.parametrize(
    "written", [THINK + CALL, THINK + NOTE + CALL, "<|channel|>final<|message|>Hi.<|return|>"]
)
def test_common_answers_need_no_key_of_our_own(tokenizer, written):
    assert read(tokenizer, written)[0].message.keys() <= {"role", "content", "reasoning", "tool_calls"}


def oracle_prompt(oracle, ids, later):
    """openai-harmony's prompt of a conversation in which the model wrote `ids`."""
    import openai_harmony as oh

    system = oh.SystemContent.new().with_conversation_start_date(DATE)
    start = [
        oh.Message.from_role_and_content(oh.Role.SYSTEM, system),
        oh.Message.from_role_and_content(oh.Role.USER, QUESTION["content"]),
    ]
    written = oracle.parse_messages_from_completion_tokens(ids, oh.Role.ASSISTANT)
    conversation = oh.Conversation.from_messages([*start, *written, *later])
    return oracle.render_conversation_for_completion(conversation, oh.Role.ASSISTANT)


def next_prompt(tokenizer, answer, *later):
    message = json.loads(json.dumps(answer.message))
    return render_conversation([QUESTION, message, *later], tokenizer, current_date=DATE)


def assistant_stream(r, tokenizer):
    """A well-formed answer of 1 to 4 messages of the assistant."""
    ids = []
    for n in range(r.randint(1, 4)):
        if n:
            ids += cases.as_special_ids(tokenizer, "<|end|><|start|>assistant")
        ids += cases.as_special_ids(tokenizer, cases.header(r))
        ids += [tokenizer.specials["<|message|>"], *tokenizer.encode(cases.text(r))]
    return [*ids, tokenizer.specials[r.choice(["<|return|>", "<|call|>"])]]


def test_the_next_turn_is_what_openai_harmony_makes_of_the_tokens(tokenizer, oracle, request):
    import openai_harmony as oh

    r = random.Random(request.config.test_seed)
    later = oh.Message.from_role_and_content(oh.Role.USER, "Go on.")
    for n in range(500):
        ids = assistant_stream(r, tokenizer)
        answer, _ = read(tokenizer, ids)
        assert not answer.recoveries
        found = next_prompt(tokenizer, answer, {"role": "user", "content": "Go on."})
        expected = oracle_prompt(oracle, ids, [later])
        assert found == expected, (
            f"--seed {request.config.test_seed}, answer {n}: {tokenizer.decode(ids)!r}\n"
            f"found    {tokenizer.decode(found)!r}\nexpected {tokenizer.decode(expected)!r}"
        )


@pytest.mark.parametrize(
    ("recipient", "channel", "kind", "author"),
    [
        ("functions.f", "commentary", " <|constrain|>json", "functions.f"),
        ("f", "commentary", " json", "functions.f"),
        ("python", "analysis", " code", "python"),
        ("browser.search", "analysis", " code", "browser.search"),
    ],
)
def test_a_call_and_its_answer_go_on_from_the_very_tokens(tokenizer, recipient, channel, kind, author):
    """The model's own tokens, as openai-harmony would print them, then the tool's answer on their channel."""
    written = f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to={recipient}"
    written += f"<|channel|>{channel}{kind}<|message|>1+1<|call|>"
    answer, _ = read(tokenizer, written)
    prompt = render_conversation([QUESTION], tokenizer, current_date=DATE)
    result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "2"}
    found = next_prompt(tokenizer, answer, result)
    expected = (
        written + f"<|start|>{author} to=assistant<|channel|>{channel}<|message|>2<|end|><|start|>assistant"
    )
    assert tokenizer.decode(found) == tokenizer.decode(prompt) + expected
    assert found == [*prompt, *cases.as_special_ids(tokenizer, expected)]


def test_a_call_by_an_impossible_name_comes_back_as_it_was(tokenizer):
    for recipient in ("functions.名前", "functions.", "a..b", "x" * 200):
        written = f" to={recipient}<|channel|>commentary<|message|>{{}}<|call|>"
        answer, _ = read(tokenizer, written)
        prompt = next_prompt(tokenizer, answer, {"role": "user", "content": "?"})
        assert f"assistant{written}<|start|>user" in tokenizer.decode(prompt)


@pytest.mark.parametrize(
    "written",
    [
        [],
        {},
        "x",
        ["x"],
        [{}],
        [{"content": 5}],
        [{"content": "x", "role": "user"}],
        [{"content": "x", "recipient": "a b"}],
        [{"content": "x", "channel": None}],
    ],
)
def test_a_harmony_key_that_chat_did_not_give_is_refused(tokenizer, written):
    message = {"role": "assistant", "content": "x", "harmony": written}
    with pytest.raises(ValueError, match=r"messages\[1\]\.harmony"):
        render_conversation([QUESTION, message], tokenizer)


def test_what_a_stop_string_cuts_off_is_not_in_the_next_turn(tokenizer):
    answer, deltas = read(tokenizer, THINK + FINAL, SamplingParams(stop="s."))
    assert (answer.content, answer.stop_reason, streamed(deltas, "final")) == ("Ye", "s.", "Ye")
    assert answer.messages[-1].content == "Ye"
    assert answer.message == {"role": "assistant", "content": "Ye", "reasoning": "Think."}


def test_text_held_back_for_a_stop_string_comes_out_before_the_next_message(tokenizer):
    written = "<|channel|>final<|message|>Yes<|end|><|start|>assistant" + NOTE
    answer, deltas = read(tokenizer, written, SamplingParams(stop="sLook"))
    assert (answer.content, answer.stop_reason) == ("Yes", None)
    assert [delta.channel for delta in deltas] == sorted(
        (delta.channel for delta in deltas), key=["final", "commentary"].index
    )


@pytest.mark.parametrize("between", ["", NOTE, THINK])
@pytest.mark.parametrize("stop", ["abcd", "b\nc"])
def test_a_stop_string_never_matches_across_messages(tokenizer, between, stop):
    first = "<|channel|>final<|message|>ab<|end|><|start|>assistant"
    written = first + between + "<|channel|>final<|message|>cd<|return|>"
    answer, deltas = read(tokenizer, written, SamplingParams(stop=stop))
    assert (answer.content, answer.finish_reason) == ("ab\ncd", "stop")
    assert streamed(deltas, "final") == "ab\ncd"


def test_calls_have_ids_of_their_own(tokenizer):
    two = CALL.replace("<|call|>", "<|end|><|start|>assistant") + CALL
    places = [("0", 0, (1,)), ("0", 1, (1,)), ("1", 0, (1,)), ("0", 0, (1, 2))]

    def ids():
        found = [read(tokenizer, two, request_id=i, index=n, prompt=p)[0].tool_calls for i, n, p in places]
        return [call.id for calls in found for call in calls]

    first = ids()
    assert len(set(first)) == 8
    assert ids() == first  # the same program gives the same output


@pytest.fixture(scope="module")
def demo():
    with LLM("demo", max_model_len=1024) as llm:
        yield llm


@pytest.mark.parametrize(("token", "is_end"), [("<|return|>", True), ("<|call|>", False), ("<|end|>", False)])
def test_the_stop_reason_tells_a_call_from_the_end(demo, token, is_end):
    """As in vLLM: None for the model's own end, else the id of the stop token."""
    stop = demo.tokenizer.specials[token]
    params = SamplingParams(temperature=0, logit_bias={stop: 100.0}, stop_token_ids=[stop])
    [output] = demo.chat([QUESTION], params)
    assert output.outputs[0].token_ids[-1] == stop  # after its header: nothing else may stand there
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (
        "stop",
        None if is_end else stop,
    )


def test_without_a_generation_prompt_the_model_names_itself(demo):
    answer = demo.chat([QUESTION], SamplingParams(temperature=0), add_generation_prompt=False)[0].outputs[0]
    start = [demo.tokenizer.specials["<|start|>"], *demo.tokenizer.encode("assistant")]
    assert answer.token_ids[: len(start)] == start
    assert answer.recoveries == []
    assert answer.content
