"""bench.versus without any peer: stand-ins whose times and logits are known. Oracle: sums done by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import versus
from bench.peers import engines, rounds
from bench.peers.engines import Setting
from bench.peers.protocol import Process
from bench.peers.rounds import Found, Work

ROOT = Path(__file__).resolve().parents[2]
WORK = {"prefill 8": Work("prefill 8", 8), "decode": Work("decode 4 2", 2, is_short=True)}
STAND_IN = """
import sys
import numpy as np
from bench.peers.protocol import serve

class StandIn:
    def prefill(self, tokens): return tokens / float(sys.argv[1])
    def decode(self, context, tokens): return context + tokens / 8
    def logits(self, tokens): return np.full(4, float(sys.argv[1]), np.float32) * tokens[-1]

print("a library's noise")
serve(StandIn())
"""


class Steady:
    """An engine that takes a second more each time it is asked for the same, and notes whose turn it is."""

    def __init__(self, name, turns, first):
        self.name, self.turns, self.times = name, turns, {}
        self.first = first

    def ask(self, line):
        if line == "peak":
            return self.first * 1e9
        self.turns.append((self.name, line))
        self.times[line] = self.times.get(line, self.first - 1) + 1
        return float(self.times[line])


@pytest.fixture
def measured():
    turns, found = [], Found()
    several = {
        name: Steady(name, turns, first)
        for name, first in (("ours", 1), ("llama.cpp", 3), ("transformers", 9))
    }
    rounds.measure(several, WORK, 2, lambda: 100.0, {"ours": 50.0, "llama.cpp": 50.0}, found)
    return turns, found


def test_engines_take_turns(measured):
    turns, found = measured
    first_round = turns[6:]  # each was asked for each work once before
    assert [name for name, line in first_round[:3]] == ["ours", "llama.cpp", "transformers"]
    assert first_round[:3] == [(name, "prefill 8") for name in found.peaks]
    assert [line for _, line in first_round[3:12]] == ["decode 4 2"] * 9
    assert found.seconds["prefill 8"] == {
        "ours": [2.0, 3.0], "llama.cpp": [4.0, 5.0], "transformers": [10.0, 11.0]
    }  # fmt: skip


def test_ratios_are_of_pairs_and_rates_of_medians(measured):
    _, found = measured
    assert found.ratios("prefill 8", "transformers") == [10 / 2, 11 / 3]
    assert found.rate("prefill 8", "llama.cpp", 8) == pytest.approx(8 / 4.5)
    assert found.peaks == {"ours": 1e9, "llama.cpp": 3e9, "transformers": 9e9}


def test_only_who_reads_packed_experts_has_a_share_of_the_bandwidth(measured):
    _, found = measured
    assert found.shares.keys() == {"ours", "llama.cpp"}
    # Two tokens of 50 bytes in 2 to 7 seconds, of 100 bytes a second.
    assert found.shares["ours"] == pytest.approx([1 / seconds for seconds in range(2, 8)])
    figures = versus.figures(found, WORK, ["llama.cpp", "transformers"])
    assert figures["prefill 8"] == {
        "ours": 3.2, "llama.cpp": 1.78, "transformers": 0.76,
        "ratio": {"llama.cpp": 1.833, "transformers": 4.333},
        "at like bandwidth": {
            "llama.cpp": [{"GB/s": 0.0, "ratio": 1.8, "answers": [2, 2]}],
            "transformers": [{"GB/s": 0.0, "ratio": 4.2, "answers": [2, 2]}],
        },
        "tok/s, GB/s before and after": {
            "ours": [[4.0, 0.0, 0.0], [2.7, 0.0, 0.0]],
            "llama.cpp": [[2.0, 0.0, 0.0], [1.6, 0.0, 0.0]],
            "transformers": [[0.8, 0.0, 0.0], [0.7, 0.0, 0.0]],
        },
    }  # fmt: skip
    table = versus.rows(found, WORK, ["llama.cpp", "transformers"])
    assert [line.split()[:4] for line in table[1:5:3]] == [
        ["llama.cpp", "prefill", "8", "3.2"],
        ["transformers", "prefill", "8", "3.2"],
    ]
    assert table[3].split() == ["at", "0", "GB/s", "0.4", "0.3", "1.44", "of", "6", "and", "6", "answers"]
    assert table[4].endswith("4.33  3.67 to 5.00")


def test_answers_are_compared_where_the_bandwidth_was_the_same():
    """Before and after ours, before and after theirs, of four pairs."""
    several = {name: Steady(name, [], first) for name, first in (("ours", 1), ("llama.cpp", 3))}
    bandwidths = iter(map(float, [60, 62, 34, 35, 34, 33, 60, 58, 34, 36, 34, 60, 61, 60, 33, 33]))
    found = Found()
    rounds.measure(several, {"decode": Work("decode 4 2", 2)}, 4, lambda: next(bandwidths), {}, found)
    assert found.seconds["decode"] == {"ours": [2.0, 3.0, 4.0, 5.0], "llama.cpp": [4.0, 5.0, 6.0, 7.0]}
    slow, fast = found.at_like_bandwidth("decode", "llama.cpp")
    assert slow[1:] == ((3.0, 4.0), (4.0, 7.0))  # what took 6 met both
    assert fast[1:] == ((2.0, 5.0), (5.0,))
    assert (slow.ratio, fast.ratio) == (5.5 / 3.5, 5.0 / 3.5)
    assert 33 < slow.bandwidth < 35
    assert 59 < fast.bandwidth < 61


def test_one_speed_is_one_comparison_and_none_without_answers_of_both():
    found = Found()
    found.seconds["decode"] = {"ours": [1.0, 2.0], "llama.cpp": [3.0, 5.0]}
    found.around["decode"] = {"ours": [(30.0, 31.0), (36.0, 36.0)], "llama.cpp": [(33.0, 33.0), (34.0, 34.0)]}
    (one,) = found.at_like_bandwidth("decode", "llama.cpp")
    assert (one.own, one.theirs) == ((1.0, 2.0), (3.0, 5.0))
    found.around["decode"]["ours"] = [(60.0, 60.0), (30.0, 60.0)]
    assert found.at_like_bandwidth("decode", "llama.cpp") == []


def test_engines_answer_from_processes_of_their_own():
    def process(value):
        return Process([sys.executable, "-c", STAND_IN, value], cwd=ROOT)

    several = {"ours": process("2"), "llama.cpp": process("2"), "transformers": process("3")}
    assert several["ours"].ask("prefill 6") == 3.0
    assert several["ours"].ask("decode 5 4") == 5.5
    assert several["transformers"].ask("peak") > 1e6
    assert rounds.agreement(several, 1000) == {"llama.cpp": 0.0, "transformers": 0.5}
    for each in several.values():
        each.close()


def test_a_process_that_ends_is_named():
    with pytest.raises(SystemExit, match="ended without an answer; run it by hand to see why"):
        Process([sys.executable, "-c", "raise SystemExit(1)"])


def test_peers_and_their_interpreters():
    assert versus.arguments(["x"]).peers == {"llama.cpp": Path(".venv-peers/bin/python")}
    asked = ["x", "--with", "transformers", "t/python", "--with", "llama.cpp", "l/python"]
    assert versus.arguments(asked).peers == {"transformers": Path("t/python"), "llama.cpp": Path("l/python")}


def test_an_unknown_peer_is_refused(capsys):
    with pytest.raises(SystemExit):
        versus.arguments(["x", "--with", "vllm", "python"])
    assert "--with knows llama.cpp, transformers, found vllm" in capsys.readouterr().err


def test_all_get_the_same_checkpoint(tmp_path):
    folder = tmp_path / "model"
    (tmp_path / "model-q8.gguf").touch()  # written before
    started = engines.commands(
        Setting(folder, "q8", 2, 64), {"llama.cpp": Path("l"), "transformers": Path("t")}
    )
    assert {name: list(map(str, command)) for name, command in started.items()} == {
        "ours": [sys.executable, "-m", "bench.peers.ours", str(folder), "2", "64", "q8"],
        "llama.cpp": ["l", "-m", "bench.peers.llama_cpp", f"{folder}-q8.gguf", "2", "64"],
        "transformers": ["t", "-m", "bench.peers.hf_transformers", str(folder), "2"],
    }
