"""The tokenizer and its oracle, openai-harmony, which reads the ranks in this package: no download."""

import os
import sys
from pathlib import Path

import pytest
from gptoss_native import o200k
from gptoss_native.tokenizer import Tokenizer


#: The engine on a device that waits for its host, and on one that works while the host goes on.
@pytest.fixture(params=[False, True], ids=["in_step", "ahead"])
def each_way(request, monkeypatch):
    monkeypatch.setattr("tests.python.fake_native.AHEAD", request.param)


TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.o200k_harmony()


@pytest.fixture(scope="session")
def make_ranks():
    """The module tools/make_ranks.py."""
    sys.path.insert(0, str(TOOLS))
    try:
        import make_ranks
    finally:
        sys.path.remove(str(TOOLS))
    return make_ranks


@pytest.fixture(scope="session")
def tiktoken_file(tmp_path_factory, make_ranks) -> Path:
    """The shipped ranks, unpacked to an `o200k_base.tiktoken`."""
    path = tmp_path_factory.mktemp("encodings") / "o200k_base.tiktoken"
    path.write_bytes(make_ranks.tiktoken_text(o200k.load_tokens()))
    return path


@pytest.fixture(scope="session")
def oracle(tiktoken_file):
    """openai-harmony's encoding. It checks the sha256 of the ranks when it loads them."""
    import openai_harmony

    before = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(tiktoken_file.parent)
    try:
        return openai_harmony.load_harmony_encoding("HarmonyGptOss")
    finally:
        del os.environ["TIKTOKEN_ENCODINGS_BASE"]
        if before is not None:
            os.environ["TIKTOKEN_ENCODINGS_BASE"] = before
