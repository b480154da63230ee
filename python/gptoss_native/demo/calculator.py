"""A calculator that a model may call: arithmetic on numbers, nothing else."""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

TOOL: dict[str, Any] = {
    "type": "function",
    "name": "calculator",
    "description": "Evaluate an arithmetic expression.",
    "parameters": {
        "type": "object",
        "required": ["expression"],
        "properties": {"expression": {"type": "string", "description": "For example 12*34"}},
    },
}

MAX_LENGTH = 200  # characters of an expression
MAX_BITS = 4096  # of a numerator or denominator
MAX_EXPONENT = 64

_BINARY: dict[type, Callable[[Fraction, Fraction], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def calculate(arguments: str) -> str:
    """Answer a call whose JSON `arguments` hold an `expression`; a mistake is answered with "error: ..."."""
    try:
        given = json.loads(arguments)
        expression = given.get("expression") if isinstance(given, dict) else None
        if not isinstance(expression, str):
            return 'error: the arguments must be JSON such as {"expression": "12*34"}'
        return _text(evaluate(expression))
    except json.JSONDecodeError:
        return 'error: the arguments must be JSON such as {"expression": "12*34"}'
    except ZeroDivisionError:
        return "error: division by zero"
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        return f"error: {error}"


def evaluate(expression: str) -> Fraction:
    """The exact value of + - * / // % ** on numbers. Raises ValueError or SyntaxError for anything else."""
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"the expression has {len(expression)} characters, at most {MAX_LENGTH} are read")
    return _value(ast.parse(expression.strip(), mode="eval").body)


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(Fraction(repr(node.value)))  # 0.1 means a tenth, not the nearest double
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _bounded(Fraction(_BINARY[type(node.op)](_value(node.left), _value(node.right))))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, exponent = _value(node.left), _value(node.right)
        if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
            raise ValueError(f"an exponent must be a whole number up to {MAX_EXPONENT}")
        return _bounded(base ** int(exponent))
    raise ValueError("only numbers, parentheses and + - * / // % ** can be used")


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ValueError("the number is too large")
    return value


def _text(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.12g}"
