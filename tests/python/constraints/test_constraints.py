"""Regexes, choices, Lark grammars, tool choices; and special tokens in their places without any grammar."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
from gptoss_native import RequestError, SamplingParams, StructuredOutputsParams
from gptoss_native.constraints.states import Constraint, State, mask_of
from gptoss_native.harmony import is_tool

QUESTION = [{"role": "user", "content": "What is 4732 + 918?"}]


def tool(name, parameters=None, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [tool("weather", PLACE), tool("weather_soon", PLACE, strict=True), tool("now")]


def hot(rng, llm, **more):
    """Temperature 2, with a push to come to an end."""
    bias = {llm.tokenizer.specials[name]: 6.0 for name in ("<|end|>", "<|call|>", "<|return|>")}
    quotes = dict.fromkeys(llm.tokenizer.encode('"'), 2.0)
    return SamplingParams(
        temperature=2.0,
        max_tokens=700,
        seed=int(rng.integers(1 << 32)),
        logit_bias=bias | quotes,
        **more,
    )


@pytest.mark.parametrize("regex", ["[a-z]{3}", "(yes|no)!?", "[0-9]{1,3}(,[0-9]{3})*", "é+ 日本.", "x{0,2}y"])
def test_a_regex_matches_the_whole_text(demo, random_llm, rng, regex):
    for llm in (demo, random_llm):
        wanted = StructuredOutputsParams(regex=regex)
        for _ in range(10):
            output = llm.generate("Say: ", hot(rng, llm, structured_outputs=wanted))[0].outputs[0]
            if output.finish_reason == "stop":
                assert re.fullmatch(regex, output.text), output.text


def test_a_choice_is_one_of_them_and_all_can_be_chosen(random_llm, rng):
    choices = ("yes", "no", 'qu"ote', "line\nbreak", "日本")
    wanted = StructuredOutputsParams(choice=choices)
    params = [hot(rng, random_llm, structured_outputs=wanted) for _ in range(200)]
    texts = {output.text for output in random_llm.generate(["?"] * len(params), params)}
    assert texts == set(choices)


def test_a_lark_grammar(demo, rng):
    grammar = 'start: "sum: " number (" + " number)* "."\nnumber: /[1-9][0-9]{0,2}/'
    wanted = StructuredOutputsParams(grammar=grammar)
    for _ in range(10):
        output = demo.generate("?", hot(rng, demo, structured_outputs=wanted))[0].outputs[0]
        if output.finish_reason == "stop":
            assert re.fullmatch(r"sum: [1-9]\d{0,2}( \+ [1-9]\d{0,2})*\.", output.text)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "takes exactly one of"),
        ({"json": {}, "regex": "a"}, "takes exactly one of"),
        ({"json": 5}, "must be a JSON schema"),
        ({"json": "{"}, "is no JSON"),
        ({"json": {"const": "\ud800"}}, "half of a UTF-16 pair"),
        ({"choice": ["a", "\udfff"]}, "half of a UTF-16 pair"),
        ({"regex": ""}, "not empty"),
        ({"choice": []}, "list of texts"),
        ({"choice": ["a", ""]}, "none empty"),
        ({"choice": "ab"}, "list of texts"),
        ({"grammar": 7}, "must be a text"),
        ({"json_object": 1}, "must be True or False"),
    ],
)
def test_bad_settings_are_refused_by_name(wanted, message):
    with pytest.raises(RequestError, match=message):
        StructuredOutputsParams(**wanted)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"regex": "("}, "structured_outputs.regex: .*unclosed group"),
        ({"regex": "(?=a)b"}, "structured_outputs.regex: .*look-around"),
        ({"grammar": "start: other"}, 'structured_outputs.grammar: .*unknown name: "other"'),
        ({"grammar": "start: /[a-/"}, "structured_outputs.grammar: "),
        ({"grammar": 'start: <|end|> "a"'}, "the grammar allows no token here"),
        ({"regex": "((((a{100}){100}){100}){100}){9}"}, "structured_outputs.regex|cannot go on"),
    ],
)
def test_bad_grammars_are_refused(demo, wanted, message):
    params = SamplingParams(max_tokens=5, structured_outputs=StructuredOutputsParams(**wanted))
    with pytest.raises(RequestError, match=message):
        demo.generate("?", params)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "weather_soon"}}], ids=str
)
def test_calls_have_a_name_that_was_offered_and_arguments_of_its_schema(
    demo, random_llm, rng, choice, parallel
):
    schemas = {"weather": PLACE, "weather_soon": PLACE, "now": {"type": "object"}}
    ended, most = 0, 0
    for llm in (demo, random_llm):
        params = [hot(rng, llm) for _ in range(25)]
        outputs = llm.chat(
            [QUESTION] * 25, params, tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel
        )
        for output in (output.outputs[0] for output in outputs):
            if output.finish_reason != "stop":
                continue
            assert not output.recoveries, output.recoveries
            ended += 1
            most = max(most, len(output.tool_calls))
            for call in output.tool_calls:
                assert call.name in (["weather_soon"] if isinstance(choice, dict) else schemas)
                jsonschema.validate(json.loads(call.arguments), schemas[call.name])
            places = [i for i, message in enumerate(output.messages) if is_tool(message.recipient)]
            assert places == list(range(len(output.messages)))[len(output.messages) - len(places) :]
            if choice != "auto":
                assert output.tool_calls
                assert not any(message.channel == "final" for message in output.messages)
    assert ended > 25
    assert most > 1 if parallel else most == 1


def test_no_calls_where_tools_are_not_to_be_used(demo):
    [output] = demo.chat(
        QUESTION, SamplingParams(temperature=0, max_tokens=400), tools=TOOLS, tool_choice="none"
    )
    assert output.content == "5650"
    assert "functions" not in demo.tokenizer.decode(output.prompt_token_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tool_choice": "must", "tools": TOOLS}, "tool_choice must be"),
        ({"tool_choice": "required"}, "there are no tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "no"}}, "tools": TOOLS},
            "names the function 'no'",
        ),
        ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "names the function"),
        ({"parallel_tool_calls": "yes", "tools": TOOLS}, "parallel_tool_calls must be True or False"),
        (
            {"tools": [tool("a"), tool("f", {"type": "object", "properties": {"x": {"type": "q"}}})]},
            r"tools\[1\]\.function\.parameters\.properties\.x: Invalid type: q",
        ),
        (
            {"tools": [tool("f", {"type": "array", "uniqueItems": True}, strict=True)]},
            r"tools\[0\]\.function\.parameters: .*uniqueItems",
        ),
        ({"tools": [tool("f"), tool("g"), tool("f")]}, "tools has the function 'f' 2 times"),
        ({"tools": [tool("f", PLACE, strict="yes")]}, "strict must be True or False"),
    ],
)
def test_bad_choices_are_refused(demo, options, message):
    with pytest.raises(RequestError, match=message):
        demo.chat(QUESTION, **options)


def test_what_is_not_strict_may_hold_keywords_that_cannot_be_enforced(demo):
    tools = [tool("f", {"type": "object", "properties": {"x": {"not": {"const": 1}}}})]
    assert demo.chat(QUESTION, SamplingParams(max_tokens=1), tools=tools)


def test_special_tokens_stand_only_in_their_places(random_llm, rng):
    """A model that would write any of its tokens at any place, and no grammar."""
    specials = random_llm.tokenizer.special_ids
    params = SamplingParams(
        temperature=2.0,
        max_tokens=300,
        logit_bias=dict.fromkeys(specials, 8.0),
        n=60,
        seed=int(rng.integers(99)),
    )
    spelled = {token: name for name, token in random_llm.tokenizer.specials.items()}
    legal = re.compile(
        r"(h*(<\|channel\|>|<\|constrain\|>|h)*<\|message\|>h*(<\|end\|><\|start\|>|<\|return\|>$|<\|call\|>$|$))*"
        r"(<\|channel\|>|<\|constrain\|>|h)*"
    )
    shapes = set()
    for output in random_llm.chat(QUESTION, params)[0].outputs:
        shape = "".join(spelled.get(token, "h") for token in output.token_ids)
        assert legal.fullmatch(re.sub("<.end.>$", "", shape)), shape
        shapes.update(re.findall(r"<\|[a-z]+\|>", shape))
    assert len(shapes) >= 6, shapes


def test_a_turn_without_a_grammar_is_as_likely_as_before(demo, rng):
    """What was legal anyway keeps its bits: the demo's greedy turns continue their prompts."""
    for a, b in rng.integers(0, 10_000, (5, 2)):
        question = [{"role": "user", "content": f"What is {a} + {b}?"}]
        output = demo.chat(question, SamplingParams(temperature=0, max_tokens=300))[0]
        stops = [demo.tokenizer.specials[name] for name in ("<|return|>", "<|call|>")]
        params = SamplingParams(temperature=0, max_tokens=300, stop_token_ids=stops)
        plain = demo.generate([output.prompt_token_ids], params)[0]
        assert plain.outputs[0].token_ids == output.outputs[0].token_ids


