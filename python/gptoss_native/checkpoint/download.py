"""Fetch a checkpoint into the local Hugging Face cache: the only module that uses the network."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CheckpointError, GptossError
from ..strict_json import show

# The weights in Hugging Face's layout and what belongs to them; a repository holds other copies of the same
# weights.
PATTERNS = ("model*.safetensors", "*.json", "*.jinja", "LICENSE*", "USAGE_POLICY*", "README.md")


def download(name: str, revision: str | None = None) -> Path:
    """Download `organisation/model` and return its folder; a complete download is found again at once.

    Raises GptossError when the `download` extra is not installed, CheckpointError when the download fails.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise CheckpointError(
            f"{show(name)} is not a model on Hugging Face; give a name like openai/gpt-oss-20b"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise GptossError(
            "downloading needs huggingface_hub, which is not installed; run `pip install "
            "'gptoss-native[download]'`"
        ) from None
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(PATTERNS), ignore_patterns=["original/*", "metal/*"]
        )
    except Exception as error:  # the library raises its own, requests' and httpx's exceptions alike
        raise CheckpointError(
            f"{name}: the download failed ({type(error).__name__}: {error}); check the name and the "
            "connection"
        ) from error
    return Path(folder)
