"""Questions, worked solutions and answers. Pure Python: no torch, and no file beside it but ``words.py``.

A question is *held out* when the CRC of its canonical key is 0 modulo 16: training never draws those,
``eval_questions`` draws only those. The key leaves out wording and operand order, so that rephrasing a
training question does not make it a held-out one.

An answer is right when the text of the final channel, stripped of white space, **equals** the expected one.
A tool question is right when the call's expression equals the expected one (white space apart) and the
final text, after the tool's reply, equals that reply.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from words import CHAT, WORDS

HOLD = 16


@dataclass
class Question:
    """One question with its solution. ``low`` is the chain of thought at low effort, "" for none."""

    task: str
    key: str
    text: str
    answer: str
    think: str
    low: str
    expression: str | None = None  # set: answer by a tool call, ``answer`` is the tool's reply

    @property
    def held_out(self) -> bool:
        return zlib.crc32(f"{self.task}:{self.key}".encode()) % HOLD == 0


def number(r: random.Random, digits: int) -> int:
    """Uniform in its number of digits, so that short numbers are not rare."""
    d = r.randint(1, digits)
    return r.randint(10 ** (d - 1) if d > 1 else 0, 10**d - 1)


def columns(a: int, b: int, width: int, sign: str) -> tuple[list[str], str]:
    """Column sums from the right, 'd+d+carry=carry digit'; for '-' the result begins with the borrow."""
    steps, out, carry = [], "", 0
    for x, y in zip(f"{a:0{width}d}"[::-1], f"{b:0{width}d}"[::-1], strict=True):
        value = int(x) + int(y) + carry if sign == "+" else int(x) - int(y) - carry
        after = abs(value // 10)
        steps.append(f"{x}{sign}{y}{sign}{carry}={after}{value % 10}")
        carry, out = after, str(value % 10) + out
    return steps, out if sign == "-" else str(carry) + out


def add(r: random.Random) -> Question:
    a, b = number(r, 4), number(r, 4)
    text = r.choice(
        (
            "What is {a} + {b}?",
            "{a} + {b}",
            "{a}+{b}",
            "Add {a} and {b}.",
            "What is {a} plus {b}?",
            "Compute {a} + {b}.",
            "{a} + {b} = ?",
            "What is the sum of {a} and {b}?",
        )
    )
    steps, out = columns(a, b, 4, "+")
    head = f"{a:04d} {b:04d}"
    return Question(
        "add",
        f"{min(a, b)}+{max(a, b)}",
        text.format(a=a, b=b),
        str(a + b),
        "\n".join([head, *steps, out]),
        "\n".join([head, *steps, out]),
    )


def first_difference(a: int, b: int) -> list[str]:
    """Digit by digit from the left: '4=4', '7<9', ending at the first difference."""
    steps = []
    for x, y in zip(f"{a:04d}", f"{b:04d}", strict=True):
        steps.append(f"{x}{'<' if x < y else '>' if x > y else '='}{y}")
        if x != y:
            break
    return steps


def subtract(r: random.Random) -> Question:
    a, b = number(r, 4), number(r, 4)
    text = r.choice(
        (
            "What is {a} - {b}?",
            "{a} - {b}",
            "{a}-{b}",
            "Subtract {b} from {a}.",
            "What is {a} minus {b}?",
            "Compute {a} - {b}.",
            "{a} - {b} = ?",
            "Take {b} away from {a}.",
        )
    )
    order = first_difference(a, b)
    hi, lo = max(a, b), min(a, b)
    steps, out = columns(hi, lo, 4, "-")
    head, pair = f"{a:04d} {b:04d}", f"{hi:04d} {lo:04d}"
    return Question(
        "subtract",
        f"{a}-{b}",
        text.format(a=a, b=b),
        str(a - b),
        "\n".join([head, *order, pair, *steps, out]),
        "\n".join([head, *order, pair, *steps, out]),
    )


def multiply(r: random.Random) -> Question:
    a, b = number(r, 3), number(r, 2)
    x, y = (b, a) if r.random() < 0.3 else (a, b)
    text = r.choice(
        (
            "What is {a} * {b}?",
            "{a} * {b}",
            "{a}*{b}",
            "Multiply {a} by {b}.",
            "What is {a} times {b}?",
            "Compute {a} * {b}.",
            "{a} x {b} = ?",
            "What is the product of {a} and {b}?",
        )
    )
    p, q = (y, x) if y > 99 else (x, y)  # the second factor of the worked solution has at most two digits
    head = f"{p:03d} {q:02d}"
    lines, partial = [head], []
    for digit in f"{q:02d}"[::-1]:
        carry, out = 0, ""
        for d in f"{p:03d}"[::-1]:
            v = int(d) * int(digit) + carry
            lines.append(f"{d}*{digit}+{carry}={v:02d}")
            carry, out = v // 10, str(v % 10) + out
        partial.append(f"{carry}{out}")
        lines.append(partial[-1])
    u, v = int(partial[0]), int(partial[1]) * 10
    steps, out = columns(u, v, 5, "+")
    pair = f"{u:05d} {v:05d}"
    return Question(
        "multiply",
        f"{min(a, b)}*{max(a, b)}",
        text.format(a=x, b=y),
        str(a * b),
        "\n".join([*lines, pair, *steps, out[1:]]),
        "\n".join([*lines, pair, *steps, out[1:]]),
    )


def near(r: random.Random, a: int) -> int:
    """Another number, often one that shares leading digits with ``a``."""
    while True:
        b = number(r, 4)
        if r.random() < 0.4:
            s = list(str(a))
            s[r.randrange(len(s))] = str(r.randint(0, 9))
            b = int("".join(s))
        if b != a:
            return b


def compare(r: random.Random) -> Question:
    a = number(r, 4)
    b = near(r, a)
    kind = r.choice(("larger", "smaller", "sign", "yes"))
    order = first_difference(a, b)
    if kind == "larger":
        text = r.choice(
            (
                "Which is larger, {a} or {b}?",
                "Which number is bigger: {a} or {b}?",
                "What is the larger of {a} and {b}?",
            )
        )
        answer = str(max(a, b))
    elif kind == "smaller":
        text = r.choice(
            (
                "Which is smaller, {a} or {b}?",
                "Which number is less: {a} or {b}?",
                "What is the smaller of {a} and {b}?",
            )
        )
        answer = str(min(a, b))
    elif kind == "sign":
        text = r.choice(("Compare {a} and {b}.", "Compare {a} with {b}."))
        answer = f"{a} {'<' if a < b else '>'} {b}"
    else:
        more = r.random() < 0.5
        text = r.choice(
            ("Is {a} larger than {b}?", "Is {a} > {b}?", "Is {a} greater than {b}?")
            if more
            else ("Is {a} smaller than {b}?", "Is {a} < {b}?", "Is {a} less than {b}?")
        )
        answer = "yes" if (a > b) == more else "no"
    head = f"{a:04d} {b:04d}"
    return Question(
        "compare",
        f"{min(a, b)},{max(a, b)}",
        text.format(a=a, b=b),
        answer,
        "\n".join([head, *order]),
        f"{head} {''.join(s[1] for s in order)}",
    )


def sort(r: random.Random) -> Question:
    items: list[int] = []
    size = r.randint(3, 5)
    while len(items) < size:
        v = number(r, 3)
        if v not in items:
            items.append(v)
    down = r.random() < 0.4
    listed = ", ".join(map(str, items))
    text = r.choice(
        (
            "Sort {l} in descending order.",
            "Sort from largest to smallest: {l}",
            "Order {l} from high to low.",
            "Sort descending: {l}",
        )
        if down
        else (
            "Sort {l}.",
            "Sort {l} in ascending order.",
            "Sort from smallest to largest: {l}",
            "Order {l} from low to high.",
            "Sort ascending: {l}",
            "Sort these numbers: {l}",
        )
    )
    left, lines = list(items), []
    while left:
        pick = max(left) if down else min(left)
        lines.append(" ".join(f"{v:03d}" for v in left) + f">{pick:03d}")
        left.remove(pick)
    think = "\n".join(lines)
    return Question(
        "sort",
        ",".join(map(str, sorted(items))),
        text.format(l=listed),
        ", ".join(map(str, sorted(items, reverse=down))),
        think,
        think,
    )


def pseudo_word(r: random.Random, n: int) -> str:
    """Alternating consonants and vowels, now and then a doubled letter."""
    vowel = r.random() < 0.4
    out = ""
    while len(out) < n:
        c = r.choice("aeiou" if vowel else "bcdfghjklmnprstvwz")
        out += c * 2 if r.random() < 0.1 else c
        vowel = not vowel
    return out[:n]


def word(r: random.Random) -> str:
    return r.choice(WORDS) if r.random() < 0.4 else pseudo_word(r, r.randint(3, 10))


def recall(r: random.Random, lines: tuple[int, int] = (2, 28)) -> Question:
    """One value out of a list of ``key = value`` lines."""
    n = r.randint(*lines)
    table: dict[str, int] = {}
    while len(table) < n:
        table[pseudo_word(r, r.randint(3, 5))] = (
            r.randint(10, 9999) if r.random() < 0.3 else r.randint(10, 999)
        )
    want = r.choice(list(table))
    body = "\n".join(f"{k} = {v}" for k, v in table.items())
    ask = recall_ask(r, want)
    text = f"{ask}\n{body}" if r.random() < 0.1 else f"{body}\n{ask}"
    return Question("recall", f"{body}?{want}", text, str(table[want]), f"{want} = {table[want]}", "")


def recall_ask(r: random.Random, key: str) -> str:
    return r.choice(
        (
            "What is {k}?",
            "What is the value of {k}?",
            "Value of {k}?",
            "Look up {k}.",
            "Which value does {k} have?",
        )
    ).format(k=key)


def count(r: random.Random) -> Question:
    w = word(r)
    letter = r.choice(w) if r.random() < 0.85 else r.choice("aeiourstln")
    text = r.choice(
        (
            "How many {c} in {w}?",
            "How many times does {c} occur in {w}?",
            "Count the {c} in {w}.",
            'How many letters "{c}" are in "{w}"?',
            "How many {c}'s are in {w}?",
            "Count the letter {c} in {w}.",
        )
    )
    seen, steps = 0, []
    for i, x in enumerate(w, 1):
        seen += x == letter
        steps.append(f"{i % 10}{x}{seen}")
    think = f"{letter}: " + " ".join(steps)
    return Question("count", f"{letter}/{w}", text.format(c=letter, w=w), str(seen), think, think)


def reverse(r: random.Random) -> Question:
    w = word(r)
    text = r.choice(
        (
            "Reverse {w}.",
            'Reverse "{w}".',
            "Reverse the word {w}.",
            "Spell {w} backwards.",
            "Write {w} in reverse.",
        )
    )
    steps = [f"{i % 10}{x}" for i, x in enumerate(w, 1)]
    think = " ".join(steps) + "\n" + " ".join(steps[::-1])
    return Question("reverse", w, text.format(w=w), w[::-1], think, think)


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


def draw(task: str, r: random.Random, held_out: bool, lines: tuple[int, int] = (2, 28)) -> Question:
    while True:
        q = recall(r, lines) if task == "recall" else TASKS[task](r)
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
