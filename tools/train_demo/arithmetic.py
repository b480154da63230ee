"""Sums, differences, products and comparisons, worked out digit by digit."""

from __future__ import annotations

import random

from question import Question, number


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
    kind = r.choice(("larger", "smaller", "sign"))
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
    else:
        text = r.choice(("Compare {a} and {b}.", "Compare {a} with {b}."))
        answer = f"{a} {'<' if a < b else '>'} {b}"
    head = f"{a:04d} {b:04d}"
    think = "\n".join([head, *order, f"{max(a, b):04d} {min(a, b):04d}"])  # larger, smaller
    return Question("compare", f"{min(a, b)},{max(a, b)}", text.format(a=a, b=b), answer, think, think)
