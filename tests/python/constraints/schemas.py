"""JSON schemas by keyword: those that are enforced, and those that must be refused with a path."""

from __future__ import annotations

from typing import Any

SHORT = {"type": "string", "maxLength": 8}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
PATTERNS = (
    "^[a-z]{3}$",
    "^a+b{0,3}$",
    "^(red|green|blue)$",
    r"^\d{4}-\d{2}$",
    "^[^x]{1,5}$",
    "^[A-F0-9]{8}$",
    r"^\w{1,6}$",
    "^(ab?c){1,2}$",
    "^x$",
    r"^[+-]?\d{1,3}(\.\d{1,2})?$",
    "^(?:a|b)(?:c|d)e?$",
    r"^\S{2}\s\S{2}$",
    "^.{0,4}$",
    "[0-9]{2}",
)
ENUMS: tuple[list[Any], ...] = (
    ["a"],
    ["a", "b", "ab"],
    [1, 2, 3],
    [None],
    [True, False],
    [1.5, "x", None],
    ["é", "日本", "🙂"],
    ['"', "\\", "\n"],
    [{"a": 1}],
    [[1, 2], []],
    ["<|end|>", "<|return|>"],
    [""],
    ["x" * 60, "y" * 60],
    ["-1", -1],
)
FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")


def obj(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """An object that has all its properties and no others, unless `more` says so."""
    names = list(properties) if required is None else required
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    } | more


def array(items: Any, low: int = 0, high: int = 3, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high} | more


