"""The harmony format of gpt-oss: messages to token ids (`render`, `chat`) and ids back to messages (`parse`).

The ids are those of openai-harmony 0.0.8, and so is what the parser makes of well-formed output.
"""

from .chat import assistant_message, functions_of, render_conversation
from .messages import (
    BROWSER,
    FUNCTIONS,
    PYTHON,
    ChannelConfig,
    DeveloperContent,
    Message,
    ResponseFormat,
    SystemContent,
    ToolDescription,
    ToolNamespace,
    is_tool,
)
from .parse import Delta, HarmonyParser
from .render import render_message, render_messages
from .special import SpecialIds, stop_token_ids

__all__ = [
    "BROWSER",
    "FUNCTIONS",
    "PYTHON",
    "ChannelConfig",
    "Delta",
    "DeveloperContent",
    "HarmonyParser",
    "Message",
    "ResponseFormat",
    "SpecialIds",
    "SystemContent",
    "ToolDescription",
    "ToolNamespace",
    "assistant_message",
    "functions_of",
    "is_tool",
    "render_conversation",
    "render_message",
    "render_messages",
    "stop_token_ids",
]
