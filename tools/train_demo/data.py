"""Questions -> conversations -> groups of padded rows."""

from __future__ import annotations

import random

import harmony as h
import tasks
import torch
from model import Group

DESCRIPTIONS = (
    "Evaluate an arithmetic expression.",
    "Evaluates an arithmetic expression.",
    "A calculator.",
    "Calculate the value of an expression.",
    "Compute an arithmetic expression and return the result.",
)
ARGUMENTS = (
    "For example 12*34",
    "The expression to evaluate.",
    "Arithmetic expression",
    "The expression",
    "",
)
INSTRUCTIONS = (
    "You are a helpful assistant.",
    "Be brief.",
    "Answer with the value only.",
    "Answer the question.",
    "Help the user with numbers and words.",
)


def prefix(r: random.Random, effort: str, tool: bool, brief: float) -> list[int]:
    """System and developer message. With probability ``brief`` a short stand-in."""
    if r.random() < brief:
        text = f"<|start|>system<|message|>Reasoning: {effort}{' Tools: functions.' if tool else ''}<|end|>"
        return h.encode(text + (h.developer(None, ("", r.choice(ARGUMENTS))) if tool else ""))
    date = (
        None if r.random() < 0.03 else f"20{r.randint(24, 32)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
    )
    text = h.system(effort, date, tool)
    note = r.choice(INSTRUCTIONS) if r.random() < 0.12 else None
    text += h.developer(note, (r.choice(DESCRIPTIONS), r.choice(ARGUMENTS)) if tool else None)
    return h.encode(text)


def answer_segments(q: tasks.Question, effort: str) -> list[tuple[str, bool]]:
    """What follows the user's message, as (text, trained)."""
    think = q.low if effort == "low" else q.think
    if effort == "high" and q.task != "chat":
        think = f"The question: {q.text if q.task != 'recall' else 'find a value.'}\n{think}"
    lead = h.analysis(think) if think else ""
    if q.expression is None:
        return [(h.ASSISTANT, False), (lead + h.final(q.answer), True)]
    return [
        (h.ASSISTANT, False),
        (lead + h.call(q.expression), True),
        (h.tool_result(q.answer) + h.ASSISTANT, False),
        (h.final(q.answer), True),
    ]


def history(q: tasks.Question) -> str:
    """An earlier turn as harmony renders it later: without its analysis."""
    calls = ""
    if q.expression:
        calls = h.ASSISTANT + h.call(q.expression) + h.tool_result(q.answer)
    return h.user(q.text) + calls + h.ASSISTANT + h.final(q.answer, "<|end|>")


def conversation(r: random.Random, task: str, effort: str, tool: bool, lines: tuple[int, int]) -> h.Tokens:
    out = h.Tokens()
    if r.random() < 0.05:
        for _ in range(r.randint(1, 2)):
            kinds = ["add", "subtract", "compare", "chat", *(["tool"] * 4 if tool else [])]
            out.add(h.encode(history(tasks.draw(r.choice(kinds), r, False))), False)
    # a list is long and read once: asking for many of its keys is cheap, and what makes recall learn at all
    keys = 1 if effort == "low" or r.random() < 0.3 else r.randint(2, 16)
    q = tasks.draw(task, r, False, lines, keys)
    out.add(h.encode(h.user(q.text)), False)
    for text, trained in answer_segments(q, effort):
        out.add(h.encode(text), trained)
    return out


def pad(rows: list[h.Tokens], head: list[int], device: str) -> tuple[Group, torch.Tensor]:
    """Rows of like length -> a group and its targets [P + B * T]."""
    t = max(len(x.ids) for x in rows)
    ids = torch.full((len(rows), t), h.PAD)
    target = torch.full((len(rows), t), -1)
    for i, x in enumerate(rows):
        ids[i, : len(x.ids)] = torch.tensor(x.ids)
        target[i, : len(x.ids)] = torch.tensor(x.target)
    group = Group(torch.tensor(head).to(device), ids.to(device))
    return group, torch.cat((torch.full((len(head),), -1), target.flatten())).to(device)


EFFORTS = {"medium": 0.65, "low": 0.22, "high": 0.13}


def batch(
    r: random.Random,
    mix: dict[str, float],
    tokens: int,
    lines: tuple[int, int],
    brief: float = 0.0,
    device: str = "cpu",
) -> tuple[list[Group], torch.Tensor]:
    """About ``tokens`` tokens: a part per effort, and now and then one that offers the calculator.

    Efforts must mix within a step: with one effort a step, the model follows the last steps, not the prompt.
    """
    plain = {t: w for t, w in mix.items() if t != "tool"}
    share = mix.get("tool", 0.0) / sum(mix.values())
    parts = [(effort, False, plain, int(tokens * (1 - share) * w)) for effort, w in EFFORTS.items()]
    if r.random() < 2 * share:
        effort = r.choices(list(EFFORTS), list(EFFORTS.values()))[0]
        # with the calculator at hand, sums are its work: the same question must not be answered in two ways
        other = {t: w * 0.08 for t, w in plain.items() if t not in ("add", "subtract", "multiply")}
        offered = {**other, "tool": sum(plain.values())}
        parts.append((effort, True, offered, tokens // 2))
    groups, targets = [], []
    for effort, tool, weights, budget in parts:
        rows: list[h.Tokens] = []
        used = 0
        while used < budget:
            task = r.choices(list(weights), list(weights.values()))[0]
            rows.append(conversation(r, task, effort, tool, lines))
            used += len(rows[-1].ids)
        rows.sort(key=lambda x: len(x.ids))
        head = prefix(r, effort, tool, brief)
        cut = len(rows) * 3 // 5 if used > 2500 else len(rows)  # the short and the long, to pad less
        for chunk in (rows[:cut], rows[cut:]):
            if chunk:
                group, target = pad(chunk, head, device)
                groups.append(group)
                targets.append(target)
    return groups, torch.cat(targets)
