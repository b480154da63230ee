"""Parsing: well-formed streams against openai-harmony 0.0.8, others against the rules in `parse.py`."""

import random
import re
import time

import pytest
from gptoss_native.errors import CheckpointError, RequestError
from gptoss_native.harmony import HarmonyParser, Message

from . import harmony_cases as cases

WELL_FORMED = 1500
CORRUPTED = 10_000


def oracle_fields(message):
    text = "".join(part.text for part in message.content)
    author = message.author
    return (author.role.value, author.name, message.channel, message.recipient, message.content_type), text


def run(parser, ids):
    """All deltas of a whole stream."""
    deltas = [delta for token_id in ids for delta in parser.push(token_id)]
    return deltas + parser.finish()


def assert_deltas_make_messages(parser, deltas):
    texts = [""] * len(parser.messages)
    for delta in deltas:
        assert delta.text
        texts[delta.message_index] += delta.text
        message = parser.messages[delta.message_index]
        found = (delta.role, delta.name, delta.channel, delta.recipient, delta.content_type)
        assert found == cases.fields(message)
    assert texts == [message.content for message in parser.messages]


def test_well_formed_streams_parse_like_openai_harmony_after_every_token(tokenizer, oracle, request):
    """Text, channel, recipient and content type of the open message, and all messages, after each token."""
    import openai_harmony as oh

    seed = request.config.test_seed
    r = random.Random(seed)
    for n in range(WELL_FORMED):
        given = r.random() < 0.6
        ids = cases.stream(r, tokenizer, given)
        ours = HarmonyParser(tokenizer, "assistant" if given else None)
        theirs = oh.StreamableParser(oracle, oh.Role.ASSISTANT if given else None)
        where = f"--seed {seed}, stream {n}: {tokenizer.decode(ids)!r}"
        deltas, done = [], 0
        for token_id in ids:
            deltas += ours.push(token_id)
            theirs.process(token_id)
            text = "".join(delta.text for delta in deltas if delta.message_index == len(ours.messages))
            assert text == theirs.current_content, where
            if ours.current is not None:
                now = (ours.current.channel, ours.current.recipient, ours.current.content_type)
                expected = (theirs.current_channel, theirs.current_recipient, theirs.current_content_type)
                assert now == expected, where
                assert ours.current.role == theirs.current_role.value, where
                assert ours.current.content == text, where
            if len(ours.messages) != done:
                done = len(ours.messages)
                assert done == len(theirs.messages), where
        deltas += ours.finish()
        theirs.process_eos()
        expected_messages = [oracle_fields(message) for message in theirs.messages]
        assert [(cases.fields(m), m.content) for m in ours.messages] == expected_messages, where
        assert ours.recoveries == [], where
        assert_deltas_make_messages(ours, deltas)


def corrupt(r, tokenizer, ids):
    """1 to 4 deletions, insertions, swaps, truncations, random specials or random ids."""
    ids = list(ids)
    named = [i for s, i in tokenizer.specials.items() if "reserved" not in s]
    for _ in range(r.randint(1, 4)):
        at = r.randrange(len(ids) + 1)
        kind = r.randrange(9)
        if kind == 0:
            del ids[at : at + r.randint(1, 3)]
        elif kind == 1:
            ids.insert(at, r.choice(named))
        elif kind == 2 and len(ids) > 1:
            other = r.randrange(len(ids))
            at = min(at, len(ids) - 1)
            ids[at], ids[other] = ids[other], ids[at]
        elif kind == 3:
            ids = ids[:at] if r.random() < 0.3 else ids
        elif kind == 4:
            ids.insert(at, r.choice([r.randrange(tokenizer.n_vocab), tokenizer.n_vocab, 2**40, -1]))
        elif kind == 5:
            ids[at:at] = [r.randrange(256) for _ in range(r.randint(1, 3))]  # single bytes
        elif kind == 6:
            ids[at:at] = tokenizer.encode(
                r.choice([" to=", "to=x", " some words", "assistant", "user:Ann", "\n", " json"])
            )
        elif kind == 7:
            special = [i for i, token_id in enumerate(ids) if token_id in tokenizer.special_ids]
            if special:
                del ids[r.choice(special)]
        else:
            ids[at:at] = ids[r.randrange(len(ids) + 1) :][: r.randint(0, 8)]
    return ids