def test_min_tokens_wait_where_the_format_lets_them(demo):
    wanted = StructuredOutputsParams(regex="ab")
    output = demo.generate("?", SamplingParams(min_tokens=10, max_tokens=20, structured_outputs=wanted))[0]
    assert output.text == "ab"  # no longer text is allowed
    wanted = StructuredOutputsParams(regex="(ab)+")
    params = SamplingParams(temperature=0, min_tokens=10, max_tokens=40, structured_outputs=wanted)
    output = demo.generate("?", params)[0].outputs[0]
    assert len(output.text) >= 10
    assert set(output.text) <= {"a", "b"}


def test_a_bound_completion_ends_with_its_grammar_whatever_else_is_asked(demo):
    wanted = StructuredOutputsParams(choice=["yes", "no"])
    params = SamplingParams(ignore_eos=True, max_tokens=50, structured_outputs=wanted)
    output = demo.generate("?", params)[0].outputs[0]
    assert output.text in ("yes", "no")
    assert output.finish_reason == "stop"


def test_requests_with_the_same_grammar_do_not_share_their_places(demo, rng):
    wanted = StructuredOutputsParams(json={"type": "array", "items": {"type": "integer"}, "maxItems": 4})
    params = [
        SamplingParams(temperature=1.5, max_tokens=60, seed=seed, structured_outputs=wanted)
        for seed in range(8)
    ]
    together = [output.outputs[0].token_ids for output in demo.generate(["[1"] * 8, params)]
    alone = [demo.generate("[1", one)[0].outputs[0].token_ids for one in params]
    assert together == alone


def test_states_lead_on():
    a, b = State(mask_of([1], 40)), State(mask_of([33, 39, 99], 40))
    a.next[1], b.otherwise = b, a
    way = Constraint(a)
    assert np.array_equal(way.mask(), [2, 0])
    way.take(1)
    assert np.array_equal(way.mask(), [0, (1 << 1) | (1 << 7)])
    way.take(33)
    assert np.array_equal(way.mask(), [2, 0])
    assert not way.done


def test_without_llguidance_only_what_needs_it_is_refused():
    program = """
import sys
sys.modules["llguidance"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "llguidance" else find(name, *rest)
from gptoss_native import LLM, SamplingParams
llm, question = LLM("demo", max_model_len=512), [{"role": "user", "content": "What is 1 + 1?"}]
tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
assert llm.chat(question, SamplingParams(max_tokens=5), tools=tools)
try:
    llm.chat(question, tools=tools, tool_choice="required")
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "pip install 'gptoss-native[structured]'" in done.stdout, done.stderr
