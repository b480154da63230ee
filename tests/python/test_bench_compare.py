"""Comparing two reports. Oracle: values made to differ by a known factor, with a known spread."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gptoss_native.bench.compare import BETTER, GONE, LEAST, NEW, SAME, UNKNOWN, WORSE, compare, compare_lines
from gptoss_native.bench.report import Line, Report, load_report
from gptoss_native.errors import RequestError


def line(rng, median, spread, unit="us", better="less", name="moe_up rows=1", count=9):
    """Values whose quartiles are `spread` of the median apart."""
    values = median * (1 + 2 * spread * (np.linspace(0, 1, count) - 0.5))
    return Line(name, unit, rng.permutation(values).tolist(), better)


def verdict(old, new):
    [change] = compare_lines([old], [new])
    return change.verdict


def test_a_change_beyond_both_spreads_counts(rng):
    for unit, better in (("us", "less"), ("tok/s", "more")):
        kind = {"unit": unit, "better": better}
        old = line(rng, 100, 0.04, **kind)
        up, down = verdict(old, line(rng, 115, 0.05, **kind)), verdict(old, line(rng, 87, 0.05, **kind))
        assert (up, down) == ((WORSE, BETTER) if better == "less" else (BETTER, WORSE))
        for ratio in rng.uniform(1 / 1.08, 1.08, 20):
            assert verdict(old, line(rng, 100 * ratio, 0.05, **kind)) == SAME


def test_noise_of_either_side_widens_the_band(rng):
    quiet, noisy = line(rng, 100, 0.01), line(rng, 120, 0.3)
    assert verdict(quiet, noisy) == verdict(line(rng, 120, 0.3), line(rng, 100, 0.01)) == SAME
    assert verdict(quiet, line(rng, 120, 0.01)) == WORSE


def test_the_band_is_as_wide_up_as_down(rng):
    old, band = line(rng, 100, 0.0), 1 + LEAST
    assert verdict(old, line(rng, 100 * band * 0.999, 0.0)) == SAME
    assert verdict(old, line(rng, 100 / band * 1.001, 0.0)) == SAME
    assert verdict(old, line(rng, 100 * band * 1.001, 0.0)) == WORSE
    assert verdict(old, line(rng, 100 / band * 0.999, 0.0)) == BETTER


def test_what_has_no_spread_gets_no_verdict(rng):
    assert verdict(line(rng, 100, 0.0, count=2), line(rng, 200, 0.0)) == UNKNOWN
    assert verdict(line(rng, 100, 0.0), line(rng, 200, 0.0, unit="ms")) == UNKNOWN


def test_lines_on_one_side_only_are_named(rng):
    a, b, c = (line(rng, 1, 0, name=name) for name in "abc")
    found = compare_lines([a, b], [b, c])
    assert [(change.name, change.verdict) for change in found] == [("b", SAME), ("c", NEW), ("a", GONE)]


def test_reports_survive_their_file_and_say_what_differs(rng, tmp_path):
    old = Report("ops", {"rows": [1]}, {"device": "cpu", "threads": 2}, [line(rng, 5, 0.1, "B/s", "more")])
    old.lines = [line(rng, 3, 0.1)]
    old.lines[0].facts = {"op": "moe_up", "rows": 1}
    old.save(tmp_path / "old.json")
    again = load_report(tmp_path / "old.json")
    assert again == old
    new = Report("ops", {}, {"device": "cpu", "threads": 4}, again.limits, again.lines)
    lines, limits, differs = compare(again, new)
    assert [change.verdict for change in lines + limits] == [SAME, SAME]
    assert differs == ["threads was 2, is 4"]
    with pytest.raises(RequestError, match="results of `bench ops`, these are of `bench serve`"):
        compare(old, Report("serve", {}, {}))


def test_a_file_that_json_did_not_write_is_refused(rng, tmp_path):
    path = tmp_path / "old.json"
    report = Report("ops", {}, {}, [], [line(rng, 3, 0.1)])
    report.save(path)
    whole = json.loads(path.read_text())
    damaged = [
        whole | {"schema": 99},
        {name: value for name, value in whole.items() if name != "lines"},
        whole | {"lines": [7]},
        whole | {"lines": [whole["lines"][0] | {"values": []}]},
        whole | {"lines": [whole["lines"][0] | {"values": [1, float("nan")]}]},
        whole | {"lines": [whole["lines"][0] | {"values": ["x"]}]},
        whole | {"lines": [whole["lines"][0] | {"better": "sideways"}]},
        whole | {"bench": 3},
        whole | {"machine": 3},
        [],
    ]
    for text in ("", "{", "[" * 100_000, "\x00", *map(json.dumps, damaged)):
        path.write_text(text)
        with pytest.raises(RequestError, match=r"old\.json"):
            load_report(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match=r"old\.json"):
        load_report(path)
