"""Rendering: the oracle is openai-harmony 0.0.8, given the same conversation."""

import random

from gptoss_native import harmony
from gptoss_native.harmony import DeveloperContent, Message, SystemContent, ToolDescription, ToolNamespace

from . import harmony_cases as cases

CONVERSATIONS = 1500


def random_namespaces(r):
    out = []
    for name in r.sample(["functions", "browser", "python", "Zeta", "ägypt"], r.randint(0, 3)):
        if name == "browser" and r.random() < 0.7:
            out.append(harmony.BROWSER)
        elif name == "python" and r.random() < 0.7:
            out.append(harmony.PYTHON)
        else:
            tools = [
                ToolDescription(
                    r.choice(["f", "get_weather", "名前"]),
                    r.choice(["", "One line.", "Two\nlines.\n", "a\r\nb\r\n\nc\r"]),
                    r.choice(
                        [None, {}, cases.schema(r), {"type": "object", "properties": {"p": cases.schema(r)}}]
                    ),
                )
                for _ in range(r.randint(0, 3))
            ]
            for tool in tools:
                if not isinstance(tool.parameters, dict | None):
                    tool.parameters = None  # the oracle's own type allows only objects at the top
            about = r.choice([None, "", "About it.", "Two\nlines."])
            out.append(ToolNamespace(name, about, tools))
    return out


def random_system(r):
    channels = r.choice(
        [None, harmony.ChannelConfig(), harmony.ChannelConfig(r.choice([[], ["final"]]), r.random() < 0.5)]
    )
    return SystemContent(
        r.choice([None, harmony.SystemContent().model_identity, cases.text(r)]),
        r.choice([None, "low", "medium", "high"]),
        r.choice([None, "2025-06-28", cases.text(r)]),
        r.choice([None, "2024-06", ""]),
        channels,
        random_namespaces(r),
    )


def random_message(r):
    role = r.choice(harmony.messages.ROLES)
    content = cases.text(r)
    if role == "system" and r.random() < 0.8:
        content = random_system(r)
    elif role == "developer" and r.random() < 0.8:
        content = DeveloperContent(r.choice([None, cases.text(r)]), random_namespaces(r))
    elif r.random() < 0.2:
        content = [cases.text(r) for _ in range(r.randint(0, 3))]
    name = (
        r.choice(["functions.f", "python", "<|end|>"])
        if role == "tool"
        else r.choice([None, None, None, "Ann", ""])
    )
    return Message(
        role,
        content,
        name,
        r.choice([None, "analysis", "final", "commentary", "<|call|>"]),
        r.choice([None, None, "all", "assistant", "functions.f", "<|start|>"]),
        r.choice(
            [
                None,
                None,
                "json",
                "<|constrain|>json",
                "<|constrain|>",
                "<|constrain|> x",
                "code <|constrain|>",
            ]
        ),
    )


def to_oracle(message):
    """The same message in openai-harmony's classes."""
    import openai_harmony as oh

    def namespaces(found):
        return {
            n.name: oh.ToolNamespaceConfig(
                name=n.name,
                description=n.description,
                tools=[oh.ToolDescription.new(t.name, t.description, t.parameters) for t in n.tools],
            )
            for n in found
        } or None

    def content(part):
        if isinstance(part, str):
            return oh.TextContent(text=part)
        if isinstance(part, DeveloperContent):
            return oh.DeveloperContent(instructions=part.instructions, tools=namespaces(part.tools))
        config, effort = part.channel_config, part.reasoning_effort
        return oh.SystemContent(
            model_identity=part.model_identity,
            reasoning_effort=None if effort is None else oh.ReasoningEffort(effort.capitalize()),
            conversation_start_date=part.conversation_start_date,
            knowledge_cutoff=part.knowledge_cutoff,
            channel_config=None
            if config is None
            else oh.ChannelConfig(
                valid_channels=config.valid_channels, channel_required=config.channel_required
            ),
            tools=namespaces(part.tools),
        )

    parts = message.content if isinstance(message.content, list) else [message.content]
    return oh.Message(
        author=oh.Author(role=oh.Role(message.role), name=message.name),
        content=[content(part) for part in parts],
        channel=message.channel,
        recipient=message.recipient,
        content_type=message.content_type,
    )


def test_random_conversations_give_the_ids_of_openai_harmony(tokenizer, oracle, request):
    import openai_harmony as oh

    seed = request.config.test_seed
    r = random.Random(seed)
    for n in range(CONVERSATIONS):
        messages = [random_message(r) for _ in range(r.randint(0, 6))]
        drop = r.random() < 0.7
        conversation = oh.Conversation.from_messages([to_oracle(m) for m in messages])
        config = oh.RenderConversationConfig(auto_drop_analysis=drop)
        expected = oracle.render_conversation(conversation, config=config)
        found = harmony.render_messages(messages, tokenizer, auto_drop_analysis=drop)
        assert found == expected, (
            f"--seed {seed}, conversation {n}:\n{messages}\n"
            f"found    {tokenizer.decode(found)!r}\nexpected {tokenizer.decode(expected)!r}"
        )


def test_builtin_tools_are_those_of_openai_harmony():
    import openai_harmony as oh

    for ours, theirs in ((harmony.BROWSER, "browser"), (harmony.PYTHON, "python")):
        expected = getattr(oh.ToolNamespaceConfig, theirs)()
        assert (ours.name, ours.description) == (expected.name, expected.description)
        assert [vars(t) for t in ours.tools] == [t.model_dump() for t in expected.tools]
