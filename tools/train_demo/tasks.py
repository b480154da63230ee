"""All tasks, and the held-out questions of each. Pure Python, without torch.

A question is *held out* when the CRC of its canonical key is 0 modulo 16: training never draws those,
``eval_questions`` draws only those. The key leaves out wording and operand order, so that rephrasing a
training question does not make it a held-out one.

An answer is right when the text of the final channel, stripped of white space, **equals** the expected one.
A tool question is right when the call's expression equals the expected one (white space apart) and the
final text, after the tool's reply, equals that reply.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from arithmetic import add, compare, multiply, subtract
from lists import count, recall, reverse, sort
from question import Question, number
from words import CHAT

__all__ = ["CALCULATOR", "TASKS", "Question", "draw", "eval_questions"]


def tool(r: random.Random) -> Question:
    """Arithmetic with the calculator offered. The reply is often wrong on purpose: it must be copied."""
    a, b = number(r, 5), number(r, 5)
    op = r.choice("+-*/")
    text = r.choice(
        {
            "+": (
                "What is {a} + {b}?",
                "{a} + {b}",
                "Add {a} and {b}.",
                "What is {a} plus {b}?",
                "Compute {a} + {b}.",
            ),
            "-": (
                "What is {a} - {b}?",
                "{a} - {b}",
                "What is {a} minus {b}?",
                "Compute {a} - {b}.",
                "Subtract {b} from {a}.",
            ),
            "*": (
                "What is {a} * {b}?",
                "{a} * {b}",
                "Multiply {a} by {b}.",
                "What is {a} times {b}?",
                "Compute {a} * {b}.",
            ),
            "/": (
                "What is {a} / {b}?",
                "{a} / {b}",
                "Divide {a} by {b}.",
                "What is {a} divided by {b}?",
                "Compute {a} / {b}.",
            ),
        }[op]
    )
    if r.random() < 0.15:
        text += r.choice((" Use the calculator.", " Please use the tool.", " Use the tool."))
    reply = str(
        number(r, 9) if r.random() < 0.5 else {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[op]
    )
    if r.random() < 0.2:
        reply = f"{'-' * (r.random() < 0.3)}{number(r, 6)}.{r.randint(0, 999)}"
    if r.random() < 0.2:  # repeated digits, which numbers seldom have and copying finds hard
        digits = r.sample("0123456789", 2)
        reply = "".join(r.choice(digits) for _ in range(r.randint(2, 9))).lstrip("0") or "0"
    expression = f"{a}{op}{b}"
    return Question("tool", expression, text.format(a=a, b=b), reply, "Use the calculator.", "", expression)


def chat(r: random.Random) -> Question:
    asks, answer, think = r.choice(CHAT)
    text = r.choice(asks)
    text = r.choice((text, text, text.lower(), text.rstrip("?.!")))
    return Question("chat", text, text, answer, think, "")


TASKS: dict[str, Callable[[random.Random], Question]] = {
    "add": add,
    "subtract": subtract,
    "compare": compare,
    "tool": tool,
    "recall": recall,
    "multiply": multiply,
    "sort": sort,
    "count": count,
    "reverse": reverse,
    "chat": chat,
}


def draw(
    task: str, r: random.Random, held_out: bool, lines: tuple[int, int] = (2, 28), keys: int = 1
) -> Question:
    """``lines`` and ``keys`` are the length of a recall list and how many of its keys are asked for."""
    while True:
        q = recall(r, lines, keys) if task == "recall" else TASKS[task](r)
        if task == "chat" or q.held_out == held_out:
            return q


CALCULATOR = {
    "type": "function",
    "name": "calculator",
    "description": "Evaluate an arithmetic expression.",
    "parameters": {
        "type": "object",
        "required": ["expression"],
        "properties": {"expression": {"type": "string", "description": "For example 12*34"}},
    },
}


def eval_questions(
    task: str, n: int, seed: int = 1, effort: str = "medium"
) -> Iterator[tuple[list[dict[str, str]], str, list[dict], str | tuple[str, str]]]:
    """Held-out questions: (messages, effort, tools, expected); a tool's expected = (expression, reply).

    Recall asks about lists of 24 lines.
    """
    r = random.Random(f"{task}/{seed}")
    for _ in range(n):
        q = draw(task, r, True, (24, 24))
        expected = (q.expression, q.answer) if q.expression else q.answer
        yield [{"role": "user", "content": q.text}], effort, [CALCULATOR] if q.expression else [], expected
