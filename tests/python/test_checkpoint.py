"""Opening checkpoints in both layouts and refusing broken ones.

Oracle: the arrays that were written, the tensor names of the published files written out here, and messages.
"""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from gptoss_native.checkpoint import open_checkpoint, reader
from gptoss_native.checkpoint.safetensors import SafetensorsFile
from gptoss_native.checkpoint.safetensors_writer import TensorSource, write_safetensors
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.config import FULL, SLIDING
from gptoss_native.errors import CheckpointError

from tests.checkpoints import SHARD_BYTES, TINY, edit_json, refuse, same, tiny_config, write_tiny

# Layer 1 of TINY as the published files spell it: hidden 32, 4 query and 2 key-value heads, 3 experts of 64.
HUGGING_FACE_LAYER = {
    "model.layers.1.input_layernorm.weight": ("BF16", (32,)),
    "model.layers.1.self_attn.q_proj.weight": ("BF16", (256, 32)),
    "model.layers.1.self_attn.q_proj.bias": ("BF16", (256,)),
    "model.layers.1.self_attn.k_proj.weight": ("BF16", (128, 32)),
    "model.layers.1.self_attn.k_proj.bias": ("BF16", (128,)),
    "model.layers.1.self_attn.v_proj.weight": ("BF16", (128, 32)),
    "model.layers.1.self_attn.v_proj.bias": ("BF16", (128,)),
    "model.layers.1.self_attn.sinks": ("BF16", (4,)),
    "model.layers.1.self_attn.o_proj.weight": ("BF16", (32, 256)),
    "model.layers.1.self_attn.o_proj.bias": ("BF16", (32,)),
    "model.layers.1.post_attention_layernorm.weight": ("BF16", (32,)),
    "model.layers.1.mlp.router.weight": ("BF16", (3, 32)),
    "model.layers.1.mlp.router.bias": ("BF16", (3,)),
    "model.layers.1.mlp.experts.gate_up_proj_blocks": ("U8", (3, 128, 1, 16)),
    "model.layers.1.mlp.experts.gate_up_proj_scales": ("U8", (3, 128, 1)),
    "model.layers.1.mlp.experts.gate_up_proj_bias": ("BF16", (3, 128)),
    "model.layers.1.mlp.experts.down_proj_blocks": ("U8", (3, 32, 2, 16)),
    "model.layers.1.mlp.experts.down_proj_scales": ("U8", (3, 32, 2)),
    "model.layers.1.mlp.experts.down_proj_bias": ("BF16", (3, 32)),
}
OPENAI_LAYER = {
    "block.1.attn.norm.scale": ("BF16", (32,)),
    "block.1.attn.qkv.weight": ("BF16", (512, 32)),
    "block.1.attn.qkv.bias": ("BF16", (512,)),
    "block.1.attn.sinks": ("BF16", (4,)),
    "block.1.attn.out.weight": ("BF16", (32, 256)),
    "block.1.attn.out.bias": ("BF16", (32,)),
    "block.1.mlp.norm.scale": ("BF16", (32,)),
    "block.1.mlp.gate.weight": ("BF16", (3, 32)),
    "block.1.mlp.gate.bias": ("BF16", (3,)),
    "block.1.mlp.mlp1_weight.blocks": ("U8", (3, 128, 1, 16)),
    "block.1.mlp.mlp1_weight.scales": ("U8", (3, 128, 1)),
    "block.1.mlp.mlp1_bias": ("BF16", (3, 128)),
    "block.1.mlp.mlp2_weight.blocks": ("U8", (3, 32, 2, 16)),
    "block.1.mlp.mlp2_weight.scales": ("U8", (3, 32, 2)),
    "block.1.mlp.mlp2_bias": ("BF16", (3, 32)),
}


@pytest.mark.parametrize("layout", ["huggingface", "openai"])
@pytest.mark.parametrize("shard_bytes", [None, SHARD_BYTES])
def test_reads_what_was_written(tmp_path, rng, layout, shard_bytes):
    arrays = write_tiny(tmp_path / "m", rng, layout, shard_bytes)
    checkpoint = open_checkpoint(tmp_path / "m")
    same(checkpoint, arrays)
    assert (checkpoint.layout, checkpoint.config) == (layout, TINY)
    assert checkpoint.nbytes == sum(array.nbytes for array in arrays.values())
    assert (len(checkpoint.files) > 1) == (shard_bytes is not None)


def test_names_and_shapes_of_a_layer(tmp_path, rng):
    for layout, expected in (("huggingface", HUGGING_FACE_LAYER), ("openai", OPENAI_LAYER)):
        write_tiny(tmp_path / layout, rng, layout)
        stored = SafetensorsFile(tmp_path / layout / "model.safetensors").tensors
        found = {name: (info.dtype, info.shape) for name, info in stored.items() if ".1." in name}
        assert found == expected
        tensors = open_checkpoint(tmp_path / layout).tensors
        found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items() if ".1." in name}
        assert found == HUGGING_FACE_LAYER


