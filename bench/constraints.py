"""What a grammar costs a token: microseconds for a mask, with o200k_harmony's 200,000 tokens.

    python -m bench.constraints

Free text and headers have masks made once; their cost is the lookup. The last line is the whole step of the
bundled model with and without the masks that keep special tokens in their places, A B A B.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from gptoss_native import LLM, SamplingParams, Tokenizer
from gptoss_native.constraints.constraints import Constraints
from gptoss_native.constraints.params import StructuredOutputsParams
from gptoss_native.constraints.states import Constraint

VOCAB = 201_088
SCHEMAS = {
    "small object": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "any object": {"type": "object"},
    "enum of 1,000": {"enum": [f"value {n}" for n in range(1000)]},
    "pattern": {"type": "string", "pattern": "^([A-Z][a-z]{1,20} ){1,20}[.]$"},
}
TEXTS = {
    "small object": '{"name": "Bob the builder of great and terrible things", "age": 42}',
    "any object": json.dumps({"a": [1, 2.5, {"b": "some longer text with words"}], "c": None}),
    "enum of 1,000": '"value 357"',
    "pattern": '"Some Words That Begin Large ."',
}


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    tokenizer = Tokenizer.o200k_harmony()
    constraints = Constraints(lambda: tokenizer, VOCAB)
    ends = [tokenizer.specials["<|return|>"]]
    choice = StructuredOutputsParams(choice=["yes", "no"])
    print(f"vocabulary, once a model {milliseconds(lambda: constraints.text(choice, ends)):8.1f} ms")
    for name, schema in SCHEMAS.items():
        wanted = StructuredOutputsParams(json=schema)
        compiled = milliseconds(lambda wanted=wanted: constraints.text(wanted, ends))
        way, took = Constraint(constraints.text(wanted, ends)), []
        for token in tokenizer.encode(TEXTS[name]):
            took.append(milliseconds(way.mask) * 1e3)
            way.take(token)
        print(
            f"{name:24} {compiled:8.1f} ms to compile, a mask {statistics.median(took):6.0f} µs median, "
            f"{max(took):6.0f} µs at most, {len(took)} tokens"
        )
    way = Constraint(constraints.chat({}, None))
    took = [milliseconds(way.mask) * 1e3 for _ in range(1000)]
    print(f"{'free text of a chat':24} {statistics.median(took):43.2f} µs median")
    compare_steps()


def compare_steps() -> None:
    """The same greedy turns through chat, whose tokens are masked, and through generate, whose are not."""
    params, rounds = SamplingParams(temperature=0, max_tokens=300), {"chat": [], "generate": []}
    with LLM("demo", max_model_len=2048) as llm:
        stops = [llm.tokenizer.specials[name] for name in ("<|return|>", "<|call|>")]
        plain = SamplingParams(temperature=0, max_tokens=300, stop_token_ids=stops)
        question = [{"role": "user", "content": "What is 4732 + 918?"}]
        prompt = llm.chat(question, params)[0].prompt_token_ids
        for _ in range(20):
            rounds["chat"].append(milliseconds(lambda: llm.chat(question, params)))
            rounds["generate"].append(milliseconds(lambda: llm.generate([prompt], plain)))
    ratio = np.median(rounds["chat"]) / np.median(rounds["generate"])
    turn = np.median(rounds["chat"])
    print(f"demo, a whole turn {turn:14.1f} ms, {ratio:.3f} times the plain one, harmony read and masked")


if __name__ == "__main__":
    main()
