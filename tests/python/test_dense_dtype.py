"""LLM(dense_dtype="packed" and "q8").

Oracles: the bf16 model, a fresh model with the same numbers, sizes counted by hand.
"""

from __future__ import annotations

import pytest
from gptoss_native import LLM, SamplingParams
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.config import KNOWN_CONFIGS
from gptoss_native.errors import RequestError
from gptoss_native.plan import plan

from tests.compare import assert_same_bits, difference
from tests.model.random_model import random_arrays, random_config

SETTINGS = {"device": "cpu", "max_model_len": 128, "page_size": 16}


def test_the_demo_answers_alike():
    """8 bits move logits by a few thousandths of their size, and not the answer."""
    ask = [{"role": "user", "content": "What is 333 + 444?"}]
    greedy = SamplingParams(temperature=0, max_tokens=60)
    with (
        LLM("demo", device="cpu", max_model_len=512) as plain,
        LLM("demo", device="cpu", max_model_len=512, dense_dtype="q8") as small,
    ):
        tokens = plain.tokenizer.encode("What is 333 + 444? It is 777.")
        found = difference(small.logits(tokens), plain.logits(tokens))
        assert 1e-5 < found.relative_norm < 0.03, found
        assert small.chat(ask, greedy)[0].content == plain.chat(ask, greedy)[0].content


def test_packed_logits_are_those_of_the_stored_numbers():
    with (
        LLM("demo", device="cpu", max_model_len=512) as plain,
        LLM("demo", device="cpu", max_model_len=512, dense_dtype="packed") as packed,
        LLM("demo", device="cpu", max_model_len=512, numerics="exact", dense_dtype="packed") as exact,
        LLM("demo", device="cpu", max_model_len=512, numerics="exact") as plain_exact,
    ):
        tokens = plain.tokenizer.encode("What is 333 + 444? It is 777.")
        assert_same_bits(packed.logits(tokens), plain.logits(tokens), "packed and stored weights, fast")
        assert_same_bits(exact.logits(tokens), plain_exact.logits(tokens), "packed and stored weights, exact")


@pytest.mark.parametrize("dtype", ["packed", "q8"])
def test_edits_reach_the_copies(tmp_path, rng, dtype):
    config = random_config(rng)
    write_checkpoint(tmp_path / "model", config, random_arrays(rng, config))
    tokens = rng.integers(0, config.vocab_size, 30).tolist()
    with LLM(tmp_path / "model", dense_dtype=dtype, **SETTINGS) as llm:
        before = llm.logits(tokens)
        with llm.edit("half") as edit:
            edit.scale("*.layers.0.self_attn.?_proj.weight", 0.5)
            edit.set("lm_head.weight", 0.25)
            edit.scale("*.layers.1.self_attn.o_proj.weight", 2.0**-30)  # exponents that were not there
        edited = llm.logits(tokens)
        assert (edited != before).any()
        llm.save(tmp_path / "edited")
        with LLM(tmp_path / "edited", dense_dtype=dtype, **SETTINGS) as fresh:
            assert_same_bits(edited, fresh.logits(tokens), "an edited model and a fresh one with its numbers")
        llm.undo()
        assert_same_bits(llm.logits(tokens), before, "logits after undo")


@pytest.mark.parametrize(
    ("dtype", "hidden_row", "attended_row", "stays"),
    [("q8", 23 * 136, 32 * 136, 0), ("packed", 22 * 192 + 128 + 24, 32 * 192 + 24, 2)],
)
def test_plan_counts_the_copies(dtype, hidden_row, attended_row, stays):
    """20b: 24 layers of q, k, v, o and one lm_head.

    q8: 34 bytes for 32 values, rows padded to 128. packed: 192 bytes for 128 values, 128 for 64, 24 a row;
    the stored numbers stay.
    """
    config = KNOWN_CONFIGS["openai/gpt-oss-20b"]
    stored, copied = (
        plan(config, context=1, numerics="fast", dense_dtype=each).weights for each in ("bf16", dtype)
    )
    assert stored["lm_head in 6 bits"] == copied["lm_head in 6 bits"]
    hidden, attended = (2 - stays) * 2880 - hidden_row, (2 - stays) * 4096 - attended_row
    saved = 24 * (5120 * hidden + 2880 * attended) + 201_088 * hidden
    assert sum(stored.values()) - sum(copied.values()) == saved


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dense_dtype": "fp8"}, "dense_dtype must be 'bf16', 'packed' or 'q8', found 'fp8'"),
        ({"dense_dtype": 8}, "dense_dtype must be"),
        ({"dense_dtype": "q8", "numerics": "exact"}, "use 'packed', or 'fast'"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        LLM("demo", device="cpu", **settings)
