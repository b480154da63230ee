"""Reads a Hugging Face `tokenizer.json` with a byte-level BPE model into a `Vocabulary`.

Only what byte-level BPE needs is understood; a setting that would change the ids of a text (a normalizer,
`add_prefix_space`, `byte_fallback`, another pre-tokenizer) is refused by name, never ignored.

tiktoken merges the adjacent pair whose concatenation has the lowest rank, where Hugging Face walks a list of
pairs. For every vocabulary a BPE trainer made, the two agree: below a token's rank its bytes always cut into
the same two parts. A hand-written merge list that no trainer could make may be cut differently.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .byte_pairs import WHOLE_TEXT
from .errors import CheckpointError
from .strict_json import open_regular, parse_object, show

MAX_BYTES = 64 << 20
MAX_ID = 1 << 22
MAX_CONTAINERS = 2_000_000  # one list per merge: 446,189 in gpt-oss's own file

# The GPT-2 word regex, which `ByteLevel` with `use_regex` stands for (Radford et al. 2019).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer is made of.

    tokens:   token bytes by BPE rank; a lower rank merges first
    ids:      token id by rank, or None where the id is the rank
    extra:    bytes by id of tokens no merge makes: decoded, never encoded
    specials: id by spelling
    pattern:  the regex that cuts text before merging
    """

    tokens: list[bytes]
    ids: list[int] | None
    extra: dict[int, bytes]
    specials: dict[str, int]
    pattern: str


def byte_symbols() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where printable, otherwise U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


def read(path: Path) -> Vocabulary:
    """Read and validate a `tokenizer.json`. Raises CheckpointError naming the file and the field."""
    descriptor, status = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > MAX_BYTES:
            raise CheckpointError(
                f"{path}: {status.st_size:,} bytes, but at most {MAX_BYTES:,} are expected; check the file"
            )
        try:
            data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the disk") from None
    return parse(data, str(path))


