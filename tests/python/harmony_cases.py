"""Random conversations and token streams for the harmony tests, from a `random.Random`."""

import random
import re
from typing import Any

from gptoss_native.harmony import Message
from gptoss_native.tokenizer import Tokenizer

TEXTS = (
    "Hello", " world", "2 + 2 = 4", "naïve café", "日本語のテキスト", "💖", "👩‍👩‍👧", "\n\n", "\r\n", "  ",
    ".", "|", "Привет",
    "<|end|>", "<|start|>assistant", "<|channel|>final<|message|>", "<|constrain|>", "<|", "to=functions.f",
    "def f(x):\n    return x\n", '{"a": [1, 2.5, null]}', "İſ\ufeff", "العربية", "x" * 40, "e\u0301\u200d",
)  # fmt: skip


def text(r: random.Random, most: int = 6) -> str:
    return "".join(r.choice(TEXTS) for _ in range(r.randint(0, most)))


def anything(r: random.Random) -> Any:
    """Any JSON value, also numbers that Python and Rust print differently."""
    return r.choice(
        [None, True, False, 0, -7, 2**53, 10**25, 0.5, 1e16, 1e-5, 2.5e-7, 123456.75, 1.0, -0.0, 1e300,
         "", "a", "q\"\\\n\t\x01é", [1, "b"], {}, {"k": [None, 2.0]}, []]
    )  # fmt: skip


def schema(r: random.Random, depth: int = 3) -> Any:
    """A JSON schema, mostly sensible, now and then with a value of the wrong kind anywhere."""
    if r.random() < 0.03:
        return anything(r)
    out: dict[str, Any] = {}
    kinds = ["string", "number", "integer", "boolean", "null", "array", "object", "object", "other"]
    shape = r.random()
    if shape < 0.15 and depth > 0:
        key = r.choice(["oneOf", "oneOf", "oneOf", "anyOf", "allOf"])
        out[key] = [schema(r, depth - 1) for _ in range(r.randint(0, 3))]
        if r.random() < 0.2:
            out["type"] = r.choice(kinds)
    elif shape < 0.25:
        out["type"] = [r.choice(kinds) for _ in range(r.randint(0, 3))]
    elif shape < 0.95:
        out["type"] = r.choice(kinds)
    if out.get("type") == "object" and depth > 0:
        names = [r.choice(["a", "b_c", "naïve", "x y", "zz", "city"]) for _ in range(r.randint(0, 4))]
        out["properties"] = {name: schema(r, depth - 1) for name in names}
        if r.random() < 0.6:
            out["required"] = [name for name in names if r.random() < 0.5]
    if out.get("type") == "array" and r.random() < 0.8:
        out["items"] = schema(r, depth - 1) if depth > 0 else {"type": "string"}
    optional = {
        "enum": lambda: r.choice([["a", "b"], ["null"], [1, 2], [], ["x", 3]]),
        "description": lambda: r.choice(["One line.", "Two\nlines.", "", "null", "ends with\n"]),
        "default": lambda: anything(r),
        "nullable": lambda: r.choice([True, False, "yes"]),
        "title": lambda: "TITLE",
        "examples": lambda: r.choice([["one", "two"], [1], [], "text"]),
        "oneOf": lambda: anything(r),
    }
    for key, make in optional.items():
        if key not in out and r.random() < (0.02 if key == "oneOf" else 0.25):
            out[key] = make()
    if isinstance(out.get("enum"), list) and r.random() < 0.5:
        out["default"] = "a"
    if "oneOf" in out and isinstance(out["oneOf"], list) and out["oneOf"] and r.random() < 0.4:
        first = out["oneOf"][0]
        if isinstance(first, dict) and isinstance(first.get("description"), str):
            out["description"] = first["description"]
    return out


def as_special_ids(tokenizer: Tokenizer, written: str) -> list[int]:
    """Ids of a text in which the specials' spellings stand for the specials themselves."""
    ids: list[int] = []
    for piece in re.split(r"(<\|[a-z]+\|>)", written):
        ids += [tokenizer.specials[piece]] if piece in tokenizer.specials else tokenizer.encode(piece)
    return ids


def header(r: random.Random) -> str:
    """A well-formed header after the role, in the forms models write."""
    channel = r.choice(["analysis", "commentary", "final"])
    tool = r.choice(["functions.get_weather", "python", "browser.search", "functions.名前"])
    return r.choice(
        [
            "",
            f"<|channel|>{channel}",
            f"<|channel|>{channel} ",
            f" to={tool}<|channel|>{channel}",
            f"<|channel|>{channel} to={tool} code",
            f"<|channel|>{channel} to={tool} <|constrain|>json",
            f"<|channel|>{channel} to={tool}<|constrain|>json",
            f" to={tool}<|channel|>{channel} <|constrain|>json",
            f" to={tool}<|channel|>{channel}<|constrain|>json",
            f" to={tool}<|channel|>{channel} json",
            f"<|channel|>{channel} {tool}",
            f"<|channel|>{channel} {tool} code",
        ]
    )


def stream(r: random.Random, tokenizer: Tokenizer, given: bool) -> list[int]:
    """A well-formed stream of 1 to 4 messages; with `given`, it goes on after `<|start|>assistant`."""
    ids: list[int] = []
    count = r.randint(1, 4)
    for n in range(count):
        if not (given and n == 0):
            author = r.choice(["assistant", "assistant", "assistant", "user", "system", "developer", "tool"])
            ids += as_special_ids(tokenizer, f"<|start|>{author}")
        elif r.random() < 0.1:
            ids += tokenizer.encode("assistant")
        if n and r.random() < 0.15:
            ids[-1:] = tokenizer.encode(
                r.choice(["functions.get_weather to=assistant", "python to=assistant"])
            )
            ids += as_special_ids(tokenizer, r.choice(["<|channel|>commentary", ""]))
        else:
            ids += as_special_ids(tokenizer, header(r))
        ids += [tokenizer.specials["<|message|>"], *tokenizer.encode(text(r))]
        if n < count - 1 or r.random() < 0.8:
            ids.append(tokenizer.specials[r.choice(["<|end|>", "<|end|>", "<|call|>", "<|return|>"])])
    return ids


def fields(message: Message) -> tuple[str | None, ...]:
    return message.role, message.name, message.channel, message.recipient, message.content_type