def text_runs(tokenizer, ids):
    """Decoded runs of ordinary tokens between special (or unknown) ids."""
    runs, current = [], []
    for token_id in [*ids, -1]:
        if token_id in tokenizer.special_ids or not 0 <= token_id < tokenizer.n_vocab:
            if current:
                runs.append(tokenizer.decode(current))
            current = []
        else:
            current.append(token_id)
    return runs


def assert_no_text_is_lost(tokenizer, ids, parser):
    """The invariant stated in `harmony/parse.py`."""
    contents = [message.content for message in parser.messages]
    fields = [field for message in parser.messages for field in cases.fields(message) if field is not None]
    everything = "\n".join(contents + fields + parser.recoveries)
    for run_text in text_runs(tokenizer, ids):
        if not any(run_text in content for content in contents):
            for word in re.split(r"<\|channel\|>|<\|constrain\|>|[\s<]", run_text):
                assert word.removeprefix("to=") in everything, f"{word!r} of {run_text!r} is lost"


def test_corrupted_streams_raise_nothing_and_lose_no_text(tokenizer, oracle, request):
    """And where no rule was used, openai-harmony accepts the stream and gives the same messages."""
    import openai_harmony as oh

    seed = request.config.test_seed
    r = random.Random(seed)
    recovered = agreed = 0
    for n in range(CORRUPTED):
        given = r.random() < 0.6
        ids = cases.stream(r, tokenizer, given)
        mark = tokenizer.specials["<|message|>"]
        for at in [i for i, token_id in enumerate(ids) if token_id == mark][::-1]:
            ids[at + 1 : at + 1] = tokenizer.encode(f"w{r.randrange(10**9)} ")  # no text like another's
        ids = corrupt(r, tokenizer, ids)
        parser = HarmonyParser(tokenizer, "assistant" if given else None)
        try:
            assert_deltas_make_messages(parser, run(parser, ids))
            assert_no_text_is_lost(tokenizer, ids, parser)
            if parser.recoveries:
                recovered += 1
                continue
            agreed += 1
            if any("\ufffd" in field for m in parser.messages for field in cases.fields(m) if field):
                continue  # the official parser wants headers in UTF-8
            expected = oracle.parse_messages_from_completion_tokens(ids, oh.Role.ASSISTANT if given else None)
            assert [(cases.fields(m), m.content) for m in parser.messages] == [
                oracle_fields(m) for m in expected
            ]
        except Exception as error:
            error.add_note(f"--seed {seed}, stream {n}, role given: {given}: {ids}")
            raise
    assert recovered > CORRUPTED // 4
    assert agreed > CORRUPTED // 20


