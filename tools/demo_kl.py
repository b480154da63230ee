"""How far numerics="fast" is from "exact": on the answers the model gives to held-out questions.

Per answer token: the divergence KL(exact || fast) in nats, and whether both find the same token most likely.
The bound for "fast" to be the default: a mean of at most 0.005 nats and agreement of at least 99 %.

    python tools/demo_kl.py --n 50
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gptoss_native import LLM, SamplingParams

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "train_demo"))

import tasks  # noqa: E402

DATE = "2026-11-23"
TASKS = ("add", "subtract", "compare", "tool", "recall", "multiply", "sort", "count", "reverse")
MAX_KL, MIN_AGREEMENT = 0.005, 0.99


def answers(llm: LLM, task: str, n: int) -> Iterator[tuple[list[int], int]]:
    """(prompt and greedy answer, length of the prompt) of n questions, one after the other."""
    asked = list(tasks.eval_questions(task, n))
    outputs = llm.chat(
        [messages for messages, _, _, _ in asked],
        SamplingParams(temperature=0, max_tokens=320),
        tools=asked[0][2] or None,
        current_date=DATE,
    )
    for output in outputs:
        yield output.prompt_token_ids + output.outputs[0].token_ids, len(output.prompt_token_ids)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [rows, vocab]"""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def compare(exact: LLM, fast: LLM, tokens: list[int], prompt: int) -> tuple[np.ndarray, np.ndarray]:
    """(divergence, agreement), one each per answer token: the rows before each of them."""
    p, q = (log_softmax(llm.logits(tokens)[prompt - 1 : -1]) for llm in (exact, fast))
    return (np.exp(p) * (p - q)).sum(axis=1), p.argmax(axis=1) == q.argmax(axis=1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=50, help="questions per task")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    options = parser.parse_args()
    exact, fast = (LLM(options.model, numerics=n, max_model_len=2048) for n in ("exact", "fast"))
    print(f"{'task':10s} {'tokens':>7s} {'mean KL':>9s} {'p99 KL':>9s} {'max KL':>9s} {'same top':>9s}")
    all_kl, all_same = [], []
    for task in options.tasks:
        found = [compare(exact, fast, *answer) for answer in answers(exact, task, options.n)]
        kl, same = (np.concatenate(parts) for parts in zip(*found, strict=True))
        report(task, kl, same)
        all_kl.append(kl)
        all_same.append(same)
    kl, same = np.concatenate(all_kl), np.concatenate(all_same)
    report("all", kl, same)
    holds = kl.mean() <= MAX_KL and same.mean() >= MIN_AGREEMENT
    print(f"fast is {'within' if holds else 'NOT within'} {MAX_KL} nats and {MIN_AGREEMENT:.0%} of exact")
    return 0 if holds else 1


def report(name: str, kl: np.ndarray, same: np.ndarray) -> None:
    print(
        f"{name:10s} {len(kl):7d} {kl.mean():9.6f} {np.quantile(kl, 0.99):9.6f} {kl.max():9.6f} "
        f"{same.mean():9.3%}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
