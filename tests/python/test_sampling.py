"""SamplingParams' checks, the seeds, and the rows packed for the native sampler."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.errors import RequestError
from gptoss_native.sampling import (
    Draw,
    SampleRow,
    SamplingParams,
    allowed_except,
    derive_seed,
    sample_arrays,
)

from tests.python.fake_native import ROW


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", 2),
        ("top_k", -2),
        ("top_k", 1.5),
        ("n", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        # What float32 cannot hold, or holds but cannot calculate with.
        ("temperature", 1e39),
        pytest.param("temperature", 10**400, id="temperature-huge"),
        ("top_p", 1e-46),
        ("repetition_penalty", 1e300),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e-45),
        ("logit_bias", {5: 1e300}),
        ("logit_bias", {5: 100.5}),
        ("logit_bias", {5: 10**400}),
        pytest.param("n", 10**5000, id="n-huge"),
        ("stop_token_ids", [10**5000]),
        ("seed", -1),
        ("seed", 1 << 64),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -2),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 5),
        ("stop_token_ids", "12"),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 7),
        ("logit_bias", [1]),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {"a": 1}),
        ("ignore_eos", 1),
    ],
)
def test_a_bad_setting_is_named_with_its_value(name, value):
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})


def test_settings_that_contradict_each_other_or_the_vocabulary():
    with pytest.raises(RequestError, match="min_tokens 5 exceeds max_tokens 4"):
        SamplingParams(min_tokens=5, max_tokens=4)
    for params in (SamplingParams(stop_token_ids=[10]), SamplingParams(logit_bias={10: 1.0})):
        params.check_vocabulary(11, 20)
        with pytest.raises(RequestError, match=r"10.*ends at 9"):
            params.check_vocabulary(10, 20)
    with pytest.raises(RequestError, match="found 11 and 10"):
        SamplingParams(logprobs=11).check_vocabulary(10, 20)


def test_logprobs_have_a_limit_and_minus_one_means_all():
    SamplingParams(logprobs=20).check_vocabulary(1000, 20)
    for logprobs in (21, -1):
        with pytest.raises(RequestError, match=f"max_logprobs, found {logprobs} and 20"):
            SamplingParams(logprobs=logprobs).check_vocabulary(1000, 20)
        SamplingParams(logprobs=logprobs).check_vocabulary(1000, -1)
    assert SamplingParams(logprobs=-1).logprob_count(1000) == 1000
    assert SamplingParams().logprob_count(1000) is None


def test_what_was_checked_cannot_change():
    given = {1: 1.0}
    params = SamplingParams(logit_bias=given)
    given[2] = 1e300
    assert params.logit_bias == {1: 1.0}
    with pytest.raises(TypeError):
        params.logit_bias[2] = 1e300
    same, other = SamplingParams(logit_bias={1: 1.0}), SamplingParams(logit_bias={1: 2.0})
    assert len({params, same, other}) == 2
    assert replace(params, n=2) == replace(same, n=2)
    assert pickle.loads(pickle.dumps(params)) == params


def test_values_are_normalised():
    params = SamplingParams(stop="x", stop_token_ids=np.array([3, 4]), logit_bias={np.int64(2): 1}, top_k=-1)
    assert (params.stop, params.stop_token_ids, params.logit_bias) == (("x",), (3, 4), {2: 1.0})
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams().logit_bias == {}


def test_seeds_differ_and_the_first_is_the_seed_itself():
    assert derive_seed(42, 0) == 42
    seeds = {derive_seed(seed, index) for seed in range(100) for index in range(100)}
    assert len(seeds) == 10_000
    # SplitMix64's first output for the state 0, published with its reference code.
    assert derive_seed(0, 1) == 0xE220A8397B1DCDAF


def test_rows_point_at_their_own_biases_histories_and_masks():
    mask, none = allowed_except([0, 33], 40), np.empty(0, np.int32)

    def ids(tokens):
        return np.array(tokens, np.int32)

    draws = [
        Draw(SamplingParams(temperature=0.5, logit_bias={7: 1.5, 3: -2.0}), 11, 1, none, none, None, 0),
        Draw(SamplingParams(repetition_penalty=1.2, top_k=-1), 12, 2, ids([5, 6]), ids([7, 8]), mask, 4),
        Draw(SamplingParams(top_k=9, logit_bias={1: 1.0}), 13, 0, none, none, None, 0),
    ]
    arrays = sample_arrays(draws, ROW)
    first, second, third = arrays.rows
    assert first["temperature"] == np.float32(0.5)
    assert arrays.bias_token[first["bias_start"] : first["bias_end"]].tolist() == [7, 3]
    assert arrays.bias_value[first["bias_start"] : first["bias_end"]].tolist() == [1.5, -2.0]
    assert first["prompt_start"] == first["prompt_end"]
    assert arrays.history[second["prompt_start"] : second["prompt_end"]].tolist() == [5, 6]
    assert arrays.history[second["output_start"] : second["output_end"]].tolist() == [7, 8]
    assert [int(row["mask_row"]) for row in arrays.rows] == [-1, 0, -1]
    assert [int(row["top_k"]) for row in arrays.rows] == [0, 0, 9]
    assert [int(row["seed"]) for row in arrays.rows] == [11, 12, 13]
    assert [int(row["position"]) for row in arrays.rows] == [1, 2, 0]
    assert arrays.bias_token[third["bias_start"] : third["bias_end"]].tolist() == [1]
    assert arrays.logprobs == 4
    assert arrays.allowed.shape == (1, 2)


def test_every_setting_lies_in_its_own_field():
    """NumPy goes by the order of fields, so that names have to agree in theirs."""
    assert SampleRow._fields == _native.sample_row_dtype.names
    numbers = {
        "temperature": 0.5, "top_p": 0.75, "min_p": 0.125, "top_k": 9,
        "repetition_penalty": 1.5, "presence_penalty": 0.25, "frequency_penalty": -0.5,
    }  # fmt: skip
    none, draws = np.empty(0, np.int32), []
    for logprobs in (None, 2):
        params = SamplingParams(**numbers, logprobs=logprobs)
        draws.append(Draw(params, 2**64 - 1, 2**40, none, none, None, logprobs or 0))
    for row, skip in zip(sample_arrays(draws, _native.sample_row_dtype).rows, (1, 0), strict=True):
        assert {name: row[name] for name in numbers} == numbers
        assert (row["seed"], row["position"], row["mask_row"], row["skip_report"]) == (
            2**64 - 1,
            2**40,
            -1,
            skip,
        )


def test_mask_clears_exactly_the_forbidden_bits():
    mask = allowed_except([0, 31, 32, 39], 40)
    bits = [(int(mask[token // 32]) >> token % 32) & 1 for token in range(40)]
    assert [token for token, bit in enumerate(bits) if not bit] == [0, 31, 32, 39]
    assert mask.dtype == np.uint32
