"""What it costs to change a model and to look into it: edits, steering, expert controls, capture, adapters.

    python -m bench.open_numbers MODEL [--device cpu] [--threads 2]

MODEL is a checkpoint, as bench/synthetic_checkpoint.py writes. Steps with and without a feature take turns,
A B A B, eight requests in a step. Prints medians; --json FILE keeps them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gptoss_native import LLM, Capture, ExpertControl, SamplingParams, SteeringVector
from gptoss_native.bench.report import cores, cpu_name
from gptoss_native.checkpoint.safetensors_writer import TensorSource, write_safetensors
from gptoss_native.config import ModelConfig

ROUNDS, TOKENS = 7, 24
RANK = 16
ADAPTERS = {
    "attention": tuple(f"self_attn.{part}_proj" for part in "qkvo"),
    "attention and experts": (
        *(f"self_attn.{part}_proj" for part in "qkvo"), "mlp.experts.base_layer", "mlp.experts",
    ),
}  # fmt: skip


def milliseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begin)


def peak(work: Callable[[], object]) -> int:
    """Bytes of memory that `work` takes at most, beyond what there was before; Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is what is there now
    before = _high_water()
    work()
    return _high_water() - before


def _high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def edits(llm: LLM) -> dict[str, float]:
    """Reading, writing and applying one expert, all its numbers new; the parts and the whole, in ms."""
    rng, found = np.random.default_rng(0), {"decode": [], "quantise": [], "apply": [], "edit": [], "undo": []}
    for turn in range(ROUNDS):
        expert = llm.layers[turn % len(llm.layers)].experts[turn]
        found["decode"].append(milliseconds(lambda e=expert: (e.gate_up_proj.decode(), e.down_proj.decode())))
        factor = np.float32(rng.uniform(0.6, 0.9))
        edit, begin = llm.edit("expert"), time.perf_counter()
        with edit:
            pattern = f"layers.{turn % len(llm.layers)}.experts.{turn}.*_proj"
            edit.update(pattern, lambda values, factor=factor: values * factor)
            written = time.perf_counter()
        end = time.perf_counter()
        found["quantise"].append(1e3 * (written - begin))
        found["apply"].append(1e3 * (end - written))
        found["edit"].append(1e3 * (end - begin))
        found["undo"].append(milliseconds(llm.undo))
    return {name: statistics.median(times) for name, times in found.items()}


def beside_edits(llm: LLM) -> dict[str, float]:
    """Waits for a token while another thread edits experts, and without; and those edits; in ms."""
    params = SamplingParams(temperature=0, max_tokens=4 * TOKENS, ignore_eos=True)

    def gaps() -> list[float]:
        found, last = [], time.perf_counter()
        for _ in llm.stream([1, 2, 3], params):
            found.append(1e3 * (time.perf_counter() - last))
            last = time.perf_counter()
        return found[1:]

    ended, written, applied = threading.Event(), [], []

    def edit() -> None:
        turn = 0
        while not ended.is_set():
            begin, changes = time.perf_counter(), llm.edit("beside", running="continue")
            with changes:
                changes.scale(f"layers.{turn % len(llm.layers)}.experts.{turn % 8}.*_proj", 0.7)
                end = time.perf_counter()
            written.append(1e3 * (end - begin))
            applied.append(1e3 * (time.perf_counter() - end))
            turn += 1

    alone = gaps()
    editor = threading.Thread(target=edit)
    editor.start()
    try:
        beside = gaps()
    finally:
        ended.set()
        editor.join()
    for _ in llm.edits:
        llm.undo()
    return {
        "step": statistics.median(alone),
        "longest step": max(alone),
        "step beside edits": statistics.median(beside),
        "longest step beside edits": max(beside),
        "quantise beside a stream": statistics.median(written),
        "apply beside a stream": statistics.median(applied),
    }


def changed_by_round_trips(llm: LLM) -> int:
    """Parts in which writing what was decoded changed a bit: those of a layer, three of each kind of its
    experts', and what is outside the layers."""
    changed = 0
    for name, parameter in llm.parameters.items():
        if ".layers." in name and ".layers.0." not in name:
            continue
        for part in parameter.experts[:3] if ".mlp.experts." in name else [parameter]:
            before = part.packed()
            part.write(part.decode())
            after = part.packed()
            both = zip(
                *(each if isinstance(each, tuple) else (each,) for each in (before, after)), strict=True
            )
            changed += any((a != b).any() for a, b in both)
    return changed