def enforced() -> dict[str, Any]:
    """Schemas by name; every text that they allow is short, or can end at any place."""
    found: dict[str, Any] = {}

    def add(name: str, *schemas: Any) -> None:
        for schema in schemas:
            found[f"{name} {len(found)}"] = schema

    add("type", *({"type": kind} for kind in ("null", "boolean", "integer", "number")), SHORT)
    add("types", {"type": ["null", "integer"]}, {"type": ["boolean", "null"]}, {"type": ["number", "null"]})
    add(
        "types", SHORT | {"type": ["string", "integer"]}, obj({"a": {"type": ["integer", "null", "boolean"]}})
    )
    for low, high in (
        (0, 0),
        (-5, 5),
        (10, 20),
        (100, 999),
        (-1000, -1),
        (7, 7),
        (0, 10**6),
        (-(2**31), 2**31),
    ):
        add("integer", {"type": "integer", "minimum": low, "maximum": high})
    for low, high in ((0, 1), (-1.5, 1.5), (0.25, 0.75), (10, 11), (-100, -99.5), (0, 0.125)):
        add("number", {"type": "number", "minimum": low, "maximum": high})
    add("exclusive", {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3})
    add("exclusive", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})
    add("exclusive", {"type": "integer", "exclusiveMinimum": -2, "maximum": 2})
    add("half open", {"type": "integer", "minimum": 5}, {"type": "integer", "maximum": -5})
    add("half open", {"type": "number", "minimum": 0}, {"type": "number", "exclusiveMaximum": 0})
    for step in (2, 3, 5, 10, 25):
        add("multipleOf", {"type": "integer", "multipleOf": step, "minimum": 0, "maximum": 100})
    for low, high in ((0, 0), (0, 1), (1, 1), (3, 5), (2, 8), (0, 20)):
        add("length", {"type": "string", "minLength": low, "maxLength": high})
    for pattern in PATTERNS:
        add("pattern", {"type": "string", "pattern": pattern})
    add("pattern", obj({"code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}$"}, "n": DIGIT}))
    for name in FORMATS:
        add("format", {"type": "string", "format": name})
        add("format", obj({name: {"type": "string", "format": name}}))
    for values in ENUMS:
        add("enum", {"enum": values})
        add("enum", obj({"choice": {"enum": values}}))
    for value in ("x", 5, None, True, [1], {"a": [1, {"b": 2}]}, -0.5, "two words", "tab\there", "日本"):
        add("const", {"const": value}, obj({"fixed": {"const": value}}))
    add(
        "object",
        obj({}),
        obj({"a": DIGIT}),
        obj({"a": DIGIT, "b": SHORT}),
        obj({"a": SHORT, "b": SHORT, "c": SHORT}),
    )
    add(
        "optional",
        obj({"a": DIGIT}, []),
        obj({"a": DIGIT, "b": DIGIT}, ["b"]),
        obj({"a": DIGIT, "b": SHORT}, []),
    )
    add("optional", obj(dict.fromkeys("abcdefgh", DIGIT), ["d"]))
    add(
        "names",
        obj({"with space": DIGIT}),
        obj({'quote"d': DIGIT}),
        obj({"back\\slash": DIGIT}),
        obj({"": DIGIT}),
    )
    add("names", obj({"日本": DIGIT, "🙂": DIGIT}), obj({"a.b/c~d": DIGIT}), obj({"$ref": DIGIT}))
    add("required only", {"type": "object", "required": ["a"], "additionalProperties": DIGIT})
    add("additional", {"type": "object", "additionalProperties": DIGIT, "maxProperties": 2})
    add("additional", obj({"a": DIGIT}, additionalProperties=SHORT, maxProperties=2))
    add("additional", {"type": "object", "additionalProperties": {"type": "null"}})
    add("patternProperties", {"type": "object", "patternProperties": {"^n_[a-z]{1,3}$": DIGIT},
                              "additionalProperties": False, "maxProperties": 2})  # fmt: skip
    add("patternProperties", obj({"a": SHORT}, patternProperties={"^x[0-9]$": DIGIT}))
    for low, high in ((0, 1), (1, 1), (2, 2), (0, 3), (1, 4)):
        add("items", array(DIGIT, low, high), array(SHORT, low, high), array({"type": "boolean"}, low, high))
    add("items", array(array(DIGIT)), array(obj({"a": DIGIT}), 1, 2), array({"enum": ["x", "y"]}, 3, 3))
    add("prefixItems", {"type": "array", "prefixItems": [DIGIT, SHORT], "items": False, "minItems": 2})
    add("prefixItems", {"type": "array", "prefixItems": [DIGIT], "items": {"type": "null"}, "maxItems": 3})
    add("prefixItems", {"type": "array", "prefixItems": [DIGIT, DIGIT, DIGIT], "items": False})
    add("items false", {"type": "array", "items": False}, {"type": "array", "maxItems": 0})
    add("anyOf", {"anyOf": [DIGIT, {"type": "null"}]}, {"anyOf": [obj({"a": DIGIT}), obj({"b": SHORT})]})
    add(
        "anyOf",
        {"anyOf": [{"const": 1}, {"const": "one"}, array(DIGIT)]},
        obj({"v": {"anyOf": [DIGIT, SHORT]}}),
    )
    add("anyOf", {"type": "string", "anyOf": [{"maxLength": 1}, {"pattern": "^long{1,3}$"}]})
    add(
        "oneOf",
        {"oneOf": [{"type": "null"}, {"type": "boolean"}]},
        {"oneOf": [{"const": "a"}, {"const": "b"}]},
    )
    add(
        "oneOf",
        {"oneOf": [obj({"kind": {"const": "a"}, "n": DIGIT}), obj({"kind": {"const": "b"}, "s": SHORT})]},
    )
    add("allOf", {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 5}]}, {"allOf": [SHORT]})
    add("allOf", {"allOf": [{"type": "string", "minLength": 1}, {"maxLength": 4}]})
    add("allOf", {"type": "object", "allOf": [{"properties": {"a": DIGIT}, "required": ["a"]},
                                              {"properties": {"b": DIGIT}, "required": ["b"]}],
                  "maxProperties": 2})  # fmt: skip
    add(
        "$ref",
        {"$defs": {"d": DIGIT}, "$ref": "#/$defs/d"},
        {"definitions": {"d": SHORT}, "$ref": "#/definitions/d"},
    )
    add(
        "$ref",
        {"$defs": {"p": obj({"x": DIGIT, "y": DIGIT})}}
        | obj({"from": {"$ref": "#/$defs/p"}, "to": {"$ref": "#/$defs/p"}}),
    )
    add("$ref", {"$defs": {"a/b": DIGIT, "c~d": DIGIT}, "type": "array", "maxItems": 2,
                 "items": {"anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c~0d"}]}})  # fmt: skip
    node = obj({"v": DIGIT, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}})
    tree = obj({"v": DIGIT, "kids": array({"$ref": "#"}, 0, 2)})
    add("recursive", {"$defs": {"node": node}, "$ref": "#/$defs/node"}, tree)
    add(
        "annotations",
        DIGIT | {"title": "t", "description": "d", "default": 3, "examples": [1], "$comment": "c"},
    )
    add("annotations", obj({"a": DIGIT | {"deprecated": True, "readOnly": True}}, title="T"))
    for depth in (2, 5, 10, 20):
        schema: Any = DIGIT
        for level in range(depth):
            schema = obj({f"level{level}": schema}) if level % 2 else array(schema, 1, 1)
        add("nested", schema)
    person = {"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 130}, "tags": array(SHORT)}
    street = obj({"street": SHORT, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}})
    add(
        "whole",
        obj(person),
        obj(person | {"address": street}),
        array(obj(person), 0, 2),
        obj(person, ["tags"]),
    )
    add("whole", obj({"email": {"type": ["string", "null"], "maxLength": 12}, "address": street}))
    add(
        "whole",
        obj({"steps": array(obj({"explanation": SHORT, "output": SHORT}), 1, 2), "final_answer": SHORT}),
    )
    add(
        "whole",
        obj({"unit": {"enum": ["celsius", "fahrenheit"]}, "place": SHORT, "days": {"type": "integer"}}),
    )
    return found


