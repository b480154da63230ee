"""Whole models of odd shapes against the float64 reference, and against themselves however they are fed."""

import numpy as np
import pytest

from tests.compare import assert_close, assert_same_bits
from tests.conftest import cpu_backend
from tests.model.random_model import native_config, random_arrays, random_config
from tests.model.stepping import chunked, ragged, run, whole
from tests.reference import model as reference

TOLERANCE = 2e-5
SHAPES = [
    {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 3,
     "num_local_experts": 5, "num_experts_per_tok": 4, "sliding_window": 7, "num_hidden_layers": 3},
    {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 8, "num_key_value_heads": 1,
     "num_local_experts": 4, "num_experts_per_tok": 4, "sliding_window": 1},
    {"hidden_size": 64, "num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128},
    {},
    {},
]  # fmt: skip


def random_case(rng, lengths, **fixed):
    """A model and sequences whose routing float32 cannot flip, with the reference's logits."""
    while True:
        config = random_config(rng, **fixed)
        native, arrays = native_config(config), random_arrays(rng, config)
        sequences = [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]
        trace = reference.Trace()
        expected = [reference.forward(native, arrays, tokens, trace) for tokens in sequences]
        if trace.router_margin > 1e-4:
            return native, arrays, sequences, expected


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.get("hidden_size", "random")))
def test_matches_the_reference_however_it_is_fed(cpu, rng, shape):
    lengths = [1, int(rng.integers(2, 30)), int(rng.integers(30, 60))]
    config, arrays, sequences, expected = random_case(rng, lengths, **shape)
    page_size = int(rng.choice([16, 32, 48, 64, 256]))
    logits = run(rng, cpu, config, arrays, sequences, whole, page_size=page_size)
    for i, (actual, wanted) in enumerate(zip(logits, expected, strict=True)):
        assert_close(actual, wanted, TOLERANCE, f"sequence {i} of {lengths}, config {config}")
    for name, schedule in (("one by one", chunked(1)), ("by fives", chunked(5)), ("ragged", ragged(rng))):
        again = run(rng, cpu, config, arrays, sequences, schedule, page_size=page_size)
        for i, (actual, wanted) in enumerate(zip(again, logits, strict=True)):
            assert_same_bits(actual, wanted, f"{name}, sequence {i} of {lengths}, config {config}")


def test_many_sequences_at_once(cpu, rng):
    lengths = rng.integers(1, 20, 17).tolist()
    config, arrays, sequences, expected = random_case(rng, lengths)
    for _ in range(3):
        logits = run(rng, cpu, config, arrays, sequences, ragged(rng))
        for i, (actual, wanted) in enumerate(zip(logits, expected, strict=True)):
            assert_close(actual, wanted, TOLERANCE, f"sequence {i} of {lengths}, config {config}")


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_the_number_of_threads_changes_nothing(isa, rng, numerics):
    config = random_config(rng)
    native, arrays = native_config(config), random_arrays(rng, config)
    tokens = [rng.integers(0, config.vocab_size, 40).tolist()]
    first, *others = (
        run(rng, cpu_backend(isa, threads), native, arrays, tokens, chunked(11), numerics=numerics)[0]
        for threads in (1, 2, 3)
    )
    for other in others:
        assert_same_bits(other, first, f"{numerics}, config {config}")


def test_fast_numerics_are_just_as_independent_of_the_batch(backend, rng):
    config = random_config(rng)
    native, arrays = native_config(config), random_arrays(rng, config)
    lengths = (3, 20, 41) if backend.device != "simt" else (3, 8, 17)  # in pages of 16 tokens
    sequences = [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]
    logits = run(rng, backend, native, arrays, sequences, whole, numerics="fast")
    # A GPU decodes by other kernels than it reads prompts with, so a prompt's last row must not be decoded.
    on_cpu = backend.device == "cpu"
    for schedule in [chunked(1), chunked(5), ragged(rng)] if on_cpu else [chunked(7)]:
        decoding = -1 if on_cpu else 0
        again = run(rng, backend, native, arrays, sequences, schedule, decoding, numerics="fast")
        for actual, wanted in zip(again, logits, strict=True):
            assert_same_bits(actual, wanted, f"config {config}")


def test_fast_numerics_stay_close_to_exact_ones(backend, rng):
    """A sanity bound: random weights forgive less than trained ones; the median is for flipped routes.

    The exact ones are the CPU's: a GPU has none.
    """
    config = random_config(rng, num_hidden_layers=2, num_experts_per_tok=4)
    native, arrays = native_config(config), random_arrays(rng, config)
    tokens = [rng.integers(0, config.vocab_size, 64).tolist()]
    exact = run(rng, cpu_backend("", 2), native, arrays, tokens, numerics="exact")[0].astype(np.float64)
    fast = run(rng, backend, native, arrays, tokens, numerics="fast")[0].astype(np.float64)
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (exact, fast))
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    assert 0 < np.median(divergence) < 1e-2, f"KL {np.sort(divergence)}, config {config}"
