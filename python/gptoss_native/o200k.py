"""The o200k_harmony vocabulary of gpt-oss: the ranks shipped with the package, its specials, its word regex.

The data file is zlib over `n` length bytes followed by the `n` tokens back to back, in rank order; that loads
in a tenth of the time the original base64 text takes. `tools/make_ranks.py` writes it.
"""

import zlib
from itertools import accumulate, pairwise
from pathlib import Path

from .errors import CheckpointError

N_RANKS = 199_998
N_VOCAB = 201_088
DATA_FILE = Path(__file__).parent / "data" / "o200k_base.tiktoken.zlib"

# The word regex published with o200k_base in tiktoken (MIT, OpenAI): how text is cut before byte pairs merge.
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

_NAMED = {
    "<|startoftext|>": 199_998,
    "<|endoftext|>": 199_999,
    "<|return|>": 200_002,
    "<|constrain|>": 200_003,
    "<|channel|>": 200_005,
    "<|start|>": 200_006,
    "<|end|>": 200_007,
    "<|message|>": 200_008,
    "<|call|>": 200_012,
}


def specials() -> dict[str, int]:
    """Every special token of o200k_harmony, by spelling; unnamed ids are `<|reserved_ID|>`."""
    taken = set(_NAMED.values())
    reserved = {f"<|reserved_{i}|>": i for i in range(N_RANKS, N_VOCAB) if i not in taken}
    return _NAMED | reserved


def pack(tokens: list[bytes]) -> bytes:
    """The data file's bytes for `tokens` in rank order (each 1 to 255 bytes)."""
    return zlib.compress(bytes(map(len, tokens)) + b"".join(tokens), 9)


def unpack(data: bytes, n: int) -> list[bytes]:
    """The `n` tokens in rank order; raises CheckpointError if the data is damaged."""
    try:
        raw = zlib.decompress(data)
    except zlib.error as error:
        raise CheckpointError(f"{DATA_FILE.name} is damaged ({error}); reinstall gptoss-native") from None
    ends = list(accumulate(raw[:n], initial=n))
    if ends[-1] != len(raw):
        raise CheckpointError(
            f"{DATA_FILE.name} holds {len(raw)} bytes where {ends[-1]} are expected; reinstall gptoss-native"
        )
    return [raw[a:b] for a, b in pairwise(ends)]


def load_tokens() -> list[bytes]:
    """The shipped ranks: token bytes by rank, 199,998 of them."""
    try:
        data = DATA_FILE.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{DATA_FILE}: {error.strerror}; reinstall gptoss-native") from None
    return unpack(data, N_RANKS)
