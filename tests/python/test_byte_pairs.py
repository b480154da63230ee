"""Encoding what makes tiktoken panic or stand still. Oracle: tiktoken itself, on texts that it can do."""

from __future__ import annotations

import random

import pytest
from gptoss_native import byte_pairs, o200k
from gptoss_native.byte_pairs import WHOLE_TEXT, BytePairs
from gptoss_native.errors import RequestError
from gptoss_native.tokenizer_json import GPT2_PATTERN

WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
# Not white to Rust: what Python's \s takes too (1c to 1f), zero-width space; a mark counts as letter and not.
OTHERS = "\x1c\x1faAé漢1²!/'.\u0301\u200b\ufeff💖"
# Merges that make the tokens of a word depend on where it begins and ends.
PAIRS = [
    a + b
    for a in (b" ", b"\n", b"\t", b"!", b"/", b"\r", b"  ", b"\n\n", b" \n", b"!\n")
    for b in (b" ", b"\n", b"a", b"!", b"/", b"  ", b"\n\n", b"\t")
]
SMALL = [*(bytes((byte,)) for byte in range(256)), *dict.fromkeys(PAIRS)]
PATTERNS = [o200k.PATTERN, GPT2_PATTERN, WHOLE_TEXT]


def random_text(r: random.Random) -> str:
    """Runs of one to nine characters, most of them white, of few kinds at a time."""
    kinds = r.choice(["\n ", "\r\n\t ", "!/\n", " a", WHITE, " 1\t"]) + r.choice(OTHERS)
    return "".join(
        "".join(r.choice(kinds) for _ in range(r.randint(1, 9))) if r.random() < 0.7 else r.choice(OTHERS)
        for _ in range(r.randint(0, 8))
    )


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("long_run", [1, 2, 3, 5])
def test_runs_are_cut_where_the_regex_cuts_them(pattern, long_run, monkeypatch, request):
    monkeypatch.setattr(byte_pairs, "LONG_RUN", long_run)
    r = random.Random(request.config.test_seed + long_run)
    ours = BytePairs(SMALL, pattern, known=True)
    for _ in range(4000):
        text = random_text(r)
        assert ours.encode(text) == ours.words.encode_ordinary(text), repr(text)


def test_finding_cuts_costs_what_the_text_does(monkeypatch):
    """ "!\\n\\n/\\n\\n/" is one word of punctuation, with many long runs in it; none is read twice."""
    monkeypatch.setattr(byte_pairs, "LONG_RUN", 8)
    ours, read = BytePairs(SMALL, o200k.PATTERN, known=True), []
    takes_newlines = ours._takes_newlines
    monkeypatch.setattr(ours, "_takes_newlines", lambda text: read.append(text) or takes_newlines(text))
    text = "!" + ("\n" * 8 + "/") * 500 + "\n" * 8 + " " * 8 + "a"
    assert ours.encode(text) == ours.words.encode_ordinary(text)
    assert read
    assert sum(map(len, read)) < len(text)


def test_runs_are_cut_the_same_with_the_ranks_of_gpt_oss(tokenizer, monkeypatch, request):
    pairs, r = tokenizer._pairs, random.Random(request.config.test_seed)
    for length in (1000, 60_000, 200_000, 400_000):
        for text in (
            " " * length,
            "!" + "\n" * length + "/" + "\n \t" * (length // 3) + "x",
            "".join(r.choice(" \n\t\u3000") for _ in range(length)) + r.choice("a1!/ "),
        ):
            monkeypatch.setattr(byte_pairs, "LONG_RUN", 500)
            assert tokenizer.encode(text) == pairs.words.encode_ordinary(text)


@pytest.mark.parametrize(
    "text", [" " * 1_000_000, "\t" * 3_000_000 + "end", "a1!\u3000" + " \u3000" * 900_000]
)
def test_a_million_blanks_are_ordinary_text(tokenizer, text):
    """tiktoken panics for each of them."""
    with pytest.raises(BaseException, match="StackOverflow") as caught:
        tokenizer._pairs.words.encode_ordinary(text)
    assert not isinstance(caught.value, Exception)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_long_run_costs_about_what_its_length_does(tokenizer):
    """The ids of a run of blanks repeat: twice the blanks, twice the ids."""
    once, twice = (tokenizer.encode(" " * (n << 20)) for n in (1, 2))
    assert abs(len(twice) - 2 * len(once)) <= 2
    assert len(once) < (1 << 20) / 100


@pytest.mark.parametrize("pattern", ["", "a*", r"\b", "(?=a)"])
def test_a_regex_that_matches_nothing_is_an_error_not_a_panic(pattern):
    with pytest.raises(RequestError, match="cannot cut a text of 2 characters"):
        BytePairs(SMALL, pattern, known=False).encode("a ")


def test_a_regex_that_backtracks_without_end_is_an_error_not_a_panic():
    with pytest.raises(RequestError, match="3,000 characters"):
        BytePairs(SMALL, "(a+)+(?!a)x|(a+)+b", known=False).encode("a" * 3000)


def test_a_regex_that_takes_too_long_is_given_up(monkeypatch):
    """A regex that reads to the end of the text from every place of it."""
    slow, text = BytePairs(SMALL, r".*z|[\s\S]", known=False), "a" * 40_000
    monkeypatch.setattr(byte_pairs, "REGEX_SECONDS", 0.1)
    with pytest.raises(RequestError, match=r"more than 0\.1 s for 40,000 characters"):
        slow.encode(text)
    with pytest.raises(RequestError, match="still busy with an earlier text"):
        slow.encode("a")
    slow._late.join(60)
    assert slow.encode("abz") == [97, 98, 122]
