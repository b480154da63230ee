"""Train the demo model until a given wall-clock time; restarts from its last snapshot.

python train.py --minutes 95 --run runs/demo
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

import data
import optim
import torch
from decode import accuracy
from export import load
from model import Config, DemoModel
from torch.nn import functional

LADDER = (
    3,
    6,
    10,
    16,
    24,
    30,
)  # most lines in a recall list; a step is climbed when three quarters are right


def learning_rate(progress: float, step: int) -> float:
    """Warm-up, constant, then straight down to 2 %."""
    return min(1.0, step / 60) * min(1.0, 0.02 + 0.98 * (1 - progress) / 0.5)


def brief(progress: float) -> float:
    """How often the short prefix stands in for the real one."""
    return 0.85 if progress < 0.35 else max(0.0, 0.5 * (0.8 - progress) / 0.45)


WEIGHTS = {
    "add": 0.8,
    "subtract": 1.0,
    "compare": 1.2,
    "tool": 1.6,
    "recall": 3.0,
    "multiply": 2.0,
    "sort": 2.0,
    "count": 1.5,
    "reverse": 1.5,
    "chat": 0.35,
}


def mixture(acc: dict[str, float]) -> dict[str, float]:
    """More of what is still wrong; never less than a floor that keeps what is learned."""
    return {t: w * (0.4 + 0.6 * (1 - acc.get(t, 0.0))) for t, w in WEIGHTS.items()}


def save(path: Path, blob: dict) -> None:
    torch.save(blob, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--run", type=Path, default=Path(__file__).parent / "runs/demo")
    a.add_argument("--init", type=Path, help="begin with the weights of this checkpoint folder")
    a.add_argument(
        "--minutes", type=float, default=95, help="length of the whole schedule, over all restarts"
    )
    a.add_argument("--tokens", type=int, default=8192, help="tokens of a step")
    a.add_argument("--lr", type=float, default=0.02)
    a.add_argument("--adam-lr", type=float, default=3e-3)
    a.add_argument("--quantise-from", type=float, default=0.25, help="progress at which MXFP4 weights begin")
    a.add_argument("--eval-seconds", type=float, default=300)
    a.add_argument("--device", default="cpu")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--seed", type=int, default=0)
    a.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="TASK=W",
        help="another weight of a task in the mixture",
    )
    o = a.parse_args()
    for task, weight in (w.split("=") for w in o.weight):
        WEIGHTS[task] = float(weight)
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    o.run.mkdir(parents=True, exist_ok=True)
    snap = o.run / "snapshot.pt"
    model = DemoModel(Config()).to(o.device)
    muon, adam = optim.build(model, o.lr, o.adam_lr)
    s = {"step": 0, "seconds": 0.0, "tokens": 0, "acc": {}, "rung": 0}
    if snap.exists():
        blob = torch.load(snap, weights_only=True)
        model.load_state_dict(blob["model"])
        adam.load_state_dict(blob["adam"])
        for m, x in zip(muon.state, blob["muon"], strict=True):
            m.copy_(x)
        s = blob["s"]
    elif o.init:
        load(model, o.init)
    r = random.Random(o.seed + s["step"])
    log = (o.run / "log.jsonl").open("a", buffering=1)
    began, since_eval, losses, total = time.time() - s["seconds"], time.time(), [], o.minutes * 60
    while (seconds := time.time() - began) < total:
        s["seconds"], progress = seconds, seconds / total
        model.quantised = progress >= o.quantise_from
        groups, target = data.batch(
            r, mixture(s["acc"]), o.tokens, (2, LADDER[s["rung"]]), brief(progress), o.device
        )
        x, balance = model(groups)
        keep = (target >= 0).nonzero()[:, 0]
        loss = functional.cross_entropy(model.logits(x.index_select(0, keep)), target[keep])
        (loss + 0.01 * balance).backward()
        scale = learning_rate(progress, s["step"])
        for g in adam.param_groups:
            g["lr"] = o.adam_lr * scale
        torch.nn.utils.clip_grad_norm_([p for g in adam.param_groups for p in g["params"]], 1.0)
        muon.step(scale)
        adam.step()
        model.zero_grad(set_to_none=True)
        s["step"] += 1
        s["tokens"] += sum(g.tokens for g in groups)
        losses.append(loss.item())
        if s["step"] % 20 == 0:
            print(
                f"{time.strftime('%H:%M:%S')} step {s['step']} tokens {s['tokens'] / 1e6:.2f}M "
                f"loss {sum(losses) / len(losses):.4f} balance {balance.item():.2f} lr {scale:.2f} "
                f"rung {s['rung']} {'q' if model.quantised else ''} "
                f"{s['tokens'] / seconds:.0f}/s",
                flush=True,
            )
            losses.clear()
        if "recall" in WEIGHTS and s["step"] % 60 == 0 and s["rung"] < len(LADDER) - 1:
            top = LADDER[s["rung"]]
            right, _ = accuracy(model, "recall", 16, s["step"], "medium", (top, top))
            s["rung"] += right >= 0.75
            print(f"   recall of {top} lines: {right:.2f}", flush=True)
        due = time.time() - since_eval > o.eval_seconds
        if due:
            evaluate(model, s, log)
            since_eval = time.time()
        if due or s["step"] % 100 == 0:
            save(snap, {"model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.state, "s": s})
    save(snap, {"model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.state, "s": s})


def evaluate(model: DemoModel, s: dict, log, n: int = 16) -> None:
    began = time.time()
    device = model.embed.device
    model.to("cpu")
    for task in WEIGHTS:
        top = LADDER[s["rung"]]
        effort = "medium" if random.random() < 0.7 else random.choice(("low", "high"))
        right, wrong = accuracy(model, task, n, s["step"], effort, (top, top))
        s["acc"][task] = 0.5 * s["acc"].get(task, right) + 0.5 * right
        print(f"   {task:9s} {effort:6s} {right:.3f}  {wrong}", flush=True)
    model.to(device)
    log.write(json.dumps({"time": time.time(), **s}) + "\n")
    print(f"   evaluated in {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
