"""Ops at the shapes of the released models and golden cases, on any device: python -m bench.gpu.correctness

The oracles are those of the tests: the float64 reference for ops, the official implementations' float32
logits for models. What the tests leave out because a simulated GPU would take hours: full widths, 128
experts, 131,072 tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gptoss_native import LLM, SamplingParams, _native
from gptoss_native.bench.cases import HEAD_DIM, PAGE, decode_rows, page_pool
from gptoss_native.bench.shapes import SHAPES
from gptoss_native.config import ModelConfig

from tests.compare import assert_close, difference
from tests.model.golden import load_case
from tests.model.stepping import run as run_model
from tests.model.stepping import whole
from tests.ops import test_moe_down, test_moe_gate, test_moe_up
from tests.ops.inputs import bf16, empty, normal
from tests.ops.numerics import as_read, assert_attends, tolerance
from tests.reference.formats import bf16_to_float

CONTEXTS = (1, 127, 128, 129, 1000, 8191, 32_768, 131_071)
ROWS = (1, 8, 64, 65, 300)
GOLDEN = Path(__file__).parents[2] / "tests" / "golden"


def check_attention(backend: Any, rng: np.random.Generator, model: ModelConfig, context: int) -> str:
    """One decoded row and a prompt of 40 after `context` tokens, full and windowed; some heads compared."""
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    worst = 0.0
    for rows, window in ((1, 0), (1, model.sliding_window), (40, 0), (40, model.sliding_window)):
        length = context + rows
        pages = -(-length // PAGE)
        table = rng.permutation(pages).astype(np.int32)[None]

        def make(*shape: int) -> np.ndarray:
            return bf16(rng, *shape)

        keys, values = page_pool(backend, make, pages, kv_heads)
        queries, sinks = as_read(backend, normal(rng, rows, heads, HEAD_DIM)), bf16(rng, heads)
        output = empty(rows, heads, HEAD_DIM)
        batch = np.array([0, rows], np.int32), np.array([context], np.int32), table
        backend.paged_attention(queries, keys, values, sinks, *batch, window, output)
        group = heads // kv_heads
        for kv in {0, int(rng.integers(kv_heads)), kv_heads - 1}:
            across = keys[table[0], kv] if backend.keys_are_transposed else keys[table[0], kv].swapaxes(1, 2)
            along = (
                values[table[0], kv].swapaxes(1, 2)
                if not backend.keys_are_transposed
                else values[table[0], kv]
            )
            k = bf16_to_float(across).swapaxes(1, 2).reshape(-1, 1, HEAD_DIM)[:length].astype(np.float64)
            v = bf16_to_float(along).reshape(-1, 1, HEAD_DIM)[:length].astype(np.float64)
            own = slice(kv * group, (kv + 1) * group)
            given = queries[:, own].astype(np.float64), k, v, bf16_to_float(sinks[own]), window
            what = f"context {context}, rows {rows}, window {window}, kv head {kv}"
            worst = max(worst, assert_attends(backend, output[:, own], *given, 1e-5, what).relative)
    return f"{worst:.1e}"


def check_dense(backend: Any, rng: np.random.Generator, model: ModelConfig, rows: int) -> str:
    """attention_out and unembed, whole."""
    width, hidden = model.num_attention_heads * HEAD_DIM, model.hidden_size
    x, residual = as_read(backend, normal(rng, rows, width)), normal(rng, rows, hidden)
    weight, bias = bf16(rng, hidden, width), bf16(rng, hidden)
    found = residual.copy()
    backend.attention_out(x, weight, bias, found, decode_rows(rows))
    expected = (
        residual + x.astype(np.float64) @ bf16_to_float(weight).astype(np.float64).T + bf16_to_float(bias)
    )
    assert_close(found, expected, tolerance(backend, 1e-5), f"attention_out, {rows} rows")
    wanted = np.unique(rng.integers(0, rows, 3)).astype(np.int32)
    norm, head = bf16(rng, hidden), bf16(rng, model.vocab_size, hidden)
    logits = empty(len(wanted), model.vocab_size)
    backend.unembed(residual, wanted, norm, 1e-5, head, logits)
    given = residual[wanted].astype(np.float64)
    normed = given / np.sqrt((given**2).mean(-1, keepdims=True) + 1e-5) * bf16_to_float(norm)
    expected = np.concatenate(
        [normed @ bf16_to_float(part).astype(np.float64).T for part in np.array_split(head, 8)], axis=1
    )
    assert_close(logits, expected, tolerance(backend, 1e-5), f"unembed, {len(wanted)} rows")
    return f"{difference(logits, expected).relative:.1e}"


def check_shapes(device: str, shape: str, rng: np.random.Generator, say=print) -> dict[str, str]:
    """Every op at one model's shapes; returns the largest relative errors. Raises AssertionError."""
    backend, model, found = _native.Backend(device=device), SHAPES[shape], {}
    tiny = shape == "tiny"
    for context in CONTEXTS[:5] if tiny else CONTEXTS:
        found[f"paged_attention {context}"] = check_attention(backend, rng, model, context)
    hidden, inner = model.hidden_size, model.intermediate_size
    experts, chosen = model.num_local_experts, model.num_experts_per_tok
    for rows in ROWS[:3] if tiny else ROWS:
        found[f"dense {rows}"] = check_dense(backend, rng, model, rows)
        test_moe_gate.check(backend, rng, rows, hidden, experts, chosen)
        test_moe_up.check(backend, rng, rows, hidden, inner, experts, chosen, 1.0)
        test_moe_down.check(backend, rng, rows, hidden, inner, experts, chosen)
        found[f"experts {rows}"] = "ok"
        say(f"{shape}, {rows} rows: ok")
    return found


