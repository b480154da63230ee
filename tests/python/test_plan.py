"""Memory plans and what inspect prints. Oracle: the published sizes, and counts worked out by hand here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from gptoss_native import _native
from gptoss_native.checkpoint import open_checkpoint
from gptoss_native.cli.inspect import inspect_checkpoint, render_inspect, render_inspect_json
from gptoss_native.cli.plan import render_plan, render_plan_json
from gptoss_native.cli.text import amount, count, table
from gptoss_native.config import FULL, KNOWN_CONFIGS, SLIDING
from gptoss_native.errors import RequestError
from gptoss_native.host_memory import HostMemory, host_memory
from gptoss_native.plan import activation_bytes, native_config, plan

from tests.checkpoints import TINY, random_arrays, tiny_config, write_tiny

SMALL, LARGE = KNOWN_CONFIGS["openai/gpt-oss-20b"], KNOWN_CONFIGS["openai/gpt-oss-120b"]


@pytest.mark.parametrize(
    ("config", "size", "parameters"),
    [(SMALL, 13_761_264_768, 20_914_757_184), (LARGE, 65_248_815_744, 116_829_156_672)],
)
def test_weights_of_the_published_models(config, size, parameters):
    """Beside the files, a CPU has lm_head once more: rows of 23 groups of 104 bytes, and 8."""
    found = plan(config, context=1)
    more = found.weights["lm_head in 6 bits"]
    assert (found.weight_bytes - more, found.parameters) == (size, parameters)
    assert more == 201_088 * (23 * 104 + 8)
    assert found.weights["embedding"] == found.weights["lm_head"] == 201_088 * 2880 * 2
    assert found.weights["norms"] == (2 * config.num_hidden_layers + 1) * 2880 * 2


def test_cache_of_20b_at_its_longest_context_is_3_gib():
    """12 full layers x 131,072 tokens x 8 heads x 64 x 2 (keys, values) x 2 bytes."""
    found = plan(SMALL, context=131_072, numerics="fast")
    assert found.kv_full_bytes == 12 * 131_072 * 8 * 64 * 2 * 2 == 3 * 2**30
    # 127 tokens before and 512 in the step touch at most 21 pages of 32.
    assert found.window_pages == 21
    assert found.kv_window_bytes == 12 * 21 * 32 * 8 * 64 * 2 * 2
    assert plan(SMALL, context=131_072).kv_full_bytes == 2 * found.kv_full_bytes


def test_pages_are_counted_per_sequence_and_rounded_up():
    found = plan(TINY, context=33, sequences=3, page_size=16, max_batch_tokens=20)
    assert found.full_pages == 3 * 3
    assert found.window_pages == 8  # 20 new tokens and 3 x 7 before them
    page = 2 * 16 * 2 * 64 * 4
    assert (found.kv_full_bytes, found.kv_window_bytes) == (9 * page, 8 * page)
    short = plan(TINY, context=5, page_size=16, max_batch_tokens=20)
    assert (short.full_pages, short.window_pages) == (1, 1)


def test_layer_types_decide_the_pools():
    full = plan(tiny_config(), context=100).kv_full_bytes
    config = TINY.__class__(**TINY.to_dict() | {"layer_types": (FULL, FULL)})
    assert plan(config, context=100).kv_full_bytes == 2 * full
    assert plan(config, context=100).kv_window_bytes == 0
    config = TINY.__class__(**TINY.to_dict() | {"layer_types": (SLIDING, SLIDING)})
    assert plan(config, context=100).kv_full_bytes == 0


def test_total_is_the_sum_and_decides_whether_it_fits(monkeypatch):
    found = plan(TINY, context=64, max_batch_tokens=7)
    # Of two layers, a vector 32 wide and a control for each of three experts.
    assert found.intervention_bytes == 2 * (32 * 4 + 3 * 8)
    parts = (
        found.weight_bytes + found.kv_full_bytes + found.kv_window_bytes + activation_bytes(TINY, 7) + 40 * 4
    ) + found.intervention_bytes
    assert found.total_bytes == parts
    for available, fits in ((parts, True), (parts - 1, False)):
        monkeypatch.setattr("gptoss_native.plan.host_memory", lambda: HostMemory(1 << 40, available))  # noqa: B023
        checked = plan(TINY, context=64, max_batch_tokens=7)
        assert checked.fits is fits
        assert ("does not fit" in render_plan("x", checked)) is not fits
    monkeypatch.setattr("gptoss_native.plan.host_memory", lambda: None)
    assert plan(TINY, context=64).fits is None
    assert "needs a machine with" in render_plan("x", plan(TINY, context=64))


@pytest.mark.parametrize(
    ("context", "gib", "advice"),
    [
        (131_072, 62, "lower --context or --sequences"),
        (
            8192,
            20,
            "the weights alone are 61.22 GiB, 20.00 GiB of 1.00 TiB are available here; use openai",
        ),
        (131_072, 20, "use a machine with at least 79.33 GiB free"),
    ],
)
def test_advice_for_a_model_that_does_not_fit(monkeypatch, context, gib, advice):
    monkeypatch.setattr("gptoss_native.plan.host_memory", lambda: HostMemory(1 << 40, gib << 30))
    text = render_plan("x", plan(KNOWN_CONFIGS["openai/gpt-oss-120b"], context=context, sequences=2))
    assert "does not fit: " in text
    assert advice in text


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_activations_are_what_the_native_model_allocates(rng, numerics):
    """Oracle: the native model's own count."""
    backend = _native.Backend(device="cpu", threads=1)
    arrays = random_arrays(TINY, rng)
    for rows in (1, 100, int(rng.integers(2, 2000))):
        native = _native.Model(backend, native_config(TINY), arrays, numerics, rows)
        assert activation_bytes(TINY, rows, numerics) == native.activation_bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 0}, "context must be a whole number from 1 to 131,072, found 0"),
        ({"context": 131_073}, "found 131073"),
        ({"context": 1.5}, "found 1.5"),
        ({"context": True}, "found True"),
        ({"context": 1, "sequences": 0}, "sequences must be"),
        ({"context": 1, "page_size": -1}, "page_size must be"),
        ({"context": 1, "max_batch_tokens": "1"}, "max_batch_tokens must be"),
        ({"context": 1, "numerics": "fp8"}, "numerics must be one of exact, fast, found 'fp8'"),
        ({"context": 1, "numerics": ["fast"]}, "found ['fast']"),
        (
            {"context": 1, "device": "tpu"},
            "device is 'tpu', expected auto, cpu or cuda",
        ),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(RequestError) as caught:
        plan(SMALL, **settings)
    assert message in str(caught.value)


