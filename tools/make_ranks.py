"""Rebuild the shipped o200k ranks: `python tools/make_ranks.py SOURCE`.

SOURCE is an `o200k_base.tiktoken` text file, the wheel of quicktok-v1 0.4.0 from PyPI (`pip download
--no-deps quicktok-v1==0.4.0`), or the `o200k.vocab` inside it. Only the data is read, and only if the text
form it stands for has the sha256 that tiktoken itself checks.
"""

import argparse
import base64
import hashlib
import struct
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

from gptoss_native import o200k

SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


def tiktoken_text(tokens: list[bytes]) -> bytes:
    """The `.tiktoken` form: one line per rank, base64 token and decimal rank."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def read_tiktoken(data: bytes) -> list[bytes]:
    """Tokens in rank order from the `.tiktoken` form."""
    ranks = {int(rank): base64.b64decode(token) for token, rank in map(bytes.split, data.splitlines())}
    return [ranks[i] for i in range(len(ranks))]


def read_vocab(data: bytes) -> list[bytes]:
    """Tokens in rank order from quicktok's form: u32 n, then n times u16 length, bytes, u32 rank (LE)."""
    (n,), at, ranks = struct.unpack_from("<I", data), 4, {}
    for _ in range(n):
        (length,) = struct.unpack_from("<H", data, at)
        token = data[at + 2 : at + 2 + length]
        (rank,) = struct.unpack_from("<I", data, at + 2 + length)
        ranks[rank] = token
        at += 6 + length
    return [ranks[i] for i in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path)
    source = parser.parse_args().source
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            tokens = read_vocab(wheel.read("quicktok/data/o200k.vocab"))
    elif source.suffix == ".vocab":
        tokens = read_vocab(source.read_bytes())
    else:
        tokens = read_tiktoken(source.read_bytes())
    found = hashlib.sha256(tiktoken_text(tokens)).hexdigest()
    if found != SHA256:
        sys.exit(f"{source}: its ranks have sha256 {found}, expected {SHA256}; this is not o200k_base")
    o200k.DATA_FILE.parent.mkdir(exist_ok=True)
    o200k.DATA_FILE.write_bytes(o200k.pack(tokens))
    print(f"{o200k.DATA_FILE.name}: {len(tokens):,} ranks, {o200k.DATA_FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
