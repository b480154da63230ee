"""LoRA adapters at run time.

Oracle: the float64 reference with merged weights; for requests beside them, their answers alone, bit for
bit; PEFT itself in the extras.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from gptoss_native import LLM, ExpertControl, SamplingParams, SteeringVector, open_checkpoint
from gptoss_native import _native as native_module
from gptoss_native.checkpoint.safetensors_writer import TensorSource, write_safetensors
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.errors import CheckpointError, GptossError, RequestError

from tests.checkpoints import TINY, write_tiny
from tests.compare import assert_close
from tests.model.random_model import native_config, random_arrays, random_config
from tests.reference import model as reference

SETTINGS = {"max_model_len": 96, "page_size": 16, "max_num_batched_tokens": 24, "max_num_seqs": 4}
DEVICES = [device for device in native_module.devices() if device != "cuda"]
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "router", "gate_up_proj", "down_proj", "lm_head")


def modules_of(config):
    """PEFT's module, parameter, (out, in), and whether each expert has its own."""
    hidden, inner = config.hidden_size, config.intermediate_size
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        for name, out in (
            ("q", config.query_size),
            ("k", config.key_value_size),
            ("v", config.key_value_size),
        ):
            yield f"{at}self_attn.{name}_proj", f"{at}self_attn.{name}_proj.weight", (out, hidden), False
        yield f"{at}self_attn.o_proj", f"{at}self_attn.o_proj.weight", (hidden, config.query_size), False
        yield f"{at}mlp.router", f"{at}mlp.router.weight", (config.num_local_experts, hidden), False
        up, down = f"{at}mlp.experts.gate_up_proj", f"{at}mlp.experts.down_proj"
        yield f"{at}mlp.experts.base_layer", up, (2 * inner, hidden), True
        yield f"{at}mlp.experts", down, (hidden, inner), True
    yield "lm_head", "lm_head.weight", (config.vocab_size, hidden), False


def write_adapter(folder, rng, config, kinds=KINDS, size=0.3):
    """A random adapter, its rank drawn for each matrix; returns what it adds, by parameter, float64."""
    folder.mkdir()
    alpha, tensors, added, experts = 3.0, {}, {}, config.num_local_experts
    for module, parameter, (out, width), of_experts in modules_of(config):
        if not any(kind in parameter for kind in kinds):
            continue
        rank = int(rng.integers(1, 9))
        parts = experts if of_experts else 1
        a = rng.normal(0, size, (parts * rank, width)).astype(np.float32)
        b = rng.normal(0, size / np.sqrt(alpha), (out, rank * parts)).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        a, b = a.astype(np.float64), b.astype(np.float64)
        deltas = [
            alpha / rank * sum(np.outer(b[:, r * parts + e], a[e * rank + r]) for r in range(rank))
            for e in range(parts)
        ]
        added[parameter] = np.stack(deltas) if of_experts else deltas[0]
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    sources = [
        TensorSource(name, "F32", array.shape, lambda array=array: [array]) for name, array in tensors.items()
    ]
    write_safetensors(folder / "adapter_model.safetensors", sources)
    return list(added.items())


def is_free(memory):
    """The engine's thread may be about to end, and what it last did with it."""
    for _ in range(100):
        gc.collect()
        if memory() is None:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids=lambda kinds: "+".join(kinds))
