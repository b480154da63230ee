"""2,000 randomly damaged checkpoints load or are refused with one clear sentence; `make fuzz` tries 20,000.

Oracle: none is needed; whatever is no CheckpointError, slow, or hungry for memory is a failure.
"""

from __future__ import annotations

import tracemalloc

from tests.fuzz.fuzz_checkpoint import run


def test_damaged_checkpoints(tmp_path, request):
    tracemalloc.start()
    try:
        result = run(tmp_path, request.config.test_seed, range(2_000))
    finally:
        tracemalloc.stop()
    assert not result.failures, "\n".join([str(result), *result.failures[:5]])
    # Most damage is noticed, but bytes of weights and unused fields may change freely.
    assert result.loaded > 50, str(result)
    assert result.refused > 1_000, str(result)
    assert len(result.reasons) > 20, "the damage should reach most checks"
