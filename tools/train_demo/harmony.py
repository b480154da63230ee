"""Harmony conversations as byte-level token ids, for training only.

A *segment list* is the unit passed around: ``(text | special, trained)`` pairs. Text becomes one id per
UTF-8 byte, a special becomes its own id. ``trained`` marks what the model has to produce itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
VOCAB_SIZE = 288
SPECIAL_ID = {name: 256 + i for i, name in enumerate(SPECIALS)}
RETURN, END, CALL, PAD = (SPECIAL_ID[f"<|{n}|>"] for n in ("return", "end", "call", "endoftext"))


@dataclass
class Tokens:
    """Ids of one conversation; ``target[i]`` is what position i must predict next, or -1."""

    ids: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)

    def add(self, ids: list[int], trained: bool) -> None:
        for i in ids:
            if self.ids:
                self.target[-1] = i if trained else -1
            self.ids.append(i)
            self.target.append(-1)


def encode(text: str) -> list[int]:
    """Text with special tokens spelled out -> ids. For our own templates only, never for foreign text."""
    out: list[int] = []
    rest = text
    while rest:
        cut = rest.find("<|")
        if cut < 0:
            out.extend(rest.encode())
            break
        out.extend(rest[:cut].encode())
        end = rest.index("|>", cut) + 2
        out.append(SPECIAL_ID[rest[cut:end]])
        rest = rest[end:]
    return out


def system(effort: str, date: str | None, tools: bool) -> str:
    """The default system message, as openai-harmony prints it."""
    lines = ["You are ChatGPT, a large language model trained by OpenAI.", "Knowledge cutoff: 2024-06"]
    if date:
        lines.append(f"Current date: {date}")
    body = "\n".join(lines) + f"\n\nReasoning: {effort}\n\n# Valid channels: analysis, commentary, final. "
    body += "Channel must be included for every message."
    if tools:
        body += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return f"<|start|>system<|message|>{body}<|end|>"


def developer(instructions: str | None, tool: tuple[str, str] | None) -> str:
    """Developer message; tool = (description, description of its argument)."""
    parts = []
    if instructions:
        parts.append(f"# Instructions\n\n{instructions}")
    if tool:
        about, argument = tool
        parts.append(
            "# Tools\n\n## functions\n\nnamespace functions {\n\n"
            + f"// {about}\ntype calculator = (_: {{\n"
            + (f"// {argument}\n" if argument else "")
            + "expression: string,\n}) => any;\n\n} // namespace functions"
        )
    return "<|start|>developer<|message|>" + "\n\n".join(parts) + "<|end|>" if parts else ""


def user(text: str) -> str:
    return f"<|start|>user<|message|>{text}<|end|>"


ASSISTANT = "<|start|>assistant"


def analysis(text: str) -> str:
    """What follows ``<|start|>assistant`` when the model thinks first; ends where the next message begins."""
    return f"<|channel|>analysis<|message|>{text}<|end|>{ASSISTANT}"


def final(text: str, end: str = "<|return|>") -> str:
    return f"<|channel|>final<|message|>{text}{end}"


def call(expression: str) -> str:
    return (
        " to=functions.calculator<|channel|>commentary <|constrain|>json<|message|>"
        f'{{"expression": "{expression}"}}<|call|>'
    )


def tool_result(text: str) -> str:
    return f"<|start|>functions.calculator to=assistant<|channel|>commentary<|message|>{text}<|end|>"
