"""Which folder a name means, and that nothing outside that folder is read.

Oracle: the folder structure that huggingface_hub writes, built here, and the arrays that were written.
"""

from __future__ import annotations

import json

import pytest
from gptoss_native.checkpoint import locate, open_checkpoint
from gptoss_native.errors import CheckpointError

from tests.checkpoints import SHARD_BYTES, edit_json, refuse, same, write_tiny


def test_folder_with_only_original(tmp_path, rng):
    arrays = write_tiny(tmp_path / "original", rng, "openai")
    for name, content in (("tokenizer.json", "{}"), ("generation_config.json", '{"eos_token_id": [1, 2]}')):
        (tmp_path / name).write_text(content)
    checkpoint = open_checkpoint(tmp_path)
    same(checkpoint, arrays)
    assert checkpoint.layout == "openai"
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    assert checkpoint.tokenizer_directory == tmp_path
    # The folder itself wins once it holds a checkpoint of its own.
    write_tiny(tmp_path / "new", rng)
    for path in (tmp_path / "new").iterdir():
        path.rename(tmp_path / path.name)
    assert open_checkpoint(tmp_path).layout == "huggingface"


def hub_cache(tmp_path, rng, monkeypatch):
    """The published folder structure: snapshots hold links into blobs."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / "0123abc"
    arrays = write_tiny(tmp_path / "files", rng, shard_bytes=SHARD_BYTES)
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "files").iterdir())):
        path.rename(repository / "blobs" / f"blob{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{number}")
    (repository / "refs" / "main").write_text("0123abc\n")
    return repository, snapshot, arrays


def test_huggingface_cache(tmp_path, rng, monkeypatch):
    repository, snapshot, arrays = hub_cache(tmp_path, rng, monkeypatch)
    checkpoint = open_checkpoint("some/model")
    same(checkpoint, arrays)
    assert checkpoint.name == "some/model"
    assert checkpoint.path == snapshot
    same(open_checkpoint(snapshot), arrays)
    (repository / "refs" / "main").unlink()
    same(open_checkpoint("some/model"), arrays)
    (repository / "refs" / "main").write_text("../../etc")
    refuse("some/model", "refs/main: expected a revision, found '../../etc'")
    (repository / "refs" / "main").write_text("fff")
    refuse("some/model", "refs/main names revision fff")
    refuse(
        "some/other",
        "neither a folder nor",
        "if it is a gpt-oss model, run `gptoss-native download",
    )
    refuse("openai/gpt-oss-20b", "; run `gptoss-native download openai/gpt-oss-20b` or pass a folder")


def test_link_out_of_the_cache_is_refused(tmp_path, rng, monkeypatch):
    _, snapshot, _ = hub_cache(tmp_path, rng, monkeypatch)
    (tmp_path / "secret").write_text("{}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "secret")
    refuse("some/model", "config.json: is a link out of the folder", "secret")


def test_cache_folder_environment(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(locate.cache_folder()) == "/home/me/.cache/huggingface/hub"
    for name, tail in (("XDG_CACHE_HOME", "huggingface/hub"), ("HF_HOME", "hub"), ("HF_HUB_CACHE", "")):
        monkeypatch.setenv(name, str(tmp_path))
        assert locate.cache_folder() == tmp_path / tail


def test_demo_is_the_packaged_folder(tmp_path, rng, monkeypatch):
    arrays = write_tiny(tmp_path / "demo", rng)
    monkeypatch.setattr(locate, "DEMO", tmp_path / "demo")
    same(open_checkpoint("demo"), arrays)


@pytest.mark.parametrize(
    "name", ["", "no/such/folder/here", "nowhere", "a\0b", "~nobody-has-this-name", "x" * 5000]
)
def test_nothing_there(name):
    refuse(name, "no checkpoint at")


def test_a_file_is_not_a_folder(tmp_path, rng):
    write_tiny(tmp_path, rng)
    refuse(tmp_path / "model.safetensors", "expected a folder that holds config.json, found a file")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "expected config.json, found none")
    (tmp_path / "model.safetensors").unlink()
    refuse(tmp_path, "expected model.safetensors or model.safetensors.index.json, found neither")


@pytest.mark.parametrize(
    "shard",
    ["../m/model.safetensors", "/etc/x.safetensors", "..", ".", "", "a/b.safetensors", "a\\b.safetensors",
     "a\0.safetensors", ".hidden.safetensors", "n" * 300 + ".safetensors", "config.json", "\n.safetensors"],
)  # fmt: skip
def test_shard_names_must_be_plain(tmp_path, rng, shard):
    write_tiny(tmp_path / "m", rng, shard_bytes=SHARD_BYTES)
    index = tmp_path / "m" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["lm_head.weight"] = shard
    edit_json(index, weight_map=weight_map)
    with pytest.raises(CheckpointError, match=r"must be a plain file name|must be in a \.safetensors file"):
        open_checkpoint(tmp_path / "m")


def test_shard_that_links_out_of_the_folder(tmp_path, rng):
    arrays = write_tiny(tmp_path / "m", rng)
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (tmp_path / "m" / "model.safetensors").symlink_to("../elsewhere.safetensors")
    refuse(tmp_path / "m", "is a link out of the folder", "elsewhere.safetensors")
    (tmp_path / "elsewhere.safetensors").rename(tmp_path / "m" / "real.safetensors")
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors").symlink_to("real.safetensors")
    same(open_checkpoint(tmp_path / "m"), arrays)
    (tmp_path / "link").symlink_to(tmp_path / "m")
    same(open_checkpoint(tmp_path / "link"), arrays)