def test_openai_qkv_rows_are_q_then_k_then_v_without_copies(tmp_path, rng):
    write_tiny(tmp_path / "m", rng, "openai")
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    file = checkpoint.files[0]
    whole = file.array(file.tensors["block.0.attn.qkv.weight"])
    arrays = checkpoint.arrays()
    for name, rows in (("q", slice(0, 256)), ("k", slice(256, 384)), ("v", slice(384, 512))):
        part = arrays[f"model.layers.0.self_attn.{name}_proj.weight"]
        np.testing.assert_array_equal(part, whole[rows])
        assert np.shares_memory(part, whole)


def test_shards_numbered_from_zero(tmp_path, rng):
    """The published 20b has three files called 00000, 00001 and 00002 "of 00002"."""
    arrays = write_tiny(tmp_path, rng, shard_bytes=SHARD_BYTES)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    renamed = {
        name: f"model-{number:05d}-of-{len(names) - 1:05d}.safetensors" for number, name in enumerate(names)
    }
    for old, new in renamed.items():
        (tmp_path / old).rename(tmp_path / new)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    weight_map = {name: renamed[shard] for name, shard in index["weight_map"].items()}
    edit_json(tmp_path / "model.safetensors.index.json", weight_map=weight_map)
    same(open_checkpoint(tmp_path), arrays)


def test_layer_types_come_from_the_config(tmp_path, rng):
    write_tiny(tmp_path, rng)
    edit_json(tmp_path / "config.json", layer_types=[FULL, SLIDING])
    assert open_checkpoint(tmp_path).config.layer_types == (FULL, SLIDING)


def test_random_shapes(tmp_path, rng):
    groups, heads = (int(value) for value in rng.integers(1, 4, 2))
    config = tiny_config(
        hidden_size=32 * int(rng.integers(1, 4)),
        intermediate_size=32 * int(rng.integers(1, 4)),
        num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=groups * heads,
        num_key_value_heads=heads,
        num_local_experts=int(rng.integers(2, 6)),
        vocab_size=int(rng.integers(1, 60)),
        sliding_window=int(rng.integers(1, 300)),
    )
    for layout in ("huggingface", "openai"):
        arrays = write_tiny(tmp_path / layout, rng, layout, int(rng.integers(1, 50_000)), config)
        checkpoint = open_checkpoint(tmp_path / layout)
        same(checkpoint, arrays)
        assert checkpoint.config == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "expected one JSON object, found a list"),
        (b"null", "expected one JSON object"),
        (b'{"hidden_size": NaN}', "NaN is not a JSON number"),
        (b'{"hidden_size": 1, "hidden_size": 2}', "'hidden_size' appears twice"),
        (b"\xff\xfe{\0}\0", "not valid UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * ((1 << 20) + 1), "at most 1,048,576 are expected"),
    ],
)
def test_bad_config_files(tmp_path, rng, content, message):
    write_tiny(tmp_path, rng)
    (tmp_path / "config.json").write_bytes(content)
    refuse(tmp_path, "config.json: ", message)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1, "layer_types": ...}, ["layers.1.", "no place in a gpt-oss model of 1 "]),
        ({"num_hidden_layers": 3, "layer_types": ...}, ["layers.2.input_layernorm.weight is missing"]),
        ({"vocab_size": 41}, ["embed_tokens.weight is BF16 [40, 32], expected BF16 [41, 32]"]),
        ({"vocab_size": 1 << 22}, ["is BF16 [40, 32], expected BF16 [4194304, 32]"]),
        ({"num_local_experts": 4}, ["router.weight is BF16 [3, 32], expected BF16 [4, 32]"]),
        ({"num_attention_heads": 2}, ["q_proj.weight is BF16 [256, 32], expected BF16 [128, 32]"]),
        ({"num_hidden_layers": 4096, "layer_types": ...}, ["layers.2.input_layernorm.weight is missing"]),
    ],
)  # fmt: skip
def test_config_that_does_not_fit_the_tensors(tmp_path, rng, changes, words):
    write_tiny(tmp_path, rng)
    edit_json(tmp_path / "config.json", **changes)
    refuse(tmp_path, tmp_path, *words)


def rewrite(folder, arrays):
    path = folder / "model.safetensors"
    path.unlink(missing_ok=True)
    write_safetensors(path, [TensorSource.from_array(name, array) for name, array in arrays.items()])


def test_missing_extra_and_wrong_tensors(tmp_path, rng):
    arrays = write_tiny(tmp_path, rng)
    rewrite(tmp_path, {name: array for name, array in arrays.items() if name != "model.norm.weight"})
    refuse(tmp_path, "tensor model.norm.weight is missing, expected BF16 [32] among 40 tensors")
    rewrite(tmp_path, arrays | {"model.extra": np.zeros(3, np.uint8)})
    refuse(tmp_path, "tensor 'model.extra' has no place")
    rewrite(tmp_path, arrays | {"model.norm.weight": np.zeros(64, np.uint8)})
    refuse(tmp_path, "model.safetensors: tensor model.norm.weight is U8 [64], expected BF16 [32]")
    rewrite(tmp_path, arrays | {"model.norm.weight": np.zeros((1, 32), np.uint16)})
    refuse(tmp_path, "tensor model.norm.weight is BF16 [1, 32], expected BF16 [32]")