def test_logits_are_those_of_the_merged_model(tmp_path, rng, kinds):
    """Exact numerics against float64. A case in which rounding could flip an expert is drawn again."""
    for attempt in range(20):
        config = random_config(rng, num_local_experts=8, num_experts_per_tok=3)
        arrays, tokens = random_arrays(rng, config), rng.integers(0, config.vocab_size, 20).tolist()
        folder = tmp_path / f"lora{attempt}"
        added, trace = write_adapter(folder, rng, config, kinds), reference.Trace()
        expected = reference.forward(native_config(config), arrays, tokens, trace, added=added)
        if trace.router_margin > 1e-4:
            break
    write_checkpoint(tmp_path / "model", config, arrays)
    with LLM(tmp_path / "model", device="cpu", numerics="exact", **SETTINGS) as llm:
        llm.adapters.load("mine", folder)
        assert_close(llm.logits(tokens, adapter="mine"), expected, 2e-5, f"logits with {kinds}")
        plain = reference.forward(native_config(config), arrays, tokens)
        assert_close(llm.logits(tokens), plain, 1e-5, "logits without")
        assert np.abs(expected - plain).max() > 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_requests_beside_it_keep_every_bit(tmp_path, rng, device):
    """Eight requests in a batch for four: none, two adapters, one with steering; all against each alone."""
    write_tiny(tmp_path / "model", rng)
    for name in ("a", "b"):
        write_adapter(tmp_path / name, rng, TINY)
    with LLM(tmp_path / "model", device=device, **SETTINGS) as llm:
        prompts = [rng.integers(0, 40, int(rng.integers(18, 40))).tolist() for _ in range(4)]
        prompts += [[*prompt[:17], 1] for prompt in prompts]  # beginnings that others could share
        base = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "logprobs": 20}
        before = [llm.generate([p], SamplingParams(**base))[0].outputs[0] for p in prompts]
        for name in ("a", "b"):
            llm.adapters.load(name, tmp_path / name)
        steered = {"adapter": "a", "steering": SteeringVector({0: rng.normal(0, 0.5, TINY.hidden_size)}),
                   "experts": ExpertControl(mask=[1])}  # fmt: skip
        kinds = [{}, {"adapter": "a"}, {"adapter": "b"}, steered]
        chosen = [kinds[i] for i in (0, 1, 2, 3, 2, 0, 1, 3)]
        params = [SamplingParams(**base, **kind) for kind in chosen]
        together = [output.outputs[0] for output in llm.generate(prompts, params)]
        for prompt, param, found, plain in zip(prompts, params, together, before, strict=True):
            alone = llm.generate([prompt], param)[0].outputs[0]
            assert (found.token_ids, found.logprobs) == (alone.token_ids, alone.logprobs)
            if param.adapter is None:
                assert (found.token_ids, found.logprobs) == (plain.token_ids, plain.logprobs)
            else:
                assert found.logprobs != plain.logprobs, "the adapter changes nothing"
        with LLM(tmp_path / "model", device=device, **SETTINGS) as fresh:
            fresh.adapters.load("other name", tmp_path / "b")
            param = SamplingParams(**base, adapter="other name")
            alone = fresh.generate([prompts[2]], param)[0].outputs[0]
            assert (together[2].token_ids, together[2].logprobs) == (alone.token_ids, alone.logprobs)


def test_fast_numerics_are_close_to_the_merged_model(tmp_path, rng):
    """On every device; bf16 and 8-bit activations round, adapters do not add to that."""
    config = random_config(rng, num_local_experts=4, num_experts_per_tok=4)
    arrays, tokens = random_arrays(rng, config), rng.integers(0, config.vocab_size, 20).tolist()
    added = write_adapter(tmp_path / "lora", rng, config, size=0.1)
    write_checkpoint(tmp_path / "model", config, arrays)
    expected = reference.forward(native_config(config), arrays, tokens, added=added)
    plain = reference.forward(native_config(config), arrays, tokens)
    for device in DEVICES:
        with LLM(tmp_path / "model", device=device, numerics="fast", **SETTINGS) as llm:
            llm.adapters.load("mine", tmp_path / "lora")
            off = np.linalg.norm(llm.logits(tokens, adapter="mine") - expected) / np.linalg.norm(expected)
            usual = np.linalg.norm(llm.logits(tokens) - plain) / np.linalg.norm(plain)
            changed = np.linalg.norm(expected - plain) / np.linalg.norm(expected)
            assert off < 2 * usual + 0.01 < changed / 3, (device, off, usual, changed)


