"""What a request tells the sampler about earlier tokens. Oracle: its prompt and its answer."""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native.sampling import SamplingParams

from tests.python.test_engine import request_of


@pytest.mark.parametrize("repetition", [1.0, 1.3])
@pytest.mark.parametrize("presence", [0.0, 0.5])
def test_penalties_see_the_answer_and_only_repetition_the_prompt(repetition, presence, rng):
    prompt, answer = rng.integers(0, 50, 40).tolist(), rng.integers(0, 50, 500).tolist()
    params = SamplingParams(repetition_penalty=repetition, presence_penalty=presence)
    request = request_of(prompt, 1000, params)
    for count, token in enumerate(answer):
        [draw] = request.draws(50)
        assert draw.prompt.tolist() == (prompt if repetition != 1.0 else [])
        assert draw.output.tolist() == (answer[:count] if repetition != 1.0 or presence else [])
        assert draw.prompt.dtype == draw.output.dtype == np.int32
        request.accept(token)


def test_earlier_tokens_are_not_copied_for_each_new_one():
    """Of 1000 draws, all but a few are views of the array that the draw before viewed."""
    request, bases = request_of([1, 2], 2000, SamplingParams(presence_penalty=1.0)), set()
    for _ in range(1000):
        output = request.draws(50)[0].output
        request.accept(3)
        if len(output):
            bases.add(output.__array_interface__["data"][0])
    assert len(bases) <= 8