def test_plan_as_text_and_json():
    found = plan(SMALL, context=8192)
    text = render_plan("openai/gpt-oss-20b", found)
    assert "openai/gpt-oss-20b: 20.91 B parameters, 24 layers, 4 of 32 experts" in text
    assert "10,165,616,640" in text
    assert f"{found.total_bytes:,}" in text
    values = json.loads(render_plan_json("openai/gpt-oss-20b", found))
    assert values["weight_bytes"] == sum(values["weights"].values()) == 13_761_264_768 + 482_611_200
    assert values["kv_cache"]["full_pages_per_layer"] == 256
    assert values["total_bytes"] == found.total_bytes
    assert values["config"]["num_hidden_layers"] == 24


def fake_host(root, meminfo, group=None):
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(meminfo)
    if group is not None:
        folder = root / "sys/fs/cgroup"
        folder.mkdir(parents=True)
        for name, text in group.items():
            (folder / name).write_text(text)
    return host_memory(root)


MEMINFO = "MemTotal:       2000 kB\nMemFree:  10 kB\nMemAvailable:   1500 kB\nHugePages_Total:       0\n"


def test_host_memory(tmp_path):
    assert host_memory(tmp_path / "nowhere") is None
    for number, (meminfo, group, expected) in enumerate(
        [
            (MEMINFO, None, (2000, 1500)),
            (MEMINFO, {"memory.max": "max\n"}, (2000, 1500)),
            (MEMINFO, {"memory.max": f"{4000 * 1024}"}, (2000, 1500)),
            (MEMINFO, {"memory.max": f"{1000 * 1024}"}, (1000, 1000)),
            (
                MEMINFO,
                {
                    "memory.max": f"{1000 * 1024}",
                    "memory.current": f"{700 * 1024}",
                    "memory.stat": f"anon 1\nfile {300 * 1024}\n",
                },
                (1000, 600),
            ),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        found = fake_host(tmp_path / str(number), meminfo, group)
        assert found == HostMemory(expected[0] * 1024, expected[1] * 1024)
    (tmp_path / "odd").mkdir()
    assert fake_host(tmp_path / "odd", "MemTotal: x kB\n") is None


def test_inspect(tmp_path, rng):
    write_tiny(tmp_path, rng, shard_bytes=40_000)
    checkpoint = open_checkpoint(tmp_path)
    values = json.loads(render_inspect_json(checkpoint))
    assert values == json.loads(json.dumps(inspect_checkpoint(checkpoint)))
    assert values["bytes"] == checkpoint.nbytes == sum(values["bytes_by_dtype"].values())
    # Per layer: q, k, v, o and biases, sinks; two norms; router; three experts' gate_up and down and biases.
    attention = (256 + 128 + 128) * 33 + 32 * 257 + 4
    experts = 3 * (128 * 33 + 32 * 65)
    outside = 2 * 40 * 32 + 32
    assert values["parameters"] == outside + 2 * (attention + 64 + 3 * 33 + experts)
    assert values["active_parameters"] == 41 * 32 + 32 + 2 * (attention + 64 + 3 * 33 + experts * 2 // 3)
    kinds = {kind["name"]: kind for kind in values["tensors"]}
    assert kinds["model.layers.*.self_attn.q_proj.weight"]["count"] == 2
    assert kinds["model.layers.*.mlp.experts.down_proj_blocks"]["shape"] == [3, 32, 2, 16]
    text = render_inspect(checkpoint)
    assert "2: 1 sliding (8 tokens), 1 full" in text
    assert "2 of 3, MXFP4" in text
    assert "model.layers.*.mlp.experts.down_proj_blocks" in text
    assert ".layers.0." not in text


def test_text():
    assert [amount(size) for size in (0, 1023, 1024, 3 << 30, 5 << 50)] == [
        "0 B", "1023 B", "1.00 KiB", "3.00 GiB", "5120.00 TiB",
    ]  # fmt: skip
    assert [count(number) for number in (999, 1000, 2_356_000, 20_914_757_184)] == [
        "999", "1.00 K", "2.36 M", "20.91 B",
    ]  # fmt: skip
    assert table(("a", "bb"), [("x", "1"), ("yy", "22")], right=(1,)) == "a   bb\n--  --\nx    1\nyy  22"


def test_interventions_take_a_place_a_sequence_and_products_a_token():
    """Of 120b: 36 layers, 2880 wide, 128 experts; adapters of rank 16 on 7 matrices a layer and lm_head."""
    found = plan(LARGE, context=100, sequences=16, max_batch_tokens=8192)
    assert found.intervention_bytes == 16 * 36 * (2880 * 4 + 128 * 8)
    adapted = plan(LARGE, context=100, sequences=16, max_batch_tokens=8192, lora_rank=16)
    added = 16 * 24 * (36 * 7 + 1) + 8192 * 4 * 16 * 4
    assert adapted.total_bytes - found.total_bytes == added
    with pytest.raises(RequestError, match="lora_rank must be a whole number from 0 to"):
        plan(LARGE, context=1, lora_rank=-1)


def test_steering_takes_what_was_planned_however_long_a_step_may_be():
    """Oracle: the memory that the process takes, in a process of its own."""
    taken = subprocess.run([sys.executable, "-c", STEERED], capture_output=True, text=True, timeout=300)
    assert taken.returncode == 0, taken.stderr
    assert int(taken.stdout) < 16 << 20  # a table of a row for each token of a step would take 192 MiB


STEERED = """
import numpy as np
from gptoss_native import LLM, SamplingParams, SteeringVector

def taken():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

llm = LLM("demo", device="cpu", max_model_len=64, max_num_batched_tokens=1 << 16, max_num_seqs=4)
params = {"max_tokens": 2, "temperature": 0}
llm.generate([[1, 2]], SamplingParams(**params))
before = taken()
vector = SteeringVector({layer: np.full(llm.config.hidden_size, 1e-3) for layer in range(4)})
llm.generate([[1, 2]], SamplingParams(**params, steering=vector))
print(taken() - before)
"""
