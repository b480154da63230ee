"""Steps whose tokens the host does not know yet: they are taken from the latest draw, on the device.

Oracle: the same steps with the tokens read and passed as numbers, compared bit by bit.
"""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.errors import GptossError

from tests.compare import assert_same_bits
from tests.model.random_model import native_config, random_arrays, random_config
from tests.model.stepping import Runner


def rows_of(rng, count):
    rows = np.zeros(count, _native.sample_row_dtype)
    for name in ("temperature", "top_p", "repetition_penalty"):
        rows[name] = 1.0
    rows["seed"], rows["mask_row"] = rng.integers(0, 1 << 62, count), -1
    return rows


def enqueue(backend, logits, rows):
    return backend.enqueue_sample(
        logits, rows, np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int32), None, 0
    )


@pytest.fixture(params=_native.devices())
def backend(request):
    return _native.Backend(device=request.param)


def test_tokens_of_the_latest_draw_are_those_that_collect_returns(backend, rng):
    count = int(rng.integers(1, 9))
    config = random_config(rng, num_hidden_layers=2, vocab_size=50)
    native, arrays = native_config(config), random_arrays(rng, config)
    prompts = [rng.integers(0, 50, int(rng.integers(2, 9))).tolist() for _ in range(count)]
    rows = [rows_of(rng, count) for _ in range(3)]
    found = []
    for known in (True, False):
        runner = Runner(rng, backend, native, arrays, [len(p) + 3 for p in prompts], numerics="fast")
        ends = np.cumsum([len(prompt) for prompt in prompts], dtype=np.int32) - 1
        runner.step(prompts, [(s, len(prompt)) for s, prompt in enumerate(prompts)], ends)
        logits, steps = runner.logits, []
        for step in range(3):
            draws = enqueue(backend, logits, rows[step])
            tokens = draws.collect()[0] if known else -1 - np.arange(count)
            fed = {s: [int(tokens[s])] for s in range(count)}
            steps.append(runner.step(fed, [(int(s), 1) for s in range(count)]))
            logits = runner.logits
            if not known:
                assert ((draws.collect()[0] >= 0) & (draws.collect()[0] < 50)).all()
        found.append(steps)
    for step, (expected, ahead) in enumerate(zip(*found, strict=True)):
        assert_same_bits(ahead, expected, f"step {step} of {count} sequences")


def test_results_are_there_until_the_next_draw(backend, rng):
    logits = rng.standard_normal((3, 50)).astype(np.float32)
    first = enqueue(backend, logits, rows_of(rng, 3))
    assert len(first.collect()[0]) == len(first.collect()[0]) == 3
    second = enqueue(backend, logits[:2], rows_of(rng, 2))
    with pytest.raises(GptossError, match="draw 1, the latest is draw 2"):
        first.collect()
    assert len(second.collect()[0]) == 2
    nothing = enqueue(backend, logits[:0], rows_of(rng, 0))
    assert len(nothing.collect()[0]) == 0
    assert len(second.collect()[0]) == 2


def test_a_token_that_no_draw_has_is_refused(backend, rng):
    config = random_config(rng, num_hidden_layers=2, vocab_size=50)
    runner = Runner(rng, backend, native_config(config), random_arrays(rng, config), [4], numerics="fast")
    with pytest.raises(GptossError, match=r"token_ids\[0\] is -1, expected 0 to 49"):
        runner.step([[-1]], [(0, 1)])
    enqueue(backend, rng.standard_normal((2, 50)).astype(np.float32), rows_of(rng, 2))
    with pytest.raises(GptossError, match=r"token_ids\[0\] is -3, expected -2 to 49"):
        runner.step([[-3]], [(0, 1)])


def test_only_sequences_of_one_row_can_be_decoded(backend, rng):
    config = random_config(rng, num_hidden_layers=2, vocab_size=50)
    runner = Runner(rng, backend, native_config(config), random_arrays(rng, config), [4, 4], numerics="fast")
    with pytest.raises(GptossError, match="decoding is 2, expected at most the 1 sequences"):
        runner.step([[1], [1, 2]], [(0, 1), (1, 2)], decoding=2)


def test_a_prompt_has_the_same_bits_however_it_is_cut(backend, rng):
    """Also where a piece is one token: it is a prompt's, not a decoded one, when the caller says so."""
    config = random_config(rng, num_hidden_layers=2, vocab_size=50)
    native, arrays, tokens = (
        native_config(config),
        random_arrays(rng, config),
        rng.integers(0, 50, 40).tolist(),
    )
    whole = Runner(rng, backend, native, arrays, [40], numerics="fast").step([tokens], [(0, 40)], decoding=0)
    for cuts in ([1], [39], sorted(rng.choice(np.arange(1, 40), 5, replace=False).tolist())):
        runner, parts = Runner(rng, backend, native, arrays, [40], numerics="fast"), []
        for start, end in zip([0, *cuts], [*cuts, 40], strict=True):
            parts.append(runner.step([tokens[start:end]], [(0, end - start)], decoding=0))
        assert_same_bits(np.concatenate(parts), whole, f"cut at {cuts}")
