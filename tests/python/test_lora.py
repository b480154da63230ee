"""LoRA adapters, merged. Oracle: the formula, on arrays as PEFT lays them out; PEFT itself in the extras."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from gptoss_native import LLM, open_checkpoint
from gptoss_native.checkpoint.safetensors_writer import TensorSource, write_safetensors
from gptoss_native.errors import CheckpointError, RequestError
from gptoss_native.parameters.lora import load_lora

from tests.checkpoints import TINY, write_tiny
from tests.python.command import run
from tests.reference.formats import float_to_bf16

E, H, INNER, R = TINY.num_local_experts, TINY.hidden_size, TINY.intermediate_size, 4
PREFIX = "base_model.model.model.layers.1."
SETTINGS = {"peft_type": "LORA", "r": R, "lora_alpha": 6, "bias": "none", "use_dora": False}


def adapter_tensors(rng):
    """Of q_proj, the router and both fused tensors of layer 1, as PEFT names and shapes them."""

    def normal(*shape):
        return rng.normal(0, 0.2, shape).astype(np.float32)

    return {
        PREFIX + "self_attn.q_proj.lora_A.weight": normal(R, H),
        PREFIX + "self_attn.q_proj.lora_B.weight": normal(TINY.query_size, R),
        PREFIX + "mlp.router.lora_A.weight": normal(R, H),
        PREFIX + "mlp.router.lora_B.weight": normal(E, R),
        PREFIX + "mlp.experts.base_layer.lora_A.weight": normal(E * R, H),
        PREFIX + "mlp.experts.base_layer.lora_B.weight": normal(2 * INNER, R * E),
        PREFIX + "mlp.experts.lora_A.weight": normal(E * R, INNER),
        PREFIX + "mlp.experts.lora_B.weight": normal(H, R * E),
    }


def write_adapter(folder, tensors, **changes):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **changes}))
    sources = [
        TensorSource(name, "F32", array.shape, lambda a=array: [np.ascontiguousarray(a)])
        for name, array in tensors.items()
    ]
    write_safetensors(folder / "adapter_model.safetensors", sources)
    return folder


def expected(tensors, scale):
    """Parameter -> what is added, float64 [out, in] or [experts, out, in]."""
    t = {name.removeprefix(PREFIX): array.astype(np.float64) for name, array in tensors.items()}
    fused = {}
    for name, key in (("gate_up_proj", "mlp.experts.base_layer"), ("down_proj", "mlp.experts")):
        a, b = t[key + ".lora_A.weight"], t[key + ".lora_B.weight"]
        fused[f"model.layers.1.mlp.experts.{name}"] = np.stack(
            [sum(np.outer(b[:, r * E + e], a[e * R + r]) for r in range(R)) for e in range(E)]
        )
    dense = {
        f"model.layers.1.{name}.weight": t[f"{name}.lora_B.weight"] @ t[f"{name}.lora_A.weight"]
        for name in ("self_attn.q_proj", "mlp.router")
    }
    return {name: scale * delta for name, delta in {**dense, **fused}.items()}


@pytest.mark.parametrize(
    ("changes", "scale"),
    [({}, 6 / R), ({"use_rslora": True}, 6 / 2), ({"lora_alpha": 0.5}, 0.5 / R)],
    ids=["plain", "rank-stabilised", "small"],
)
def test_an_adapter_adds_what_the_formula_says(tmp_path, rng, changes, scale):
    tensors = adapter_tensors(rng)
    adapter = load_lora(write_adapter(tmp_path / "lora", tensors, **changes), TINY)
    found = {name: [] for name in expected(tensors, scale)}
    for name, delta in adapter.deltas():
        found[re.sub(r"\.experts\.\d+\.", ".experts.", name)].append(delta)
    for name, delta in expected(tensors, scale).items():
        ours = np.stack(found[name]) if ".experts." in name else found[name][0]
        np.testing.assert_allclose(ours, delta, rtol=1e-5, atol=1e-6, err_msg=name)


def test_alpha_may_differ_by_module(tmp_path, rng):
    tensors = adapter_tensors(rng)
    folder = write_adapter(tmp_path / "lora", tensors, alpha_pattern={"q_proj": 20, "layers.0.mlp.router": 1})
    scales = {matrix.name: matrix.scale for matrix in load_lora(folder, TINY).matrices}
    assert scales["model.layers.1.self_attn.q_proj.weight"] == 20 / R
    assert scales["model.layers.1.mlp.router.weight"] == 6 / R


def test_merging_is_an_edit_whose_error_is_said(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    tensors = adapter_tensors(rng)
    folder = write_adapter(tmp_path / "lora", tensors)
    with LLM(tmp_path / "model", device="cpu", max_model_len=64) as llm:
        before = {name: p.decode().astype(np.float64) for name, p in llm.parameters.items()}
        with llm.edit("taught") as e:
            report = e.merge_lora(folder, strength=0.5)
        deltas = expected(tensors, 0.5 * 6 / R)
        squared = energy = 0.0
        for name, old in before.items():
            now = llm.parameters[name].decode().astype(np.float64)
            wanted = old + deltas.get(name, 0)
            if name not in deltas:
                np.testing.assert_array_equal(now, old, err_msg=name)
                continue
            squared += np.sum((now - wanted) ** 2)
            energy += np.sum(wanted**2)
            if ".experts." not in name:
                rounded = float_to_bf16(wanted)
                found = llm.parameters[name].packed()
                assert (found != rounded).mean() < 1e-3, name  # but for ties that float32 decides otherwise
        assert report.relative_error == pytest.approx(np.sqrt(squared / energy), rel=1e-3)
        assert 0.01 < report.relative_error < 0.2
        llm.undo()
        for name, old in before.items():
            np.testing.assert_array_equal(llm.parameters[name].decode(), old)


def test_the_command_merges_too(tmp_path, rng, capsys):
    write_tiny(tmp_path / "model", rng)
    folder = write_adapter(tmp_path / "lora", adapter_tensors(rng))
    out = tmp_path / "out"
    code, text, _ = run(capsys, "edit", str(tmp_path / "model"), "--lora", str(folder), "--out", str(out))
    assert code == 0
    assert "relative error" in text
    with LLM(tmp_path / "model", device="cpu", max_model_len=64) as llm:
        with llm.edit() as e:
            e.merge_lora(folder)
        found = open_checkpoint(out).arrays()
        blocks, scales = llm.layers[1].down_proj.packed()
        np.testing.assert_array_equal(found["model.layers.1.mlp.experts.down_proj_blocks"], blocks)
        np.testing.assert_array_equal(found["model.layers.1.mlp.experts.down_proj_scales"], scales)


def test_what_is_no_adapter_of_this_model_is_refused(tmp_path, rng):
    good = adapter_tensors(rng)
    q_a, q_b = PREFIX + "self_attn.q_proj.lora_A.weight", PREFIX + "self_attn.q_proj.lora_B.weight"
    up = PREFIX + "mlp.experts.lora_A.weight"
    nan = good[q_a].copy()
    nan[1, 1] = np.nan

    def without(name):
        return {key: array for key, array in good.items() if key != name}

    cases = [
        (without(q_b), {}, "has only lora_A"),
        ({**good, q_a: good[q_a][:, 1:]}, {}, r"the model's weight is \[256, 32\]"),
        ({**good, up: good[up][:-1]}, {}, "which fit no tensor of 3 experts"),
        ({**good, q_a: nan}, {}, "is empty or holds NaN"),
        ({**good, "base_model.model.x": good[q_a]}, {}, "is no LoRA of attention"),
        (
            {q_a.replace("layers.1", "layers.2"): good[q_a], q_b.replace("layers.1", "layers.2"): good[q_b]},
            {},
            "2 layers",
        ),
        ({}, {}, "holds no tensors"),
        (good, {"peft_type": "LOHA"}, "expected 'LORA'"),
        (good, {"use_dora": True}, "use_dora is True"),
        (good, {"bias": "all"}, "bias is 'all'"),
        (good, {"lora_alpha": "x"}, "lora_alpha must be a number"),
        (good, {"lora_alpha": 10**400}, "lora_alpha must be a number"),
        (good, {"use_rslora": "false"}, "use_rslora must be true or false, found 'false'"),
        (good, {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', only true, false or"),
        (good, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is"),
        (good, {"init_lora_weights": "olora"}, "init_lora_weights is"),
        (good, {"init_lora_weights": 1}, "init_lora_weights is 1"),
        (good, {"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is"),
        (good, {"use_qalora": True}, "use_qalora is True"),
        (good, {"use_bdlora": {"nblocks": 2}}, "use_bdlora is"),
        (good, {"arrow_config": {"top_k": 3}}, "arrow_config is"),
        (good, {"kasa_config": {"beta": 1e-4}}, "kasa_config is"),
        (good, {"monteclora_config": {"num_samples": 2}}, "monteclora_config is"),
        (good, {"corda_config": {"corda_method": "ipm"}}, "corda_config is"),
        (good, {"use_whatever_comes": True}, "use_whatever_comes is True"),
        (good, {"alpha_pattern": {r"(\w+\.?)+!": 3}}, "expected names with at most 3"),
        (good, {"alpha_pattern": {".*.*.*.*q_proj": 3}}, "expected names with at most 3"),
        (good, {"alpha_pattern": {"q_proj": None}}, "alpha_pattern must be a number"),
        (good, {"alpha_pattern": {str(n): 1 for n in range(513)}}, "at most 512 entries"),
        (good, {"alpha_pattern": [1]}, "alpha_pattern must be an object"),
    ]
    for number, (tensors, changes, words) in enumerate(cases):
        folder = write_adapter(tmp_path / str(number), tensors, **changes)
        with pytest.raises(CheckpointError, match=words):
            load_lora(folder, TINY)
    with pytest.raises(CheckpointError, match="is no folder"):
        load_lora(tmp_path / "nowhere", TINY)
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", device="cpu", max_model_len=64) as llm:
        with pytest.raises(CheckpointError), llm.edit() as e:
            e.merge_lora(tmp_path / "nowhere")
        with pytest.raises(RequestError, match="is not open"):
            llm.edit().merge_lora(tmp_path / "0")
        assert llm.edits == []


def test_patterns_fit_the_names_that_peft_gives(tmp_path, rng):
    """Target parameters are called by the tensor, linear layers by the module; PEFT itself: check_lora."""
    for number, (pattern, fits) in enumerate(
        {
            "mlp.experts.gate_up_proj": ["mlp.experts.gate_up_proj"],
            "experts.down_proj": ["mlp.experts.down_proj"],
            "experts": [],
            "mlp.router.weight": ["mlp.router.weight"],
            "mlp.router": [],
            r"layers\.\d+\.self_attn\.q_proj": ["self_attn.q_proj.weight"],
            "self_attn.q_proj.weight": [],
            r".*\.mlp\..*": ["mlp.router.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            "proj": [],
        }.items()
    ):
        folder = write_adapter(tmp_path / str(number), adapter_tensors(rng), alpha_pattern={pattern: 64})
        matrices = load_lora(folder, TINY).matrices
        assert len(matrices) == 4
        assert sorted(m.name for m in matrices if m.scale == 64 / R) == sorted(
            "model.layers.1." + name for name in fits
        ), pattern
        assert {m.scale for m in matrices} <= {64 / R, 6 / R}
    targets = {"target_parameters": ["q_proj.weight"], "alpha_pattern": {"self_attn.q_proj.weight": 64}}
    folder = write_adapter(tmp_path / "tensors", adapter_tensors(rng), **targets)
    assert [m.name for m in load_lora(folder, TINY).matrices if m.scale == 64 / R] == [
        "model.layers.1.self_attn.q_proj.weight"
    ]


def test_settings_at_rest_are_taken(tmp_path, rng):
    """As PEFT 0.21 saves them, all it knows of included."""
    settings = {
        "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
        "base_model_name_or_path": "openai/gpt-oss-20b", "bias": "none", "corda_config": None,
        "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": "gaussian", "kasa_config": None,
        "layer_replication": None, "layers_pattern": None, "layers_to_transform": [1], "loftq_config": {},
        "lora_bias": False, "lora_dropout": 0.05, "lora_ga_config": None, "megatron_config": None,
        "megatron_core": "megatron.core", "modules_to_save": None, "monteclora_config": None,
        "peft_version": "0.21.0", "qalora_group_size": 16, "rank_pattern": {"q_proj": 4}, "revision": None,
        "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"],
        "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_bdlora": None, "use_dora": False,
        "use_qalora": False, "use_rslora": False, "velora_config": None,
    }  # fmt: skip
    folder = write_adapter(tmp_path / "lora", adapter_tensors(rng), **settings)
    assert len(load_lora(folder, TINY).matrices) == 4


def test_a_pickle_is_named_as_what_it_is(tmp_path, rng):
    folder = write_adapter(tmp_path / "lora", adapter_tensors(rng))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"save the adapter as adapter_model\.safetensors"):
        load_lora(folder, TINY)
    with pytest.raises(RequestError, match="a path must be a text or a Path, found None"):
        load_lora(None, TINY)


def test_the_command_applies_a_patch_by_force(tmp_path, capsys):
    """Onto other numbers than those it was made from; without, it says how."""
    patch = str(tmp_path / "p")
    assert run(capsys, "edit", "demo", "--set", "layers.0.sinks=0", "--save-patch", patch)[0] == 0
    again = ["edit", "demo", "--set", "layers.0.sinks=1", "--patch", patch, "--out", str(tmp_path / "out")]
    code, _, err = run(capsys, *again)
    assert code == 1
    assert "or pass --force" in err
    assert run(capsys, *again, "--force")[0] == 0
    sinks = open_checkpoint(tmp_path / "out").arrays()["model.layers.0.self_attn.sinks"]
    np.testing.assert_array_equal(sinks, 0)
