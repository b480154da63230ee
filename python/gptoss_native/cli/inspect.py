"""What `gptoss-native inspect` prints: the shape of a checkpoint and its tensors, layers collapsed."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.tensor_names import TensorSpec, expected_tensors
from ..config import ModelConfig
from . import UsageError
from .options import DEVICE_HELP, MODEL_HELP
from .text import amount, count, counted, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print a JSON object, sizes in bytes")
    parser.add_argument(
        "--tensor",
        metavar="NAME",
        help="show the numbers of this tensor, or of one expert's part; a line each where * ? [seq] fit more",
    )
    parser.add_argument(
        "--experts", action="store_true", help="run prompts and show which experts their tokens go to"
    )
    parser.add_argument("--plot", metavar="FILE", help="with --tensor or --experts: draw a PNG, too")
    group = parser.add_argument_group("with --experts")
    group.add_argument("--prompt", action="append", metavar="TEXT", help="ask this; may be repeated")
    group.add_argument("--max-tokens", type=int, default=64, metavar="N", help="of each answer; default: 64")
    group.add_argument("--device", default="auto", metavar="DEVICE", help=DEVICE_HELP)
    group.add_argument(
        "--max-model-len", type=int, default=2048, metavar="N", help="the context; default: 2048"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.tensor is not None and args.experts:
        raise UsageError("--tensor and --experts show different things; choose one")
    if args.plot and args.tensor is None and not args.experts:
        raise UsageError("--plot draws what --tensor or --experts shows; add one of them")
    if args.tensor is not None or args.experts:
        from .inspect_numbers import run_experts, run_tensor

        return run_experts(args) if args.experts else run_tensor(args)
    checkpoint = open_checkpoint(args.model)
    print(render_inspect_json(checkpoint) if args.json else render_inspect(checkpoint))
    return 0


def inspect_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as JSON values: config, totals, and one entry per kind of tensor (layers collapsed)."""
    config = checkpoint.config
    specs = list(expected_tensors(config))
    by_dtype: dict[str, int] = {}
    for spec in specs:
        by_dtype[spec.dtype] = by_dtype.get(spec.dtype, 0) + spec.nbytes
    return {
        "name": checkpoint.name,
        "layout": checkpoint.layout,
        "parameters": sum(spec.parameters for spec in specs),
        "active_parameters": sum(_active(config, spec) for spec in specs),
        "bytes": checkpoint.nbytes,
        "bytes_by_dtype": by_dtype,
        "files": [{"name": file.path.name, "bytes": file.nbytes} for file in checkpoint.files],
        "tensors": _kinds(specs),
        "generation_config": checkpoint.generation_config,
        "config": config.to_dict(),
    }


def render_inspect_json(checkpoint: Checkpoint) -> str:
    """`inspect_checkpoint` as text."""
    return json.dumps(inspect_checkpoint(checkpoint), indent=2)


def render_inspect(checkpoint: Checkpoint) -> str:
    """A table for people."""
    found, config = inspect_checkpoint(checkpoint), checkpoint.config
    sliding = sum(config.is_sliding(layer) for layer in range(config.num_hidden_layers))
    facts = [
        ("parameters", f"{count(found['parameters'])}, {count(found['active_parameters'])} per token"),
        ("size", f"{found['bytes']:,} bytes ({amount(found['bytes'])}) in "
                 f"{counted(len(found['files']), 'file')}"),
        ("layers", f"{config.num_hidden_layers}: {sliding} sliding ({config.sliding_window} tokens), "
                   f"{config.num_hidden_layers - sliding} full"),
        ("experts", f"{config.num_experts_per_tok} of {config.num_local_experts}, MXFP4, "
                    f"intermediate size {config.intermediate_size}"),
        ("attention", f"{config.num_attention_heads} query and {config.num_key_value_heads} key-value heads "
                      f"of {config.head_dim}, hidden size {config.hidden_size}"),
        ("context", f"{config.max_position_embeddings:,} tokens: YaRN x{config.rope_factor:g} from "
                    f"{config.initial_context_length:,}, theta {config.rope_theta:g}"),
        ("vocabulary", f"{config.vocab_size:,}"),
    ]  # fmt: skip
    rows = [
        (
            kind["name"],
            kind["dtype"],
            "x".join(map(str, kind["shape"])),
            f"{kind['count']}",
            amount(kind["bytes"]),
            f"{100 * kind['bytes'] / found['bytes']:.1f} %",
        )
        for kind in found["tensors"]
    ]
    header = ("tensor", "dtype", "shape", "count", "size", "share")
    lines = [f"{found['name']} ({found['layout']} layout)"]
    lines += [f"  {label:<11}{text}" for label, text in facts]
    lines += ["", table(header, rows, right=(3, 4, 5))]
    return "\n".join(lines)


def _kinds(specs: list[TensorSpec]) -> list[dict[str, Any]]:
    """Tensors that differ only in their layer become one entry with a count; `bytes` is of all together."""
    kinds: dict[str, dict[str, Any]] = {}
    for spec in specs:
        name = re.sub(r"\.layers\.\d+\.", ".layers.*.", spec.name)
        kind = kinds.setdefault(
            name,
            {
                "name": name,
                "group": spec.group,
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "count": 0,
                "bytes": 0,
                "parameters": 0,
            },
        )
        kind["count"] += 1
        kind["bytes"] += spec.nbytes
        kind["parameters"] += spec.parameters
    return list(kinds.values())


def _active(config: ModelConfig, spec: TensorSpec) -> int:
    """Parameters that one token touches: the chosen experts, and of the embedding one row."""
    if spec.group == "experts":
        return spec.parameters // config.num_local_experts * config.num_experts_per_tok
    return config.hidden_size if spec.group == "embedding" else spec.parameters
