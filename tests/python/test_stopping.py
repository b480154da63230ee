"""Stop strings in text that comes in pieces. The oracle searches the text read one character at a time."""

from __future__ import annotations

from gptoss_native.stopping import StopStrings


def expected(text, stops, include):
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def test_every_cut_of_a_text_gives_the_same(rng):
    for _ in range(500):
        text = "".join(rng.choice(list("ab"), int(rng.integers(0, 20))))
        stops = [
            "".join(rng.choice(list("ab"), int(rng.integers(1, 5)))) for _ in range(int(rng.integers(0, 4)))
        ]
        include = bool(rng.integers(2))
        scanner, shown, place = StopStrings(stops, include), "", 0
        while place < len(text):
            step = int(rng.integers(1, 6))
            shown += scanner.push(text[place : place + step])
            place += step
            assert expected(text, stops, include)[0].startswith(shown), "shown too early"
        shown += scanner.flush()
        assert (shown, scanner.matched) == expected(text, stops, include), (text, stops)


def test_text_is_held_back_only_while_it_may_become_a_stop_string():
    scanner = StopStrings(["END"])
    assert scanner.push("abcE") == "abc"
    assert scanner.push("N") == ""
    assert scanner.push("x") == "ENx"
    assert scanner.push("E") == ""
    assert scanner.flush() == "E"


def test_an_unarmed_piece_passes_and_cannot_begin_a_match():
    scanner = StopStrings(["ab"])
    assert scanner.push("xab a", armed=False) == "xab a"
    assert scanner.push("b") == "b"
    assert scanner.push("ab") == ""
    assert scanner.matched == "ab"
