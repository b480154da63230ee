"""Where a text has been before. Oracle: a scan of the whole text for each token."""

from __future__ import annotations

import pytest
from gptoss_native import prompt_lookup
from gptoss_native.prompt_lookup import MAX_AGREEMENT, PromptLookup


def scan(text, longest, shortest):
    """The place after the latest earlier occurrence of the longest run of last tokens, and the agreement."""
    for size in range(longest, shortest - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if size < len(text) and text[end - size : end] == text[-size:]:
                while size < min(end, MAX_AGREEMENT) and text[end - size - 1] == text[len(text) - size - 1]:
                    size += 1
                return end, size
    return None


@pytest.mark.parametrize("unsorted", [1, 50, 4096])
def test_each_token_of_random_texts_finds_what_a_scan_finds(unsorted, rng, monkeypatch):
    """Few n-grams wait in the dictionary, or all; vocabularies from one token to large ones."""
    monkeypatch.setattr(prompt_lookup, "UNSORTED", unsorted)
    found = 0
    for _ in range(40):
        vocab = int(rng.choice([1, 2, 5, 30, 200_000]))
        text = rng.integers(0, vocab, int(rng.integers(0, 120))).tolist()
        text += text[: int(rng.integers(0, 40))]
        shortest = int(rng.integers(1, 4))
        longest = shortest + int(rng.integers(0, 4))
        lookup = PromptLookup(text, longest, shortest)
        for _ in range(60):
            match = lookup.find()
            assert (tuple(match) if match else None) == scan(text, longest, shortest)
            found += match is not None
            token = int(rng.integers(0, vocab))
            text.append(token)
            lookup.append(token)
    assert found > 100


def test_a_guess_goes_on_beyond_the_end_by_repeating(rng):
    for _ in range(50):
        text = rng.integers(0, 9, int(rng.integers(2, 20))).tolist()
        place = int(rng.integers(1, len(text)))
        count = int(rng.integers(1, 50))
        grown = list(text)
        for ahead in range(count):
            grown.append(grown[place + ahead])
        assert list(PromptLookup(text, 2, 1).guess(place, count)) == grown[len(text) :]


def test_equal_values_of_different_tokens_are_no_match(monkeypatch):
    """With a factor of 0 the value of an n-gram is that of its last token alone."""
    monkeypatch.setattr(prompt_lookup, "_FACTOR", 0)
    assert PromptLookup([1, 2, 9, 9, 3, 2], 2, 2).find() is None
    assert PromptLookup([1, 2, 9, 9, 1, 2], 2, 2).find() == (2, 2)
