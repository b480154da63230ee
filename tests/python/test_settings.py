"""Settings of an LLM and of a request: whatever is passed, it works or is refused by an error of ours."""

from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np
import pytest
from gptoss_native import LLM, CheckpointError, GptossError, RequestError, SamplingParams
from gptoss_native.config import FieldError
from gptoss_native.jobs import CHAT_OPTIONS
from gptoss_native.outputs import ScoreOutput
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import tiny_config, write_tiny

FIELDS = [field.name for field in fields(SamplingParams)]
WHOLE = [-2, -1, 0, 1, 2, 15, 16, 32, 100, 1024, 1025, 1 << 16, 1 << 31, 1 << 40, 1 << 63, 1 << 64]
NUMPY = [np.int8(3), np.int64(-1), np.uint64(1 << 63), np.float16(1), np.float32("nan"), np.bool_(1)]
NUMBERS = st.one_of(
    st.sampled_from(WHOLE),
    st.sampled_from([10**400, -(10**4000)]),
    st.floats(),
    st.sampled_from(NUMPY),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.booleans(),
)
ATOMS = st.one_of(
    NUMBERS,
    st.none(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from([object(), len, int, np.array([]), np.array(1), np.array([[1, 2]]), np.array(["a"])]),
)
GARBAGE = st.one_of(
    ATOMS,
    st.lists(ATOMS, max_size=3),
    st.tuples(ATOMS),
    st.dictionaries(st.one_of(st.integers(), st.text(max_size=2), st.floats(), st.none()), ATOMS, max_size=3),
    st.frozensets(st.integers(), max_size=2),
    st.builds(iter, st.lists(ATOMS, max_size=2)),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, np.random.default_rng(request.config.test_seed))
    return folder


@pytest.fixture(scope="module")
def llm(tiny):
    with LLM(tiny, max_model_len=64, threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def demo():
    with LLM("demo", max_model_len=512, threads=1) as llm:
        yield llm


def refusal(call) -> str:
    """The message of our own error; empty when there is none. Any other error is the test's failure."""
    try:
        call()
    except (RequestError, CheckpointError) as error:
        return str(error)
    return ""


@settings(max_examples=1000, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), GARBAGE, max_size=3))
def test_any_sampling_setting_works_or_is_refused(llm, garbage):
    found = []
    message = refusal(lambda: found.append(SamplingParams(**garbage)))
    for params in found:
        assert pickle.loads(pickle.dumps(params)) == params
        assert params in {params}
        if params.n <= 4:
            message = refusal(lambda params=params: llm.generate([1, 2], params))
    assert len(message) < 500


LLM_OPTIONS = {
    "device": st.sampled_from(["cpu", "cuda", "auto", "tpu", "", "CPU"]),
    "numerics": st.sampled_from(["exact", "fast", "auto", ""]),
    # More threads or rows than these work too; they take time.
    "threads": st.integers(-1, 3),
    "max_num_seqs": st.integers(-1, 600),
    "max_num_batched_tokens": st.integers(-1, 1200),
}
LLM_NAMES = [*LLM_OPTIONS, "max_model_len", "page_size", "seed", "kv_cache_tokens", "max_logprobs"]
LLM_NAMES += ["gpu_memory_utilization", "model"]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), names=st.sets(st.sampled_from(LLM_NAMES), max_size=3))
def test_any_setting_of_an_llm_works_or_is_refused(tiny, data, names):
    chosen = {}
    for name in sorted(names):
        own = LLM_OPTIONS.get(name, NUMBERS)
        chosen[name] = data.draw(st.one_of(own, GARBAGE.filter(lambda value: type(value) is not int)), name)

    def work():
        with LLM(**{"model": tiny, "threads": 1, **chosen}) as llm:
            llm.generate([1], SamplingParams(max_tokens=2, ignore_eos=True))

    message = refusal(work)
    assert "\n" not in message
    assert len(message) < 900


@settings(max_examples=500, deadline=None)
@given(prompt=GARBAGE, call=st.sampled_from(["generate", "score", "logits", "stream", "chat"]))
def test_any_prompt_works_or_is_refused(llm, prompt, call):
    assert len(refusal(lambda: getattr(llm, call)(prompt))) < 500


MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "name", "tool_calls", "reasoning", "tool_call_id", "harmony", ""]),
    st.one_of(GARBAGE, st.sampled_from(["system", "user", "assistant", "tool"])),
    max_size=4,
)


@settings(max_examples=600, deadline=None)
@given(
    messages=st.one_of(
        st.just([{"role": "user", "content": "hi"}]),
        st.lists(MESSAGE, min_size=1, max_size=3),
        st.lists(MESSAGE.map(lambda message: {**message, "role": "assistant"}), min_size=1, max_size=2),
    ),
    options=st.dictionaries(st.sampled_from(sorted(CHAT_OPTIONS)), GARBAGE, max_size=2),
)
def test_any_message_and_any_option_of_a_chat_works_or_is_refused(demo, messages, options):
    assert len(refusal(lambda: demo.chat(messages, SamplingParams(max_tokens=1), **options))) < 700


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("role", 10**5000, id="huge-role"),
        ("role", np.array(["user", "user"])),
        ("name", np.array([1, 2])),
        pytest.param("tool_call_id", 10**5000, id="huge-id"),
        ("tool_calls", np.array([1, 2])),
        ("reasoning", np.array([1, 2])),
    ],
)
def test_what_is_not_json_in_a_message_is_named(demo, key, value):
    with pytest.raises(RequestError, match=rf"messages\[0\]\['{key}'\] is .*, expected text"):
        demo.chat([{"role": "assistant", "content": "a", key: value}])


@pytest.mark.parametrize("model", [None, 5, b"\xff\x00", ["demo"], "a\0b", "\ud800", "x" * 100_000, ""])
def test_what_is_no_name_of_a_checkpoint_is_refused(model):
    with pytest.raises(CheckpointError) as caught:
        LLM(model)
    assert len(str(caught.value)) < 400


def test_a_path_may_be_bytes(tiny):
    LLM(str(tiny).encode(), max_model_len=32).close()


def test_more_cache_than_the_sequences_can_use_is_not_taken(tiny):
    with LLM(tiny, max_model_len=64, max_num_seqs=2, kv_cache_tokens=1 << 40) as llm:
        assert llm.engine.scheduler.pages.full.count == 2 * 64 // 32


def test_errors_and_answers_survive_pickling(llm):
    error = pickle.loads(pickle.dumps(FieldError("hidden_size", "must be 32")))
    assert (type(error), error.name, error.problem) == (FieldError, "hidden_size", "must be 32")
    assert str(error) == "hidden_size must be 32"
    for error in (RequestError("a"), CheckpointError("b"), GptossError("c")):
        assert pickle.loads(pickle.dumps(error)).args == error.args
    for output in (
        llm.generate([1, 2], SamplingParams(max_tokens=3, logprobs=2)),
        llm.score([1, 2, 3]),
    ):
        assert pickle.loads(pickle.dumps(output)) == output


def test_perplexity_beyond_floating_point_is_infinite():
    assert ScoreOutput([1, 2], [-800.0]).perplexity == float("inf")
    assert ScoreOutput([1, 2], [-1.0]).perplexity == pytest.approx(np.e)


def test_a_model_of_other_sizes_is_not_confused_by_its_settings(tmp_path, rng):
    write_tiny(tmp_path, rng, config=tiny_config(vocab_size=33))
    with LLM(tmp_path, max_model_len=32) as llm, pytest.raises(RequestError, match="vocabulary is 0 to 32"):
        llm.generate([33])
