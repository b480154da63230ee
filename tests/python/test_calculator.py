"""The calculator that a model may call. Oracle: arithmetic done by hand."""

from __future__ import annotations

import json

import pytest
from gptoss_native.demo.calculator import calculate


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("12*34", "408"),
        ("0.1 + 0.2", "0.3"),
        ("7/2", "3.5"),
        ("7//2 - 7%4", "0"),
        ("-(2**10)", "-1024"),
        ("1/3", "0.333333333333"),
        ("99999*99999", "9999800001"),
        ("1/0", "error: division by zero"),
        ("2**1000", "error: an exponent must be a whole number up to 64"),
        ("9**64**64", "error: an exponent must be a whole number up to 64"),
        ("(9**64)**64", "error: the number is too large"),
        ("__import__('os')", "error: only numbers, parentheses and + - * / // % ** can be used"),
        ("'a'*3", "error: only numbers, parentheses and + - * / // % ** can be used"),
        ("True + 1", "error: only numbers, parentheses and + - * / // % ** can be used"),
        ("1" * 201, "error: the expression has 201 characters, at most 200 are read"),
    ],
)
def test_calculator(expression, expected):
    assert calculate(json.dumps({"expression": expression})) == expected


@pytest.mark.parametrize("arguments", ["", "12*34", "[1]", "{}", '{"expression": 5}'])
def test_calculator_says_what_arguments_it_wants(arguments):
    assert calculate(arguments).startswith("error: the arguments must be JSON")


def test_calculator_answers_any_text():
    for expression in (
        "(" * 150,
        "1 +",
        "",
        "1e400",
        "1e-4000",
        "1j",
        "0x10",
        "1_000",
        "\x00",
        "9**9999999999",
    ):
        assert calculate(json.dumps({"expression": expression})) != ""
