"""Two models with the demo's vocabulary: the demo, and one that has learned nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import gptoss_native
import numpy as np
import pytest
from gptoss_native import LLM

from tests.checkpoints import tiny_config, write_tiny

DEMO = Path(gptoss_native.__file__).parent / "demo"


@pytest.fixture(scope="session")
def demo():
    with LLM("demo", max_model_len=1024) as llm:
        yield llm


@pytest.fixture(scope="session")
def random_llm(tmp_path_factory, demo):
    folder = tmp_path_factory.mktemp("random")
    vocab = demo.config.vocab_size
    config = replace(tiny_config(vocab_size=vocab), eos_token_ids=demo.config.eos_token_ids)
    write_tiny(folder, np.random.default_rng(), config=config)
    shutil.copy(next(DEMO.rglob("tokenizer.json")), folder)
    with LLM(folder, max_model_len=1024) as llm:
        yield llm
