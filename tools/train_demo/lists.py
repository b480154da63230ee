"""Lists and letters: sort, recall, count, reverse."""

from __future__ import annotations

import random

from question import Question, number
from words import WORDS

LETTERS = "abcdefghijklmnopqrstuvwxyz"


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


def recall(r: random.Random, lines: tuple[int, int] = (2, 28), keys: int = 1) -> Question:
    """The value of each of ``keys`` keys out of a list of ``key = value`` lines."""
    n = r.randint(*lines)
    table: dict[str, int] = {}
    while len(table) < n:
        table["".join(r.choices(LETTERS, k=2))] = r.randint(10, 999)
    want = r.sample(list(table), min(keys, n))
    body = "\n".join(f"{k} = {v}" for k, v in table.items())
    ask = recall_ask(r, want)
    text = f"{ask}\n{body}" if r.random() < 0.1 else f"{body}\n{ask}"
    answer = ", ".join(str(table[k]) for k in want)
    think = "\n".join(f"{k} = {table[k]}" for k in want)
    return Question("recall", f"{body}?{','.join(want)}", text, answer, think, think if keys > 1 else "")


def recall_ask(r: random.Random, keys: list[str]) -> str:
    if len(keys) > 1:
        return r.choice(("Look up {k}.", "What are {k}?", "Values of {k}?")).format(k=", ".join(keys))
    return r.choice(
        (
            "What is {k}?",
            "What is the value of {k}?",
            "Value of {k}?",
            "Look up {k}.",
            "Which value does {k} have?",
        )
    ).format(k=keys[0])


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
