"""docs/scaling.md and the program that computes it. Oracle: sums done by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import scaling
from bench.scaling import H100, MODELS, busiest, cached_tokens, exchange_seconds, exchanged, uneven

DOCS = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


@pytest.mark.parametrize("title", scaling.tables())
def test_the_page_has_the_tables_that_the_program_prints(title):
    assert scaling.tables()[title] in DOCS.read_text(), (
        f"paste what python -m bench.scaling prints of {title!r}"
    )


def test_one_gpu_has_the_limits_of_its_bandwidth():
    """3.35 TB/s over 3.708 and 5.003 GB a token and the cache of 1,024 tokens."""
    assert scaling.tensor_parallel(MODELS["20b"], 1, 1) == pytest.approx(897, rel=0.005)
    assert scaling.tensor_parallel(MODELS["120b"], 1, 1) == pytest.approx(664, rel=0.005)
    for model in MODELS.values():
        alone = scaling.tensor_parallel(model, 8, 1)
        assert scaling.expert_parallel(model, 8, 1) == scaling.replicas(model, 8, 1) == pytest.approx(alone)


def test_an_all_reduce_sums_the_residual_stream_twice_a_layer():
    assert exchanged(MODELS["20b"], 3) == 24 * 2 * 3 * 2880 * 2
    assert exchanged(MODELS["120b"], 1, element=4) == 36 * 2 * 2880 * 4
    assert exchange_seconds(MODELS["20b"], 64, 1, 1e9, 1.0) == 0
    assert exchange_seconds(MODELS["20b"], 1, 4, 1e9, 1e-6) == pytest.approx(48e-6 + 1.5 * 276_480 / 1e9)


def test_experts_are_split_between_blocks_of_32():
    assert [uneven(MODELS["20b"], parts) for parts in (1, 2, 3, 5)] == [1, 1, 1, 1]
    assert uneven(MODELS["20b"], 4) == pytest.approx(23 * 4 / 90)
    assert uneven(MODELS["20b"], 8) == pytest.approx(12 * 8 / 90)


def test_the_busiest_part_has_at_least_its_share():
    assert busiest(32, 4, 1, 1) == 4
    assert 1 < busiest(32, 4, 1, 8) < 4  # four experts over eight parts: at least one, rarely all on one
    assert busiest(32, 4, 4096, 8) == 4  # all experts are chosen
    assert cached_tokens(MODELS["120b"], 1) == pytest.approx(
        (0.9 * H100.memory - 65.249e9) / 36_864, rel=1e-3
    )