#: name -> (schema, the path within it that the error names, a word of the error)
REFUSED: dict[str, tuple[Any, str, str]] = {
    "not": ({"not": {"type": "string"}}, "", "not"),
    "if": ({"if": {}, "then": {}}, "", "if"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "", "uniqueItems"),
    "contains": ({"type": "array", "contains": DIGIT}, "", "contains"),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, "", "dependentRequired"),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 3}}, "", "propertyNames"),
    "unevaluated": ({"type": "object", "unevaluatedProperties": False}, "", "unevaluatedProperties"),
    "type": ({"type": "strnig"}, "", "strnig"),
    "type deep": (
        obj({"a": array(obj({"b": {"type": "strnig"}}))}),
        ".properties.a.items.properties.b",
        "strnig",
    ),
    "in $defs": ({"$defs": {"x": {"type": "no"}}, "$ref": "#/$defs/x"}, ".$defs.x", "no"),
    "in anyOf": ({"anyOf": [DIGIT, {"not": {}}]}, ".anyOf[1]", "not"),
    "in prefixItems": (
        {"prefixItems": [DIGIT, {"format": "nope", "type": "string"}]},
        ".prefixItems[1]",
        "nope",
    ),
    "regex": (obj({"a": {"type": "string", "pattern": "("}}), ".properties.a", "unclosed"),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "", "look-around"),
    "back reference": ({"type": "string", "pattern": r"(a)\1"}, "", "backreferences"),
    "format": ({"type": "string", "format": "nope"}, "", "nope"),
    "remote": ({"$ref": "https://example.com/schema"}, "", "example.com"),
    "dangling": ({"$ref": "#/$defs/none"}, "", "does not exist"),
    "range": ({"type": "integer", "minimum": 5, "maximum": 3}, "", "5"),
    "length": ({"type": "string", "minLength": 5, "maxLength": 2}, "", "5"),
    "items": ({"type": "array", "minItems": 5, "maxItems": 2}, "", "5"),
    "empty enum": ({"enum": []}, "", "empty"),
    "enum type": ({"type": "integer", "enum": ["a"]}, "", "nsatisfiable"),
    "required nothing": (obj({}, ["a"]), "", "a"),
    "minimum text": ({"type": "integer", "minimum": "low"}, "", "low"),
    "properties list": ({"type": "object", "properties": []}, "", "properties"),
}
