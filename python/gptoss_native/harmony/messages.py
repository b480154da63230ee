"""What a harmony conversation is made of."""

from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
DEFAULT_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEFAULT_CUTOFF = "2024-06"


@dataclass
class ToolDescription:
    """One function: `parameters` is a JSON schema, None for a function without arguments."""

    name: str
    description: str = ""
    parameters: Any = None


@dataclass
class ToolNamespace:
    """Functions under one name; without functions, a tool that takes plain text (like python)."""

    name: str
    description: str | None = None
    tools: list[ToolDescription] = field(default_factory=list)


@dataclass
class ChannelConfig:
    """The "# Valid channels" line of the system message."""

    valid_channels: list[str] = field(default_factory=lambda: ["analysis", "commentary", "final"])
    channel_required: bool = True


@dataclass
class SystemContent:
    """A system message's content. A field that is None leaves out its line.

    reasoning_effort: "low", "medium" or "high"
    conversation_start_date, knowledge_cutoff: printed as given, e.g. "2025-06-28" and "2024-06"
    tools: built-in tools, such as BROWSER and PYTHON
    """

    model_identity: str | None = DEFAULT_IDENTITY
    reasoning_effort: str | None = "medium"
    conversation_start_date: str | None = None
    knowledge_cutoff: str | None = DEFAULT_CUTOFF
    channel_config: ChannelConfig | None = field(default_factory=ChannelConfig)
    tools: list[ToolNamespace] = field(default_factory=list)


@dataclass
class ResponseFormat:
    """A JSON schema that the final answer must follow, with its name and what it is for."""

    name: str
    schema: Any
    description: str | None = None


@dataclass
class DeveloperContent:
    """A developer message's content: instructions, then tools, then response formats."""

    instructions: str | None = None
    tools: list[ToolNamespace] = field(default_factory=list)
    response_formats: list[ResponseFormat] = field(default_factory=list)


#: The namespace of functions that the developer declares, as recipients have it.
FUNCTIONS = "functions."
#: Recipients that are no tool.
AUDIENCE = (None, "", "user", "all", "assistant")


def is_tool(recipient: str | None) -> bool:
    """Whether a message of the assistant to `recipient` is a tool call."""
    return recipient not in AUDIENCE


Content = str | SystemContent | DeveloperContent


@dataclass
class Message:
    """One harmony message.

    role:         "system", "developer", "user", "assistant" or "tool"
    content:      text; for rendering also a SystemContent, a DeveloperContent, or a list of parts, each
                  tokenised on its own. The parser always gives text
    name:         the author's name; of a tool, the name it is printed under, e.g. "functions.get_weather"
    channel:      "analysis", "commentary" or "final"
    recipient:    who the message is for: the tool in a tool call, "assistant" in a tool's answer
    content_type: e.g. "<|constrain|>json" or "code"
    """

    role: str
    content: Content | list[Content]
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


# The built-in tools gpt-oss was trained with, in the wording it was trained on (openai/harmony, Apache-2.0).
# That text is part of the format, so it cannot be said in other words.
BROWSER = ToolNamespace(
    "browser",
    "Tool for browsing.\n"
    "The `cursor` appears in brackets before each browsing display: `[{cursor}]`.\n"
    "Cite information from the tool using the following format:\n"
    "`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.\n"
    "Do not quote more than 10 words directly from the tool output.\n"
    "sources=web (default: web)",
    [
        ToolDescription(
            "search",
            "Searches for information related to `query` and displays `topn` results.",
            {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "topn": {"type": "number", "default": 10},
                    "source": {"type": "string"},
                },
                "required": ["query"],
            },
        ),
        ToolDescription(
            "open",
            "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, "
            "showing `num_lines` lines.\n"
            "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
            "If `cursor` is not provided, the most recent page is implied.\n"
            "If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n"
            "If `loc` is not provided, the viewport will be positioned at the beginning of the document or "
            "centered on the most relevant passage, if available.\n"
            "Use this function without `id` to scroll to a new location of an opened page.",
            {
                "type": "object",
                "properties": {
                    "id": {"type": ["number", "string"], "default": -1},
                    "cursor": {"type": "number", "default": -1},
                    "loc": {"type": "number", "default": -1},
                    "num_lines": {"type": "number", "default": -1},
                    "view_source": {"type": "boolean", "default": False},
                    "source": {"type": "string"},
                },
            },
        ),
        ToolDescription(
            "find",
            "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.",
            {
                "type": "object",
                "properties": {
                    "pattern": {"type": "string"},
                    "cursor": {"type": "number", "default": -1},
                },
                "required": ["pattern"],
            },
        ),
    ],
)

PYTHON = ToolNamespace(
    "python",
    "Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. "
    "This tool should be used for internal reasoning, but not for code that is intended to be visible to the "
    "user (e.g. when creating plots, tables, or files).\n\n"
    "When you send a message containing Python code to python, it will be executed in a stateful Jupyter "
    "notebook environment. python will respond with the output of the execution or time out after 120.0 "
    "seconds. The drive at '/mnt/data' can be used to save and persist user files. Internet access for this "
    "session is UNKNOWN. Depends on the cluster.",
)
