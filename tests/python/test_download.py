"""Downloading: its errors, and what it asks huggingface_hub for (a stand-in is the oracle)."""

from __future__ import annotations

import sys
import types

import pytest
from gptoss_native.checkpoint.download import download
from gptoss_native.errors import CheckpointError, GptossError


def test_download_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(GptossError, match=r"pip install 'gptoss-native\[download\]'"):
        download("openai/gpt-oss-20b")
    with pytest.raises(CheckpointError, match="is not a model on Hugging Face"):
        download("../gpt-oss")


def test_download_asks_for_one_copy_of_the_weights(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        if name == "no/such":
            raise OSError("404")
        return str(tmp_path)

    fake = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert download("openai/gpt-oss-20b", "v1") == tmp_path
    name, options = calls[0]
    assert (name, options["revision"]) == ("openai/gpt-oss-20b", "v1")
    assert "original/*" in options["ignore_patterns"]
    assert "model*.safetensors" in options["allow_patterns"]
    with pytest.raises(CheckpointError, match=r"no/such: the download failed \(OSError: 404\)"):
        download("no/such")
