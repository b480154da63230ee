"""Every answer under a schema is what the schema describes. Oracle: the jsonschema package.

Two models: the demo, and one with random weights at temperature 2, which writes whatever it may.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress

import jsonschema
import pytest
from gptoss_native import RequestError, SamplingParams, StructuredOutputsParams

from .schemas import REFUSED, enforced, obj

SCHEMAS = enforced()
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
QUESTION = [{"role": "user", "content": "What is 4732 + 918?"}]


def form_of(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def check(schema, output) -> bool:
    """Whether it came to an end; then it must be valid."""
    if output.finish_reason == "length":
        return False
    assert output.finish_reason == "stop", output
    validate(output.text, schema)
    return True


def validate(text, schema):
    # RFC 3339 has a year 0, Python has not.
    found = json.loads(text.replace("0000-", "0004-"))
    jsonschema.validate(found, schema, format_checker=FORMATS)


def sampling(rng, schema, temperature, **more):
    return SamplingParams(
        temperature=temperature,
        max_tokens=600,
        seed=int(rng.integers(1 << 32)),
        structured_outputs=StructuredOutputsParams(json=schema),
        **more,
    )


def test_there_are_enough_of_them():
    assert len(SCHEMAS) >= 200
    for name, schema in SCHEMAS.items():
        assert jsonschema.Draft202012Validator.check_schema(schema) is None, name


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_completions_are_valid(demo, random_llm, rng, temperature):
    for llm in (demo, random_llm):
        params = [sampling(rng, schema, temperature) for schema in SCHEMAS.values()]
        outputs = llm.generate(["An answer: "] * len(params), params)
        ended = [
            check(schema, output.outputs[0]) for schema, output in zip(SCHEMAS.values(), outputs, strict=True)
        ]
        share = sum(ended) / len(ended)
        print(f"temperature {temperature}: {sum(ended)} of {len(ended)} came to an end")
        assert share > (0.9 if temperature else 0.7)  # the others write digits until they are cut off


def test_answers_are_valid_and_reasoning_is_free(demo, random_llm, rng):
    for llm in (demo, random_llm):
        # A random model takes long to leave its thoughts.
        more = {"logit_bias": {llm.tokenizer.specials["<|end|>"]: 6.0}} if llm is random_llm else {}
        names = list(SCHEMAS)
        params = [sampling(rng, SCHEMAS[name], 2.0, **more) for name in names]
        outputs = [output.outputs[0] for output in llm.chat([QUESTION] * len(params), params)]
        done = {name: out for name, out in zip(names, outputs, strict=True) if check_turn(out)}
        for name, output in done.items():
            validate(output.content, SCHEMAS[name])
        assert len(done) > 0.6 * len(names), len(done)
        thoughts = {output.reasoning for output in done.values() if output.reasoning}
        assert len(thoughts) > 20  # what a schema bound would be no JSON
        assert any(not text.lstrip().startswith(("{", "[", '"')) for text in thoughts)


def check_turn(output) -> bool:
    if output.finish_reason == "length":
        return False
    assert not output.recoveries, output.recoveries
    assert output.finish_reason == "stop"
    *thoughts, final = output.messages
    assert final.channel == "final"
    assert {message.channel for message in thoughts} <= {"analysis"}
    return True


def test_a_schema_is_also_told_to_the_model(demo):
    schema = obj({"sum": {"type": "integer"}})
    output = demo.chat(
        QUESTION, SamplingParams(temperature=0, max_tokens=400), response_format=form_of(schema)
    )[0]
    prompt = demo.tokenizer.decode(output.prompt_token_ids)
    assert "# Response Formats" in prompt
    jsonschema.validate(json.loads(output.content), schema)
    assert output.reasoning


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_enforced_is_refused_with_its_path(demo, name):
    schema, path, word = REFUSED[name]
    start = time.process_time()
    with pytest.raises(RequestError) as caught:
        demo.chat(QUESTION, response_format=form_of(schema))
    assert str(caught.value).startswith(f"response_format.json_schema.schema{path}: "), caught.value
    assert word in str(caught.value)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"type": "string", "pattern": "^((((a{100}){100}){100}){100})$"},
        {"type": "string", "pattern": "^(a|aa|aaa|.*b.*c.*d.*e.*f)*(x.{1,500}y){1,500}$"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "minItems": 10**9},
        {"enum": [str(n) for n in range(30_000)]},
        {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(5000)}},
        {"type": "integer", "multipleOf": 10**30},
        {"type": "number", "minimum": 1e308, "maximum": 1.1e308},
    ],
    ids=lambda schema: json.dumps(schema)[:60],
)
def test_hostile_schemas_end_with_an_answer_or_an_error(demo, schema):
    """Never with a crash, a hang or another request's failure."""
    params = SamplingParams(
        temperature=0, max_tokens=20, structured_outputs=StructuredOutputsParams(json=schema)
    )
    plain = SamplingParams(temperature=0, max_tokens=20)
    alone = demo.generate("1 + 1", plain)[0].text
    with suppress(RequestError):
        output = demo.generate(["1 + 1", "1 + 1"], [params, plain])
        assert output[0].outputs[0].finish_reason in ("stop", "length")
        assert output[1].text == alone
    assert demo.generate("1 + 1", plain)[0].text == alone


def test_a_schema_that_is_too_large_is_refused():
    with pytest.raises(RequestError, match=r"structured_outputs\.json has \d+ bytes, the most is 262144"):
        StructuredOutputsParams(json={"enum": ["x" * 300_000]})
    deep = "[" * 100_000
    with pytest.raises(RequestError, match="is no JSON"):
        StructuredOutputsParams(json=deep)