def test_unquantised_experts_are_named(tmp_path, rng):
    """Fine-tunes saved in BF16 hold gate_up_proj [experts, in, out] in place of blocks and scales."""
    arrays = {name: array for name, array in write_tiny(tmp_path, rng).items() if "experts" not in name}
    for layer in range(2):
        arrays[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = np.zeros((3, 32, 128), np.uint16)
    rewrite(tmp_path, arrays)
    edit_json(tmp_path / "config.json", quantization_config=...)
    refuse(tmp_path, "mlp.experts.gate_up_proj' is BF16 [3, 32, 128], but experts must be MXFP4", "quantise")


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_truncated_shards(tmp_path, rng, size):
    write_tiny(tmp_path, rng, shard_bytes=SHARD_BYTES)
    path = sorted(tmp_path.glob("*.safetensors"))[1]
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    refuse(tmp_path, path)


def test_missing_shard(tmp_path, rng):
    write_tiny(tmp_path, rng, shard_bytes=SHARD_BYTES)
    path = sorted(tmp_path.glob("*.safetensors"))[1]
    path.unlink()
    refuse(tmp_path, path, "cannot be opened (No such file or directory)")


@pytest.mark.parametrize("weight_map", [..., None, [], {}, "x", {"a": 1}, {"a": None}, {"a": ["b"]}])
def test_bad_weight_maps(tmp_path, rng, weight_map):
    write_tiny(tmp_path, rng, shard_bytes=SHARD_BYTES)
    edit_json(tmp_path / "model.safetensors.index.json", weight_map=weight_map)
    refuse(tmp_path, "model.safetensors.index.json: ")


def test_index_and_shards_must_agree(tmp_path, rng):
    write_tiny(tmp_path, rng, shard_bytes=SHARD_BYTES)
    path = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    first = next(iter(weight_map))
    other = next(shard for shard in weight_map.values() if shard != weight_map[first])
    edit_json(path, weight_map=weight_map | {first: other})
    refuse(tmp_path, f"tensor '{first}' should be in {other}, found it in {weight_map[first]}")
    edit_json(path, weight_map=weight_map | {"extra": other})
    refuse(tmp_path, f"tensor 'extra' should be in {other}, found it in no file")
    edit_json(path, weight_map={name: shard for name, shard in weight_map.items() if name != first})
    refuse(tmp_path, f"{weight_map[first]}: tensor '{first}' is not in model.safetensors.index.json")


def test_same_tensor_in_two_files(tmp_path, rng):
    write_tiny(tmp_path, rng)
    (tmp_path / "model-2.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    refuse(tmp_path, "is also in model-2.safetensors; delete one")


def test_stale_single_file_beside_an_index(tmp_path, rng):
    write_tiny(tmp_path, rng, shard_bytes=SHARD_BYTES)
    (tmp_path / "model.safetensors").write_bytes(b"")
    refuse(tmp_path, "delete the one that is stale")


@pytest.mark.parametrize(
    "content", ["[]", '{"eos_token_id": 40}', '{"eos_token_id": ["x"]}', '{"bos_token_id": -1}']
)
def test_bad_generation_config(tmp_path, rng, content):
    write_tiny(tmp_path, rng)
    (tmp_path / "generation_config.json").write_text(content)
    refuse(tmp_path, "generation_config.json: ")


def test_opening_reads_no_weights(tmp_path, rng):
    """Sparse files of a terabyte open at once: sizes are compared, nothing is allocated or read."""
    write_tiny(tmp_path / "m", rng)
    size = 2 * (1 << 40)
    header = {"lm_head.weight": {"dtype": "BF16", "shape": [1 << 40], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with open(tmp_path / "m" / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    refuse(tmp_path / "m", "model.embed_tokens.weight is missing")


def test_writer_refuses_to_mix_checkpoints(tmp_path, rng):
    arrays = write_tiny(tmp_path, rng)
    with pytest.raises(CheckpointError, match=r"expected a folder without a checkpoint, found config\.json"):
        write_checkpoint(tmp_path, TINY, arrays)
    del arrays["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"model.norm.weight must be uint16 \[32\], found nothing"):
        write_checkpoint(tmp_path / "new", TINY, arrays)
    refuse(tmp_path / "new", "expected config.json, found none")


def test_too_many_shards(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(reader, "MAX_SHARDS", 2)
    write_tiny(tmp_path, rng, shard_bytes=1)
    refuse(tmp_path, "shards, at most 2 are allowed")


def test_unreadable_folder(tmp_path, rng, monkeypatch):
    write_tiny(tmp_path, rng)

    def refuse_listing(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(reader, "open_files", refuse_listing)
    refuse(tmp_path, f"{tmp_path} cannot be read (Permission denied); check its permissions")


@pytest.mark.parametrize("layout", ["bogus", "OpenAI", None, 5, []])
def test_an_unknown_layout_is_refused_before_anything_is_written(tmp_path, rng, layout):
    with pytest.raises(CheckpointError, match="layout must be 'huggingface' or 'openai', found"):
        write_tiny(tmp_path / "out", rng, layout)
    assert not (tmp_path / "out").exists()
