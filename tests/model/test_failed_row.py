"""One sequence whose numbers overflow, among others: the oracle is the same batch without it."""

import shutil

import numpy as np
import pytest
from gptoss_native import LLM, SamplingParams
from gptoss_native.checkpoint.locate import DEMO
from gptoss_native.checkpoint.writer import write_checkpoint

from tests.checkpoints import random_arrays, tiny_config

POISON = 7  # a token whose embedding is NaN
NAN = 0x7FC0  # bf16


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_the_other_answers_are_bitwise_what_they_were(tmp_path, rng, numerics):
    config = tiny_config(vocab_size=288, num_local_experts=5)
    arrays = random_arrays(config, rng)
    arrays["model.embed_tokens.weight"][POISON] = NAN
    write_checkpoint(tmp_path / "model", config, arrays, "huggingface", None)
    shutil.copy(DEMO / "tokenizer.json", tmp_path / "model")
    prompts = [rng.integers(POISON + 1, 288, int(length)).tolist() for length in rng.integers(1, 40, 6)]
    poisoned = [*prompts[0], POISON, *prompts[1]]
    # Few pages and small steps: the failed request's pages, full of NaN, are soon someone else's.
    with LLM(
        tmp_path / "model", numerics=numerics, max_model_len=96, max_num_seqs=3, max_num_batched_tokens=8,
        page_size=16, kv_cache_tokens=288,
    ) as llm:  # fmt: skip
        params = SamplingParams(
            max_tokens=9,
            ignore_eos=True,
            logprobs=2,
            logit_bias={POISON: -100.0},
            seed=int(rng.integers(2**60)),
        )
        expected = [output.outputs[0] for output in llm.generate(prompts, params)]
        found = [output.outputs[0] for output in llm.generate([poisoned, *prompts, poisoned], params)]
        streamed = list(llm.stream(poisoned, params))[-1].output
    for answer in (found[0], found[-1], streamed):
        assert (answer.finish_reason, answer.token_ids, answer.text) == ("error", [], "")
        assert "NaN or infinity" in answer.error
    assert found[1:-1] == expected
    assert all(np.isfinite(answer.cumulative_logprob) and answer.error is None for answer in expected)
