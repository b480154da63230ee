"""What `gptoss-native plan` prints: where the memory of a model goes, and whether this machine has it."""

from __future__ import annotations

import argparse
import json

from ..checkpoint import open_checkpoint
from ..config import KNOWN_CONFIGS
from ..dense_forms import add_dense_dtype
from ..errors import CheckpointError, RequestError
from ..plan import Plan
from ..plan import plan as plan_of
from . import UsageError
from .options import DEVICE_HELP, MODEL_HELP
from .text import amount, count, table

DEFAULT_CONTEXT = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", help=f"{MODEL_HELP}; the published ones need not be downloaded")
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help=f"tokens of prompt and answer together; default: {DEFAULT_CONTEXT} or the model's limit",
    )
    parser.add_argument(
        "--sequences", type=int, default=1, metavar="N", help="answered at the same time; default: 1"
    )
    add_dense_dtype(parser)
    parser.add_argument("--numerics", choices=("exact", "fast"), default="fast", help="default: fast")
    parser.add_argument("--device", metavar="DEVICE", default="auto", help=DEVICE_HELP)
    parser.add_argument(
        "--lora-rank",
        type=int,
        default=0,
        metavar="N",
        help="largest of the adapters to come; default: 0, none",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, sizes in bytes")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 when the model does not fit."""
    try:
        config = open_checkpoint(args.model).config
    except CheckpointError:
        if args.model not in KNOWN_CONFIGS:
            raise
        config = KNOWN_CONFIGS[args.model]
    context = min(DEFAULT_CONTEXT, config.max_position_embeddings) if args.context is None else args.context
    try:
        found = plan_of(
            config,
            context=context,
            sequences=args.sequences,
            numerics=args.numerics,
            dense_dtype=args.dense_dtype,
            device=args.device,
            lora_rank=args.lora_rank,
        )
    except RequestError as error:
        raise UsageError(str(error)) from None
    print(render_plan_json(args.model, found) if args.json else render_plan(args.model, found))
    return 1 if found.fits is False else 0


def render_plan(name: str, plan: Plan) -> str:
    """A table for people."""
    config, total = plan.config, plan.total_bytes
    parts = [(f"weights: {group}", size) for group, size in plan.weights.items()]
    parts += [
        (f"KV cache: full layers, {plan.full_pages:,} pages", plan.kv_full_bytes),
        (
            f"KV cache: {config.sliding_window}-token layers, {plan.window_pages:,} pages",
            plan.kv_window_bytes,
        ),
        (f"activations of {plan.max_batch_tokens:,} tokens", plan.activation_bytes),
        ("logits", plan.logit_bytes),
        ("workspace", plan.workspace_bytes),
        ("steering, expert controls, adapters' products", plan.intervention_bytes),
    ]
    parts = [(label, size) for label, size in parts if size]
    rows = [(label, f"{size:,}", amount(size), f"{100 * size / total:.1f} %") for label, size in parts]
    rows.append(("total", f"{total:,}", amount(total), ""))
    lines = [
        f"{name}: {count(plan.parameters)} parameters, {config.num_hidden_layers} layers, "
        f"{config.num_experts_per_tok} of {config.num_local_experts} experts",
        f"{plan.sequences:,} x {plan.context:,} tokens, {plan.numerics} numerics, on {plan.device}",
        "",
        table(("", "bytes", "", "share"), rows, right=(1, 2, 3)),
        "",
        _verdict(plan),
    ]
    return "\n".join(lines)


def render_plan_json(name: str, plan: Plan) -> str:
    """The same as one JSON object, sizes in bytes."""
    return json.dumps({"name": name, **plan.to_dict()}, indent=2)


def _verdict(plan: Plan) -> str:
    if plan.memory is None:
        return f"needs {_kind(plan)} with {amount(plan.total_bytes)} free"
    have = f"{amount(plan.memory.available)} of {amount(plan.memory.total)} are available here"
    if plan.fits:
        return f"fits: {have}"
    if plan.weight_bytes < plan.memory.available:
        return f"does not fit: {amount(plan.total_bytes)} are needed, {have}; lower --context or --sequences"
    return f"does not fit: the weights alone are {amount(plan.weight_bytes)}, {have}; {_way_out(plan)}"


def _way_out(plan: Plan) -> str:
    """What to do about weights that the memory cannot hold."""
    for name, config in KNOWN_CONFIGS.items():
        other = plan_of(
            config,
            context=min(plan.context, config.max_position_embeddings),
            sequences=plan.sequences,
            numerics=plan.numerics,
            dense_dtype=plan.dense_dtype,
            device=plan.device,
        )
        if other.fits:
            return f"use {name}, which needs {amount(other.total_bytes)}"
    return f"use {_kind(plan)} with at least {amount(plan.total_bytes)} free"


def _kind(plan: Plan) -> str:
    return "a GPU" if plan.device == "cuda" else "a machine"
