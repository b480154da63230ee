"""The weights of a checkpoint as a native model, read into memory in the order in which they are needed."""

from __future__ import annotations

from typing import Any

from .checkpoint import Checkpoint
from .host_memory import host_memory
from .plan import copied_matrices, native_config
from .progress import ProgressBar

PREFETCH_THREADS = 4


def load_model(
    checkpoint: Checkpoint, backend: Any, numerics: str, dense_dtype: str, max_rows: int, slots: int
) -> Any:
    """The native model, for steps of `max_rows` tokens with interventions in up to `slots` sequences.

    Weights are read ahead where the host's memory holds them all.

    Raises CheckpointError when a file changes or cannot be read meanwhile, or its numbers cannot be used.
    """
    from . import _native

    def make() -> Any:
        config = native_config(checkpoint.config)
        return _native.Model(backend, config, checkpoint.arrays(), numerics, max_rows, slots=slots)

    host = host_memory()
    if host is not None and checkpoint.nbytes > host.available:
        return make()
    with ProgressBar(checkpoint.nbytes, f"loading {checkpoint.name}") as progress:
        copied = {spec.name for spec in copied_matrices(checkpoint.config, dense_dtype)}
        if dense_dtype != "q8" or not copied:
            checkpoint.prefetch(PREFETCH_THREADS, progress)
            return make()
        # What is rounded is read for that alone, and does not stay.
        model = make()
        checkpoint.release_pages()
        rest = checkpoint.tensors.keys() - copied
        done = sum(checkpoint.tensors[name].nbytes for name in copied)
        checkpoint.prefetch(PREFETCH_THREADS, lambda more: progress(done + more), rest)
        return model
