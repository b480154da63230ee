"""Accuracy of the bundled demo model on held-out questions, greedy, in both numeric modes.

An answer counts when the final channel equals the expected text, white space at the ends apart. A tool
question counts when the call's expression equals the expected one and, after the reply, the final channel
equals the reply.

    python tools/demo_eval.py --n 1000
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from gptoss_native import LLM, SamplingParams

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "train_demo"))

import tasks  # noqa: E402

DATE = "2026-11-23"
# By the model card.
CLAIMED = ("add", "subtract", "multiply", "compare", "sort", "recall", "count", "reverse", "tool")
Message = dict[str, object]


def expression(message: Message) -> str | None:
    """The argument of the one calculator call in an assistant message, or None."""
    calls = message.get("tool_calls") or []
    if len(calls) != 1 or calls[0]["function"]["name"] != "calculator":
        return None
    try:
        value = json.loads(calls[0]["function"]["arguments"])["expression"]
    except (ValueError, KeyError, TypeError):
        return None
    return "".join(value.split()) if isinstance(value, str) else None


def wrong_answers(llm: LLM, task: str, n: int, effort: str, seed: int) -> list[dict[str, object]]:
    """Ask n held-out questions; what came back for each that was answered wrongly."""
    asked = list(tasks.eval_questions(task, n, seed, effort))
    conversations: list[list[Message]] = [list(messages) for messages, _, _, _ in asked]
    params = SamplingParams(temperature=0, max_tokens=320)
    options = {"reasoning_effort": effort, "current_date": DATE, "tools": asked[0][2] or None}
    outputs = llm.chat(conversations, params, **options)
    wrong: dict[int, object] = {}
    if task == "tool":
        for i, (conversation, output) in enumerate(zip(conversations, outputs, strict=True)):
            message = output.outputs[0].message
            want, reply = asked[i][3]
            if expression(message) != want:
                wrong[i] = message
                continue
            call = message["tool_calls"][0]
            conversation += [message, {"role": "tool", "tool_call_id": call["id"], "content": reply}]
        going = [i for i in range(n) if i not in wrong]
        outputs = llm.chat([conversations[i] for i in going], params, **options) if going else []
        wrong |= {
            i: o.outputs[0].message
            for i, o in zip(going, outputs, strict=True)
            if o.outputs[0].content.strip() != asked[i][3][1]
        }
    else:
        for i, output in enumerate(outputs):
            if output.outputs[0].content.strip() != asked[i][3]:
                wrong[i] = output.outputs[0].message
    return [
        {"question": asked[i][0][-1]["content"], "expected": asked[i][3], "answer": wrong[i]}
        for i in sorted(wrong)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=1000, help="questions per task")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tasks", nargs="+", default=CLAIMED, choices=sorted(tasks.TASKS))
    parser.add_argument("--efforts", nargs="+", default=["medium"], choices=["low", "medium", "high"])
    parser.add_argument("--numerics", nargs="+", default=["exact", "fast"], choices=["exact", "fast"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="print that many wrong answers per task")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "demo_accuracy.json")
    options = parser.parse_args()
    rows = []
    print(f"{'task':10s} {'effort':7s} {'numerics':8s} {'right':>7s} {'of':>6s}")
    for numerics in options.numerics:
        llm = LLM(
            options.model, numerics=numerics, threads=options.threads, max_model_len=2048, max_num_seqs=64
        )
        for effort in options.efforts:
            for task in options.tasks:
                began = time.monotonic()
                wrong = wrong_answers(llm, task, options.n, effort, options.seed)
                right = 1 - len(wrong) / options.n
                seconds = round(time.monotonic() - began, 1)
                row = {"task": task, "effort": effort, "numerics": numerics, "n": options.n}
                rows.append({**row, "right": round(right, 4), "seconds": seconds})
                print(
                    f"{task:10s} {effort:7s} {numerics:8s} {right:7.2%} {options.n:6d}  {seconds} s",
                    flush=True,
                )
                for case in wrong[: options.show]:
                    print("   ", json.dumps(case, ensure_ascii=False)[:600])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"model": str(options.model), "temperature": 0, "date": DATE, "seed": options.seed, "rows": rows}
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