def paired(llm: LLM, features: dict[str, dict]) -> dict[str, float]:
    """Slowdown of decoding with each feature, the median of pairs, in per cent."""
    width = 8  # requests in a step

    def seconds(settings: dict) -> float:
        params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, **settings)
        return milliseconds(lambda: llm.generate([[n + 1, 2, 3] for n in range(width)], params))

    seconds({})
    ratios: dict[str, list[float]] = {name: [] for name in features}
    for _ in range(ROUNDS):
        for name, settings in features.items():
            ratios[name].append(seconds(settings) / seconds({}))
    return {name: 100 * (statistics.median(found) - 1) for name, found in ratios.items()}


def random_adapter(folder: Path, config: ModelConfig, kinds: tuple[str, ...]) -> Path:
    """Of every layer, in PEFT's form."""
    rng, hidden, inner = np.random.default_rng(2), config.hidden_size, config.intermediate_size
    experts, shapes = config.num_local_experts, {
        "self_attn.q_proj": (config.query_size, hidden),
        "self_attn.k_proj": (config.key_value_size, hidden),
        "self_attn.v_proj": (config.key_value_size, hidden),
        "self_attn.o_proj": (hidden, config.query_size),
        "mlp.experts.base_layer": (2 * inner, hidden),
        "mlp.experts": (hidden, inner),
    }  # fmt: skip
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": RANK}))
    sources = []
    for layer in range(config.num_hidden_layers):
        for module in kinds:
            (out, width), parts = shapes[module], experts if "experts" in module else 1
            pair = {"A": (parts * RANK, width), "B": (out, parts * RANK)}
            for part, shape in pair.items():
                array = rng.standard_normal(shape, np.float32) * np.float32(1e-3)
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{part}.weight"
                sources.append(TensorSource(name, "F32", shape, lambda array=array: [array]))
    write_safetensors(folder / "adapter_model.safetensors", sources)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with LLM(args.model, device=args.device, threads=args.threads, max_model_len=1024) as llm:
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))  # reads the weights once

        def one_edit() -> None:
            with llm.edit("expert") as edit:
                edit.scale("layers.0.experts.0.*_proj", 0.7)

        found = {"MiB of peak memory for an edit": peak(one_edit) / 2**20}
        llm.undo()
        found |= {"parts changed by round trips": changed_by_round_trips(llm), "ms": edits(llm)}
        expert = llm.layers[0].experts[0]
        found["MiB of one expert decoded"] = 4 * (expert.gate_up_proj.size + expert.down_proj.size) / 2**20
        found["ms"] |= beside_edits(llm)
        rng, config = np.random.default_rng(1), llm.config
        vector = SteeringVector(
            {n: rng.normal(0, 1e-3, config.hidden_size) for n in range(config.num_hidden_layers)}
        )
        found["% slower"] = paired(
            llm,
            {
                "nothing": {},
                "steering, every layer": {"steering": vector},
                "experts masked, every layer": {"experts": ExpertControl(mask=[0, 1])},
                "capture of the residual stream, one layer": {"capture": Capture(residual=[0])},
                "capture of the router, every layer": {"capture": Capture(router=True)},
                "capture of attention, one layer": {"capture": Capture(attention=[1])},
            },
        )
        with tempfile.TemporaryDirectory() as folder:
            for name, kinds in ADAPTERS.items():
                llm.adapters.load(name, random_adapter(Path(folder) / name, llm.config, kinds))
            adapted = {f"LoRA of rank {RANK}, {name}": {"adapter": name} for name in ADAPTERS}
            found["% slower"] |= paired(llm, adapted)
            adapters = llm.adapters.values()
            found["MiB of adapters"] = sum(each.nbytes for each in adapters) / 2**20
        found |= {
            "device": f"{llm.device}, {llm.isa}, {llm.threads} threads",
            "machine": f"{cores()} cores of {cpu_name()}",
            "load average": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        }
    for name, value in found.items():
        if isinstance(value, dict):
            print(name)
            for what, number in value.items():
                print(f"  {what:44}{number:10.1f}")
        else:
            print(f"{name}: {value if isinstance(value, str) else f'{value:.0f}'}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
