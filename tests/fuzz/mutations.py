"""Ways to damage a checkpoint: its bytes, its JSON (headers, config, index), and its file names.

Each function takes a folder and a random source, changes one thing, and says in a few words what it did.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Values that readers of JSON numbers, strings and lists tend to trip over.
HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63),
    10**4000, 0.0, -0.0, 1.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"), "", "0", "BF16",
    "U8", "F32", "yarn", "\x00", "\ud800", "\u202e", "a" * 5000, "../../etc/passwd", "/dev/zero", "C:\\",
    "%s%n", "{}", [], [[]], [0], [0, 0], [1, 2, 3], [-1, -1], [2**62, 4], [0] * 200, {}, {"a": {}}, [None],
    [True, True], ["x"], [[[[[0]]]]],
]  # fmt: skip
SHARD_NAMES = [
    "..", ".", "../config.json", "/etc/hostname", "/dev/zero", "/proc/self/mem", "config.json",
    "model.safetensors/", "./model.safetensors", "a/../model.safetensors", "\\\\host\\x.safetensors",
    "loop.safetensors", "folder.safetensors", "x.safetensors\x00.txt", "~/x.safetensors",
    "model.safetensors.index.json",
]  # fmt: skip
INDEX = "model.safetensors.index.json"


def _any_file(folder: Path, random: random.Random, pattern: str = "*") -> Path:
    """A regular file: an earlier change may have left links to devices."""
    return random.choice(sorted(p for p in folder.glob(pattern) if p.is_file() and not p.is_symlink()))


def _shard(folder: Path, random: random.Random) -> Path:
    return _any_file(folder, random, "*.safetensors")


def _position(data: bytes, random: random.Random) -> int:
    """Half of the time near the start, where lengths and headers are."""
    return random.randrange(min(len(data), 64) if random.random() < 0.5 else len(data)) if data else 0


def flip_bits(folder: Path, random: random.Random) -> str:
    path = _any_file(folder, random)
    data = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 2, 16])):
        if data:
            data[_position(data, random)] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    return f"flip bits of {path.name}"


def truncate(folder: Path, random: random.Random) -> str:
    path = _any_file(folder, random)
    data = path.read_bytes()
    path.write_bytes(data[: _position(data, random)] if random.random() < 0.7 else data[:-1])
    return f"truncate {path.name}"


def extend(folder: Path, random: random.Random) -> str:
    path = _any_file(folder, random)
    data = path.read_bytes()
    path.write_bytes(data + random.choice([b"\0", b" ", b"\n", b"{}", data[:100], bytes(4096)]))
    return f"extend {path.name}"


def splice(folder: Path, random: random.Random) -> str:
    path, other = _any_file(folder, random), _any_file(folder, random)
    data, donor = path.read_bytes(), other.read_bytes()
    begin, source = _position(data, random), _position(donor, random)
    length = random.choice([1, 8, 100, 5000])
    removed = random.choice([0, length])
    path.write_bytes(data[:begin] + donor[source : source + length] + data[begin + removed :])
    return f"splice {other.name} into {path.name}"


def header_length(folder: Path, random: random.Random) -> str:
    path = _shard(folder, random)
    data = path.read_bytes()
    true = int.from_bytes(data[:8], "little")
    value = random.choice(
        [0, 1, 2, true - 1, true + 1, len(data), len(data) - 8, 100_000_001, 2**32, 2**63, 2**64 - 1]
    )
    path.write_bytes((value % 2**64).to_bytes(8, "little") + data[8:])
    return f"header length {value}"


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _paths(inner, (*path, key))
    return found


def _hostile(random: random.Random) -> Any:
    """A copy: a later edit may change it in place."""
    return copy.deepcopy(random.choice(HOSTILE))


def _edit(value: dict[str, Any], random: random.Random) -> str:
    """One change somewhere in a JSON object: replace, nudge, remove, rename, copy another value over, add."""
    if not value:
        value["x"] = None
    path = random.choice(_paths(value))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    old = parent.get(key) if isinstance(parent, dict) else parent[key]
    kind = random.choice(["replace", "nudge", "remove", "rename", "copy", "add"])
    if kind == "nudge" and type(old) in (int, float):
        parent[key] = random.choice(
            [
                old + 1,
                old - 1,
                -old,
                old * 2,
                old // 2,
                old + 32,
                old * 2**32,
                0.5 if abs(old) > 1e300 else float(old),
                str(old),
            ]
        )
    elif kind == "remove":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[random.choice([str(key) + "x", str(key).upper(), "", "__metadata__", "lm_head.weight"])] = (
            parent.pop(key)
        )
    elif kind == "copy":
        other = value
        for step in random.choice(_paths(value)):
            other = other[step]
        parent[key] = json.loads(json.dumps(other))
    elif kind == "add" and isinstance(parent, dict):
        parent["added"] = _hostile(random)
    else:
        parent[key] = _hostile(random)
    return f"{kind} {'.'.join(map(str, path))[:60]}"


def edit_header(folder: Path, random: random.Random) -> str:
    """Change the JSON of a header and keep its length true, so that the change itself is judged."""
    path = _shard(folder, random)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    said = [_edit(header, random) for _ in range(random.choice([1, 1, 1, 3]))]
    text = json.dumps(header)
    if random.random() < 0.1:
        text, said = _duplicate_key(text, random), ["duplicate key"]
    encoded = text.encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[end:])
    return f"{path.name} header: {', '.join(said)}"


def edit_offsets(folder: Path, random: random.Random) -> str:
    """Overlaps, gaps and swaps: give tensors each other's offsets, shapes or dtypes."""
    path = _shard(folder, random)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    names = [name for name in header if name != "__metadata__"]
    first, second = header[random.choice(names)], header[random.choice(names)]
    what = random.choice(["shift", "same", "swap", "shape", "zero"])
    if what == "shift":
        by = random.choice([-2, -1, 1, 2, 2**40])
        first["data_offsets"] = [offset + by for offset in first["data_offsets"]]
    elif what == "same":
        first["data_offsets"] = list(second["data_offsets"])
    elif what == "swap":
        field = random.choice(["data_offsets", "shape", "dtype"])
        first[field], second[field] = second[field], first[field]
    elif what == "shape":
        first["shape"] = random.choice([first["shape"][::-1], [*first["shape"], 1], [1, *first["shape"]], []])
    else:
        first["shape"], first["data_offsets"] = [0], [first["data_offsets"][0]] * 2
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[end:])
    return f"{path.name} offsets: {what}"