RECOVERED = [
    # written stream after `<|start|>assistant`, messages as (channel, recipient, content type, text)
    ("Hello there, my friend", [(None, None, None, "Hello there, my friend")]),
    ("Hi<|return|>", [(None, None, None, "Hi")]),
    ("<|channel|>final Hello<|return|>", [("final", None, None, "Hello")]),
    ("<|channel|>analysis We need to think.<|end|>", [("analysis", None, None, "We need to think.")]),
    (
        "<|channel|>analysis<|message|>Think.<|channel|>final<|message|>Yes.<|return|>",
        [("analysis", None, None, "Think."), ("final", None, None, "Yes.")],
    ),
    (
        "<|channel|>analysis<|message|>Think.<|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        [("analysis", None, None, "Think."), ("final", None, None, "Yes.")],
    ),
    (
        "<|channel|>analysis<|message|>Think.<|end|>assistant<|channel|>final<|message|>Yes.<|return|>",
        [("analysis", None, None, "Think."), ("final", None, None, "Yes.")],
    ),
    (
        "<|channel|>analysis<|message|>Think.<|end|><|channel|>final<|message|>Yes.",
        [("analysis", None, None, "Think."), ("final", None, None, "Yes.")],
    ),
    ("<|start|>assistant<|channel|>final<|message|>Yes.<|return|>", [("final", None, None, "Yes.")]),
    (
        "<|channel|>final <|constrain|>json<|message|>{}<|return|>",
        [("final", None, "<|constrain|>json", "{}")],
    ),
    (
        "<|channel|>commentary to=functions.f <|constrain|> json<|message|>{}<|call|>",
        [("commentary", "functions.f", "<|constrain|>json", "{}")],
    ),
    (
        "<|channel|>commentary please call to=functions.f json<|message|>{}<|call|>",
        [("commentary", "functions.f", "json", "{}")],
    ),
    ("<|channel|>commentary to=functions.f<|call|>", [("commentary", "functions.f", None, "")]),
    (
        '<|channel|>commentary to=functions.f <|constrain|>json{"a": 1}<|call|>',
        [("commentary", "functions.f", "<|constrain|>json", '{"a": 1}')],
    ),
    ("<|channel|>analysis<|channel|>final<|message|>x", [("final", None, None, "x")]),
    ("<|channel|><|message|>x<|end|>", [(None, None, None, "x")]),
    ("<|message|>a<|message|>b<|constrain|>c<|endoftext|>", [(None, None, None, "abc")]),
    ("<|message|>a<|end|><|end|><|return|>", [(None, None, None, "a")]),
    ("<|end|>", []),
    ("<|channel|>fin", []),
]


@pytest.mark.parametrize(("written", "expected"), RECOVERED)
def test_malformed_streams_follow_the_rules(tokenizer, written, expected):
    parser = HarmonyParser(tokenizer)
    ids = cases.as_special_ids(tokenizer, written)
    assert_deltas_make_messages(parser, run(parser, ids))
    found = [(m.channel, m.recipient, m.content_type, m.content) for m in parser.messages]
    assert found == expected
    assert all(m.role == "assistant" for m in parser.messages)
    assert parser.recoveries
    assert_no_text_is_lost(tokenizer, ids, parser)


@pytest.mark.parametrize(
    ("written", "role", "name"),
    [
        ("<|start|>user:Ann<|message|>x", "user", "Ann"),
        ("<|start|>functions.f<|message|>x", "tool", "functions.f"),
        ("<|start|>somebody<|message|>x", "assistant", "somebody"),
        ("<|start|><|message|>x", "assistant", None),
        ("<|message|>x", "assistant", None),
        ("<|start|>user to=functions.f hi<|end|>", "user", None),
        ("<|start|>functions.f to=assistant<|call|>", "tool", "functions.f"),
    ],
)
def test_authors_that_are_no_role_are_read_by_the_rules(tokenizer, written, role, name):
    parser = HarmonyParser(tokenizer, None)
    run(parser, cases.as_special_ids(tokenizer, written))
    assert [(m.role, m.name) for m in parser.messages] == [(role, name)]
    assert parser.recoveries


def test_text_without_a_header_streams_from_the_third_word_on(tokenizer):
    """A model that does not speak harmony must not leave its user waiting until the end."""
    parser = HarmonyParser(tokenizer)
    shown = ["".join(d.text for d in parser.push(i)) for i in tokenizer.encode("One two three four five")]
    assert shown == ["", "", "One two three", " four", " five"]


@pytest.mark.parametrize(
    "spam",
    [
        "<|channel|>",
        "<|channel|>a ",
        "<|channel|>a<|constrain|>",
        " to=x",
        "<|start|>",
        "<|start|>user",
        "<|message|>",
        "<|end|>",
        "x<|end|>",
    ],
)
def test_spam_takes_linear_time_and_its_recoveries_are_counted(tokenizer, spam):
    """20,000 tokens that never make a message: once 2 s for channel marks, and 1.3 MB of recoveries."""
    piece = cases.as_special_ids(tokenizer, spam)

    def seconds(tokens: int) -> float:
        ids = (piece * tokens)[:tokens]
        start = time.process_time()
        run(HarmonyParser(tokenizer), ids)
        return time.process_time() - start

    # Eight times the tokens take about eight times as long, not sixty-four; others may use the machine.
    assert min(seconds(20_000) for _ in range(3)) < 32 * min(seconds(2_500) for _ in range(5))
    parser = HarmonyParser(tokenizer)
    run(parser, (piece * 20_000)[:20_000])
    *sentences, last = parser.recoveries
    assert len(sentences) <= 100
    assert sum(map(len, sentences)) < 500_000
    if len(sentences) == 100:
        assert re.fullmatch(r"and \d+ more", last)