def compare_logits(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Rows [tokens, vocab]: how many have the same argmax, and their errors, of their largest logit."""
    errors = np.abs(found - expected).max(-1) / np.abs(expected).max(-1)
    return {
        "same argmax": float((found.argmax(-1) == expected.argmax(-1)).mean()),
        "median row error": float(np.median(errors)),
        "largest row error": float(errors.max()),
        "1 - cosine": 1 - difference(found, expected).cosine,
    }


def check_golden(device: str) -> dict[str, dict[str, float]]:
    """Checkpoints with known logits, in fast numerics, against float32.

    The random ones have the official implementations' logits; where their routers are nearly undecided,
    rounding to bf16 chooses another expert and the row is another, so that their medians count. The demo,
    with a trained router, has those of the CPU in exact numerics, which tests hold to the official ones.
    """
    backend, found = _native.Backend(device=device), {}
    for path in sorted(GOLDEN.glob("*/golden.npz")):
        case, rng = load_case(path.parent), np.random.default_rng(0)
        length = case.lengths[-1]
        tokens = [case.golden[f"ids_{length}"].tolist()]
        [logits] = run_model(rng, backend, case.config, case.arrays, tokens, whole, numerics="fast")
        found[path.parent.name] = compare_logits(logits, case.golden[f"hf_{length}"])
    question = [{"role": "user", "content": "What is 4732 + 918? Sort 5, 3, 9. Which is larger, 12 or 21?"}]
    with LLM("demo", device="cpu", numerics="exact", max_model_len=512) as exact:
        tokens = exact.chat(question, SamplingParams(temperature=0, max_tokens=48))[0]
        text = [*tokens.prompt_token_ids, *tokens.outputs[0].token_ids]
        expected = exact.logits(text)
    with LLM("demo", device=device, max_model_len=512) as llm:
        found["demo"] = compare_logits(llm.logits(text), expected)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=_native.devices(), default=_native.devices()[-1])
    parser.add_argument("--shape", choices=SHAPES, default="20b")
    parser.add_argument("--seed", type=int, default=None, help="of the random inputs (default: a fresh one)")
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    found = check_golden(arguments.device) | check_shapes(arguments.device, arguments.shape, random)
    for name, value in found.items():
        print(f"{name:24} {value}")
