"""JSON schemas as the TypeScript-like types gpt-oss reads, character for character as in openai-harmony.

Its quirks are part of the format the model was trained on, so they are kept: `anyOf` and `allOf` are "any", a
default of an enum prints without quotes on a property but with quotes on a top-level variant, an array of an
enum is `"a" | "b"[]`, and only an object-typed schema with an object type shows its own description.
"""

import json
import math
from typing import Any

from ..errors import RequestError

MAX_DEPTH = 100
_ABSENT = object()


def _get(schema: Any, key: str) -> Any:
    return schema.get(key, _ABSENT) if isinstance(schema, dict) else _ABSENT


def _text(schema: Any, key: str) -> str | None:
    value = _get(schema, key)
    return value if isinstance(value, str) else None


def _is_enum(schema: Any) -> bool:
    values = _get(schema, "enum")
    return isinstance(values, list) and bool(values)


def json_text(value: Any, depth: int = 0) -> str:
    """Compact JSON with numbers as serde_json prints them (1e16, 0.00001). RequestError if not JSON."""
    if depth > MAX_DEPTH:
        raise RequestError(f"a JSON value nests deeper than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, dict):
        items = (f"{json_text(str(key))}:{json_text(item, depth + 1)}" for key, item in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(json_text(item, depth + 1) for item in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 64:
        value = _as_float(value)
    if isinstance(value, float):
        return _float_text(value)
    if value is None or isinstance(value, bool | int | str):
        return json.dumps(value, ensure_ascii=False)
    raise RequestError(f"a schema holds a {type(value).__name__}, which is not JSON; use plain JSON values")


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise RequestError("a schema holds an integer beyond 1.8e308; use a smaller number") from None


def _float_text(value: float) -> str:
    if not math.isfinite(value):
        raise RequestError(f"a schema holds {value}, which is not JSON; use a finite number")
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0") or "0"
    if digits == "0":
        return sign + "0.0"
    if 0 < point <= 16:  # the decimal point stands after this many digits
        digits = digits.ljust(point, "0")
        return f"{sign}{digits[:point]}.{digits[point:] or '0'}"
    if -5 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1}"


def _default(schema: Any, quote_enum: bool = False) -> str | None:
    value = _get(schema, "default")
    if value is _ABSENT:
        return None
    if not isinstance(value, str):
        return f"default: {json_text(value)}"
    if _is_enum(schema):
        return f"default: {json_text(value) if quote_enum else value}"
    return f'default: "{value}"'


def _with_null(schema: Any, rendered: str) -> str:
    return f"{rendered} | null" if _get(schema, "nullable") is True and "null" not in rendered else rendered


def _trailing(comments: list[str | None]) -> str:
    present = [comment for comment in comments if comment is not None]
    return f" // {' '.join(present)}" if present else ""


def to_typescript(schema: Any, indent: str = "", depth: int = 0) -> str:
    """The type of a JSON schema. Raises RequestError beyond 100 levels or for values that are not JSON."""
    if depth > MAX_DEPTH:
        raise RequestError(f"a schema nests deeper than {MAX_DEPTH} levels; flatten it")
    variants, kind = _get(schema, "oneOf"), _get(schema, "type")
    if isinstance(variants, list):
        lines = []
        for variant in variants:
            rendered = _with_null(variant, to_typescript(variant, indent + "   ", depth + 1))
            comments = _trailing([_text(variant, "description"), _default(variant, quote_enum=True)])
            lines.append(f"\n{indent} | {rendered}{comments}")
        return "".join(lines)
    if isinstance(kind, list):
        names = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(names) or "any"
    if kind == "object":
        return _object(schema, indent, depth)
    if kind == "string":
        values = _get(schema, "enum")
        choices = [f'"{v}"' for v in values if isinstance(v, str)] if isinstance(values, list) else []
        return " | ".join(choices) or "string"
    if kind == "array":
        items = _get(schema, "items")
        return "Array<any>" if items is _ABSENT else to_typescript(items, indent, depth + 1) + "[]"
    simple = {"number": "number", "integer": "number", "boolean": "boolean"}
    return simple.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: dict[str, Any], indent: str, depth: int) -> str:
    description = _text(schema, "description")
    out = f"{indent}// {description}\n{{\n" if description is not None else "{\n"
    properties, listed = _get(schema, "properties"), _get(schema, "required")
    required = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if isinstance(properties, dict):
        for name, value in properties.items():
            label = f"{name}{'' if name in required else '?'}:"
            out += _property(label, value, indent, depth)
    return f"{out}{indent}}}"


def _property(label: str, schema: Any, indent: str, depth: int) -> str:
    title, description = _text(schema, "title"), _text(schema, "description")
    variants, examples = _get(schema, "oneOf"), _get(schema, "examples")
    out = f"{indent}// {title}\n{indent}//\n" if title is not None else ""
    if variants is _ABSENT and description is not None:
        out += f"{indent}// {description}\n"
    if isinstance(examples, list) and examples:
        out += f"{indent}// Examples:\n"
        out += "".join(f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str))
    if isinstance(variants, list):
        return out + _variants(label, schema, variants, indent, depth)
    rendered = _with_null(schema, to_typescript(schema, indent + "    ", depth + 1))
    comment = _trailing([_default(schema)]) if variants is _ABSENT else ""
    return f"{out}{indent}{label} {rendered},{comment}\n"


def _variants(label: str, schema: Any, variants: list[Any], indent: str, depth: int) -> str:
    """A property with `oneOf`; its description goes above unless the first variant repeats it."""
    description, out = _text(schema, "description"), ""
    above = description is not None and not (variants and _text(variants[0], "description") == description)
    if above:
        out += f"{indent}// {description}\n"
    default = _default(schema)
    if default is not None:
        out += f"{indent}// {default}\n"
    out += f"{indent}{label}\n"
    for n, variant in enumerate(variants):
        rendered = _with_null(variant, to_typescript(variant, indent + "   ", depth + 1))
        own = _text(variant, "description")
        shown = None if own == description or (n == 0 and above) else own
        out += f"{indent} | {rendered}{_trailing([shown, _default(variant)])}\n"
    return f"{out}{indent},\n"