def test_recoveries_beyond_the_hundredth_are_counted(tokenizer):
    parser = HarmonyParser(tokenizer)
    run(parser, cases.as_special_ids(tokenizer, "<|message|>a<|end|>" + "<|end|>" * 100))
    assert len(parser.recoveries) == 100
    parser.push(tokenizer.specials["<|end|>"])
    parser.push(tokenizer.specials["<|end|>"])
    assert parser.recoveries[100:] == ["and 2 more"]
    assert parser.messages == [Message("assistant", "a")]


def test_a_header_without_end_becomes_content(tokenizer):
    parser = HarmonyParser(tokenizer)
    text = " to=" + "x" * 9000
    deltas = run(parser, tokenizer.encode(text))
    [message] = parser.messages
    assert message.recipient + message.content == text.removeprefix(" to=")
    assert deltas


def test_invalid_utf8_becomes_replacement_characters_as_decode_does(tokenizer, request):
    r = random.Random(request.config.test_seed)
    for _ in range(300):
        ids = [r.randrange(256) for _ in range(r.randint(0, 12))]
        parser = HarmonyParser(tokenizer)
        deltas = run(parser, [tokenizer.specials["<|message|>"], *ids])
        assert parser.messages == [Message("assistant", tokenizer.decode(ids))]
        assert "".join(d.text for d in deltas) == tokenizer.decode(ids)


def test_what_is_rendered_parses_back(tokenizer, request):
    from gptoss_native.harmony import render_messages

    r = random.Random(request.config.test_seed)
    for _ in range(200):
        messages = [
            r.choice(
                [
                    Message("assistant", cases.text(r), channel="analysis"),
                    Message(
                        "assistant", cases.text(r), None, "commentary", "functions.f", "<|constrain|>json"
                    ),
                    Message("tool", cases.text(r), "functions.f", "commentary", "assistant"),
                    Message("user", cases.text(r)),
                    Message("assistant", cases.text(r), channel="final"),
                ]
            )
            for _ in range(r.randint(1, 5))
        ]
        parser = HarmonyParser(tokenizer, None)
        run(parser, render_messages(messages, tokenizer, auto_drop_analysis=False))
        assert parser.messages == messages
        assert parser.recoveries == []


def test_bad_construction_is_refused(tokenizer):
    with pytest.raises(RequestError, match="robot"):
        HarmonyParser(tokenizer, "robot")

    class Other:
        specials = {"<|start|>": 1}  # noqa: RUF012

    with pytest.raises(CheckpointError, match=r"<\|message\|>"):
        HarmonyParser(Other())


@pytest.mark.parametrize("cut", ["", "a", "assist", "to", "developer"])
def test_a_role_that_was_cut_is_no_message(tokenizer, cut):
    """As when max_tokens or a deadline ends an answer after `<|start|>`."""
    parser = HarmonyParser(tokenizer, "assistant")
    run(parser, cases.as_special_ids(tokenizer, "<|channel|>final<|message|>Yes.<|end|><|start|>" + cut))
    assert [(message.channel, message.content) for message in parser.messages] == [("final", "Yes.")]
    assert not cut or cut in parser.recoveries[-1]


def test_a_word_that_is_no_role_is_kept(tokenizer):
    parser = HarmonyParser(tokenizer, "assistant")
    run(parser, tokenizer.encode("assist"))
    assert [message.content for message in parser.messages] == ["assist"]