def test_they_are_listed_and_dropped_and_loaded_again(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    write_adapter(tmp_path / "a", rng, TINY, ("q_proj", "down_proj"))
    write_adapter(tmp_path / "b", rng, TINY)
    tokens = rng.integers(0, 40, 20).tolist()
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        assert dict(llm.adapters) == {}
        loaded = llm.adapters.load("x", tmp_path / "a")
        assert list(llm.adapters) == ["x"]
        assert llm.adapters["x"] is loaded
        assert loaded.path == str(tmp_path / "a")
        assert len(loaded.parameters) == 2 * TINY.num_hidden_layers
        plain, with_a = llm.logits(tokens), llm.logits(tokens, adapter="x")
        memory = weakref.ref(loaded.native)
        llm.adapters.drop("x")
        assert list(llm.adapters) == []
        del loaded
        gc.collect()
        assert memory() is None, "a dropped adapter that nobody uses keeps its memory"
        with pytest.raises(RequestError, match="adapter 'x' is not loaded, the loaded ones are: none"):
            llm.logits(tokens, adapter="x")
        llm.adapters.load("x", tmp_path / "b")
        with_b = llm.logits(tokens, adapter="x")
        assert np.abs(with_a - with_b).max() > 1e-3
        llm.adapters.load("y", tmp_path / "a")
        np.testing.assert_array_equal(llm.logits(tokens, adapter="y"), with_a)
        np.testing.assert_array_equal(llm.logits(tokens), plain)


def test_requests_under_way_keep_a_dropped_adapter(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    write_adapter(tmp_path / "a", rng, TINY)
    prompt = rng.integers(0, 40, 12).tolist()
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, adapter="x")
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        memory = weakref.ref(llm.adapters.load("x", tmp_path / "a").native)
        expected = llm.generate([prompt], params)[0].outputs[0].token_ids
        stream = llm.stream(prompt, params)
        for _ in range(5):
            next(stream)
        llm.adapters.drop("x")
        found = list(stream)[-1].output.token_ids
        assert found == expected
        del stream
        llm.logits(prompt)  # any later step
        assert is_free(memory)


def test_more_adapters_than_slots_take_turns(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    prompt, expected = rng.integers(0, 40, 20).tolist(), []
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        for n in range(9):
            write_adapter(tmp_path / str(n), rng, TINY, ("o_proj",) if n % 2 else KINDS)
            llm.adapters.load(str(n), tmp_path / str(n))
            expected.append(llm.logits(prompt, adapter=str(n))[-1])
        threads, found = [], {}
        for n in rng.permutation(np.repeat(np.arange(9), 4)).tolist():
            threads.append(
                threading.Thread(
                    target=lambda n=n: found.setdefault(n, []).append(llm.logits(prompt, adapter=str(n))[-1])
                )
            )
            threads[-1].start()
        for thread in threads:
            thread.join()
        for n, rows in found.items():
            for row in rows:
                np.testing.assert_array_equal(row, expected[n], err_msg=str(n))


def test_edits_of_the_model_and_adapters_add_up(tmp_path, rng):
    config = random_config(rng, num_local_experts=4, num_experts_per_tok=4)
    arrays, tokens = random_arrays(rng, config), rng.integers(0, config.vocab_size, 16).tolist()
    write_checkpoint(tmp_path / "model", config, arrays)
    added = write_adapter(tmp_path / "a", rng, config)
    with LLM(tmp_path / "model", device="cpu", numerics="exact", **SETTINGS) as llm:
        llm.adapters.load("x", tmp_path / "a")
        before = llm.logits(tokens, adapter="x")
        with llm.edit("half") as edit:
            edit.scale("model.layers.0.self_attn.o_proj.weight", 0.5)
        half = dict(arrays)
        half["model.layers.0.self_attn.o_proj.weight"] = llm.parameters[
            "model.layers.0.self_attn.o_proj.weight"
        ].packed()
        expected = reference.forward(native_config(config), half, tokens, added=added)
        assert_close(llm.logits(tokens, adapter="x"), expected, 2e-5, "an edited model with its adapter")
        llm.undo()
        np.testing.assert_array_equal(llm.logits(tokens, adapter="x"), before)


def test_what_cannot_be_loaded_is_refused(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    write_adapter(tmp_path / "a", rng, TINY, ("q_proj",))
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        llm.adapters.load("x", tmp_path / "a")
        for name in ("", " ", 3, None, "x" * 257):
            with pytest.raises(RequestError, match="an adapter's name must be a text"):
                llm.adapters.load(name, tmp_path / "a")
        with pytest.raises(RequestError, match="an adapter 'x' is loaded already; drop it first"):
            llm.adapters.load("x", tmp_path / "a")
        with pytest.raises(CheckpointError, match="is no folder"):
            llm.adapters.load("y", tmp_path / "nowhere")
        with pytest.raises(RequestError, match="adapter 'y' is not loaded, the loaded ones are: x"):
            llm.generate([[1]], SamplingParams(adapter="y"))
        with pytest.raises(RequestError, match="'y' is not loaded"):
            llm.adapters.drop("y")
        with pytest.raises(RequestError, match="adapter must be the name of a loaded adapter, found 3"):
            SamplingParams(adapter=3)


def test_the_native_adapter_checks_every_array(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    hidden, q = TINY.hidden_size, TINY.query_size

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        native = llm.engine.model
        for matrix, words in [
            (("x", 0, normal(2, hidden), normal(2, q)), "'x' cannot be adapted"),
            (("q", 2, normal(2, hidden), normal(2, q)), "q: layer is 2, expected 0 to 1"),
            (("lm_head", 0, normal(2, hidden), normal(2, 9)), "lm_head: layer is 0, expected 2 to 2"),
            (("q", 0, normal(2, hidden + 1), normal(2, q)), r"q's a has shape \(2, 33\), expected \(2, 32\)"),
            (("q", 0, normal(2, hidden), normal(3, q)), "q's a has rank 2, q's b has another"),
            (("q", 0, normal(0, hidden), normal(0, q)), "q's a has rank 0"),
            (("down", 0, normal(2, hidden), normal(2, hidden)), "down's a has shape"),
            (("q", 0, normal(2, hidden).astype(np.float64), normal(2, q)), "dtype float64"),
        ]:
            with pytest.raises(GptossError, match=words):
                native_module.Adapter(native, [matrix])


CRAMPED = """
import resource, sys
import numpy as np
from gptoss_native import LLM, SamplingParams, _native
from gptoss_native.errors import GptossError

llm = LLM("demo", device="cpu", max_model_len=64, max_num_batched_tokens=1 << 16, max_num_seqs=2)
llm.adapters.load("a", sys.argv[1])
params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, adapter="a")
ask = lambda: llm.generate([[1, 2, 3]], params)
before = ask()[0].outputs[0].token_ids
taken = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30),) * 2)
rank, model = 8192, llm.engine.model  # its products: 8 GiB
a = np.zeros((rank, llm.config.hidden_size), np.float32)
b = np.zeros((rank, llm.config.query_size), np.float32)
try:
    native = _native.Adapter(model, [("q", 0, a, b)])
    model.set_intervention(1, [], native)
except GptossError as error:
    print("refused:", error)
assert ask()[0].outputs[0].token_ids == before
print("the same")
"""


def test_an_adapter_without_room_leaves_those_that_have_it(tmp_path, rng):
    """In a process of its own, as it could crash."""
    write_adapter(tmp_path / "a", rng, open_checkpoint("demo").config)
    done = subprocess.run(
        [sys.executable, "-c", CRAMPED, str(tmp_path / "a")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: ")
    assert done.stdout.endswith("the same\n")


def test_numbers_beyond_float32_are_refused_as_it_is_loaded(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    write_adapter(tmp_path / "huge", rng, TINY, ("q_proj",), size=1e35)
    settings = {"peft_type": "LORA", "lora_alpha": 9e8}
    (tmp_path / "huge" / "adapter_config.json").write_text(json.dumps(settings))
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        with pytest.raises(CheckpointError, match="is beyond float32"):
            llm.adapters.load("huge", tmp_path / "huge")
        assert not llm.adapters


def test_an_adapter_that_the_memory_cannot_hold_is_refused(tmp_path, rng, monkeypatch):
    """What its products take in the longest step counts."""
    from gptoss_native import adapters
    from gptoss_native.host_memory import HostMemory

    write_tiny(tmp_path / "model", rng)
    write_adapter(tmp_path / "a", rng, TINY)
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        loaded = llm.adapters.load("a", tmp_path / "a")
        need = loaded.nbytes + 24 * 3 * loaded.rank * 4
        llm.adapters.drop("a")
        monkeypatch.setattr(adapters, "host_memory", lambda: HostMemory(1 << 40, need - 1))
        with pytest.raises(GptossError, match=f"takes {need:,} bytes beside steps of 24 tokens"):
            llm.adapters.load("a", tmp_path / "a")
        monkeypatch.setattr(adapters, "host_memory", lambda: HostMemory(1 << 40, need))
        llm.adapters.load("a", tmp_path / "a")