def parse(data: bytes, source: str) -> Vocabulary:
    """`read`, from bytes; `source` names the file in errors."""
    return _Reader(source).vocabulary(parse_object(data, source, max_containers=MAX_CONTAINERS))


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, field: str, found: Any, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: {field} is {show(found)}, expected {expected}; "
            "use the tokenizer.json that came with the model"
        )

    def vocabulary(self, root: dict[str, Any]) -> Vocabulary:
        if root.get("normalizer") is not None:
            raise self.fail("normalizer", root["normalizer"], "null (byte-level BPE does not rewrite text)")
        model = self.typed(root, "model", dict)
        self.plain_bpe(model)
        specials = self.added_tokens(root.get("added_tokens") or [])
        by_id = self.vocab(self.typed(model, "vocab", dict), specials)
        tokens, ids = self.ranks(by_id, self.typed(model, "merges", list))
        ranked = set(ids)
        return Vocabulary(
            tokens=tokens,
            ids=None if ids == list(range(len(ids))) else ids,
            extra={i: token for i, token in by_id.items() if i not in ranked},
            specials=specials,
            pattern=self.pattern(root.get("pre_tokenizer")),
        )

    def typed(self, parent: dict[str, Any], field: str, kind: type) -> Any:
        value = parent.get(field)
        if not isinstance(value, kind):
            raise self.fail(field, value, f"a {kind.__name__}")
        return value

    def plain_bpe(self, model: dict[str, Any]) -> None:
        if model.get("type", "BPE") != "BPE":
            raise self.fail("model.type", model["type"], "'BPE'")
        for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            if model.get(field) not in (None, "", False, 0.0):
                raise self.fail(f"model.{field}", model[field], "unset (byte-level BPE)")

    def valid_id(self, field: str, value: Any) -> int:
        if type(value) is not int or not 0 <= value < MAX_ID:
            raise self.fail(field, value, f"a token id from 0 to {MAX_ID - 1}")
        return value

    def added_tokens(self, entries: Any) -> dict[str, int]:
        if not isinstance(entries, list):
            raise self.fail("added_tokens", entries, "a list")
        specials: dict[str, int] = {}
        for n, entry in enumerate(entries):
            content = entry.get("content") if isinstance(entry, dict) else None
            if not isinstance(content, str) or not content or not _encodable(content):
                raise self.fail(f"added_tokens[{n}]", entry, "an object with 'content' and 'id'")
            token_id = self.valid_id(f"added_tokens[{n}].id", entry.get("id"))
            if specials.setdefault(content, token_id) != token_id:
                raise self.fail(f"added_tokens[{n}].id", token_id, f"{specials[content]}, given before")
        if len(set(specials.values())) != len(specials):
            raise self.fail("added_tokens", entries, "each id once")
        return specials

    def vocab(self, vocab: dict[str, Any], specials: dict[str, int]) -> dict[int, bytes]:
        """Token bytes by id, without the added tokens some files repeat in the vocabulary."""
        to_byte: dict[int, str] = {ord(symbol): chr(byte) for symbol, byte in byte_symbols().items()}
        # The other Latin-1 characters stand for no byte; U+FFFF makes the Latin-1 encoding below fail.
        table = dict.fromkeys(range(256), "\uffff") | to_byte
        special_ids, by_id = set(specials.values()), {}
        for symbols, value in vocab.items():
            token_id = self.valid_id(f"model.vocab[{show(symbols)}]", value)
            if specials.get(symbols) == token_id:
                continue
            try:
                token = symbols.translate(table).encode("latin-1")
            except UnicodeEncodeError:
                raise self.fail("model.vocab", symbols, "byte-level symbols only") from None
            if not token or token_id in by_id or token_id in special_ids:
                raise self.fail(
                    f"model.vocab[{show(symbols)}]",
                    token_id,
                    "a non-empty token whose id no other token or added_tokens has",
                )
            by_id[token_id] = token
        return by_id

    def ranks(self, by_id: dict[int, bytes], merges: list[Any]) -> tuple[list[bytes], list[int]]:
        """(token, id) by rank: the 256 bytes in id order, then each merge's result at its first mention."""
        id_of = {token: token_id for token_id, token in by_id.items()}
        for byte in range(256):
            if bytes((byte,)) not in id_of:
                raise self.fail("model.vocab", f"without byte {byte:#04x}", "a symbol for all 256 bytes")
        symbol = {byte: symbol for symbol, byte in byte_symbols().items()}
        by_symbols = {"".join(map(symbol.__getitem__, token)): i for token, i in id_of.items()}
        ids = dict.fromkeys(sorted(id_of[bytes((byte,))] for byte in range(256)))
        for n, merge in enumerate(merges):
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)):
                raise self.fail(f"model.merges[{n}]", merge, "two tokens of model.vocab")
            left, right = pair
            merged = by_symbols.get(left + right)
            if merged is None or left not in by_symbols or right not in by_symbols:
                raise self.fail(f"model.merges[{n}]", merge, "two tokens of model.vocab that join to a third")
            ids.setdefault(merged)
        return [by_id[i] for i in ids], list(ids)

    def pattern(self, node: Any) -> str:
        """The word regex of `ByteLevel`, alone or after one `Split`."""
        steps = [node]
        if isinstance(node, dict) and node.get("type") == "Sequence":
            steps = node.get("pretokenizers")
        if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
            raise self.fail("pre_tokenizer", node, "ByteLevel, or a Sequence of Split and ByteLevel")
        *splits, last = steps
        if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True) is not False:
            raise self.fail("pre_tokenizer", last, "ByteLevel with add_prefix_space false at the end")
        use_regex = last.get("use_regex", True)
        if not splits:
            return GPT2_PATTERN if use_regex else WHOLE_TEXT
        split, found = splits[0], splits[0].get("pattern")
        regex = found.get("Regex") if isinstance(found, dict) else None
        if (
            len(splits) > 1
            or use_regex is not False
            or split.get("type") != "Split"
            or split.get("behavior") != "Isolated"
            or split.get("invert", False) is not False
            or not isinstance(regex, str)
        ):
            raise self.fail(
                "pre_tokenizer", node, "one Split (Regex, Isolated) before ByteLevel without regex"
            )
        return regex


def _encodable(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)