def _duplicate_key(text: str, random: random.Random) -> str:
    """Repeat one member of a JSON object's text."""
    value = json.loads(text)
    key = random.choice(list(value))
    return text[:-1] + f", {json.dumps(key)}: {json.dumps(value[key])}}}"


def edit_json_file(folder: Path, random: random.Random) -> str:
    """Change config.json, the index or generation_config.json."""
    path = _any_file(folder, random, "*.json")
    value = json.loads(path.read_bytes())
    said = [_edit(value, random) for _ in range(random.choice([1, 1, 1, 3]))]
    text = json.dumps(value)
    if random.random() < 0.1 and value:
        text, said = _duplicate_key(text, random), ["duplicate key"]
    path.write_text(text)
    return f"{path.name}: {', '.join(said)}"


def nest(folder: Path, random: random.Random) -> str:
    """Deep or wide JSON in place of a value."""
    path = _any_file(folder, random, "*.json")
    value = json.loads(path.read_bytes())
    key = random.choice(list(value))
    depth = random.choice([100, 5_000, 50_000])
    deep = ["[" * depth + "]" * depth, '{"a":' * depth + "0" + "}" * depth]
    bad = random.choice([*deep, "[" + "[]," * depth + "0]", "9" * depth])
    value[key] = "@"
    path.write_text(json.dumps(value).replace('"@"', bad))
    return f"{path.name}: nest {key}"


def shard_paths(folder: Path, random: random.Random) -> str:
    """Point the index at names that leave the folder, or are no plain file."""
    path = folder / INDEX
    if not path.is_file() or path.is_symlink():
        return rename(folder, random)
    index = json.loads(path.read_bytes())
    weight_map = index["weight_map"]
    shard, name = random.choice(sorted(weight_map.values())), random.choice(SHARD_NAMES)
    (folder / "folder.safetensors").mkdir()
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    changed = [tensor for tensor in weight_map if weight_map[tensor] == shard]
    for tensor in changed if random.random() < 0.5 else [random.choice(changed)]:
        weight_map[tensor] = name
    path.write_text(json.dumps(index))
    return f"shard path {name!r}"


def rename(folder: Path, random: random.Random) -> str:
    """Swap, remove, link or copy whole files."""
    path, other = _any_file(folder, random), _any_file(folder, random)
    what = random.choice(["remove", "swap", "link", "copy", "folder"])
    if what == "remove":
        path.unlink()
    elif what == "swap":
        data = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif what == "link":
        path.unlink()
        path.symlink_to(
            random.choice(["/dev/zero", "/proc/self/environ", "..", path.name, str(other), "nowhere"])
        )
    elif what == "copy":
        (folder / random.choice(["model.safetensors", "model-9.safetensors", INDEX])).write_bytes(
            path.read_bytes()
        )
    else:
        path.unlink()
        path.mkdir()
    return f"{what} {path.name}"


MUTATIONS: list[Callable[[Path, random.Random], str]] = [
    flip_bits, truncate, extend, splice, header_length, edit_header, edit_header, edit_header, edit_offsets,
    edit_offsets, edit_json_file, edit_json_file, edit_json_file, nest, shard_paths, rename,
]  # fmt: skip
