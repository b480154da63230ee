"""What `gptoss-native plan` prints: where the memory of a model goes, and whether this machine has it."""

from __future__ import annotations

import json

from ..plan import Plan
from .text import amount, count, table


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
    ]
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
        where = "a GPU" if plan.device == "cuda" else "a machine"
        return f"needs {where} with {amount(plan.total_bytes)} free"
    have = f"{amount(plan.memory.available)} of {amount(plan.memory.total)} are available here"
    if plan.fits:
        return f"fits: {have}"
    return f"does not fit: {amount(plan.total_bytes)} are needed, {have}; reduce the context or the sequences"
