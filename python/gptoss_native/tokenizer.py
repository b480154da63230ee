"""Text to token ids and back, for o200k_harmony and for any byte-level BPE `tokenizer.json`.

tiktoken merges the byte pairs; it is imported at the first `encode`, because that and its tables cost about
0.2 s. Decoding needs only the table of token bytes. The ids of special tokens are a checkpoint's own: look
them up in `specials`.
"""

import codecs
import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from . import o200k, tokenizer_json
from .byte_pairs import WHOLE_TEXT, BytePairs
from .checkpoint.locate import contained_file
from .errors import CheckpointError, RequestError
from .strict_json import open_regular
from .tokenizer_json import Vocabulary

# The tokenizer.json published with gpt-oss-20b and -120b: hashing its 27.9 MB is quicker than reading it.
PUBLISHED_SIZE = 27_868_174
PUBLISHED_SHA256 = "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"

# Regexes known to match every character, so that no text can fall between two words.
_KNOWN_PATTERNS = {o200k.PATTERN, tokenizer_json.GPT2_PATTERN, WHOLE_TEXT}


class Tokenizer:
    """Byte-level BPE.

    n_vocab:     one more than the highest id
    specials:    id by spelling, e.g. "<|start|>": 200006
    special_ids: their ids
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Use `o200k_harmony`, `from_file` or `for_checkpoint`."""
        self._vocabulary = vocabulary
        self._pairs = BytePairs(vocabulary.tokens, vocabulary.pattern, vocabulary.pattern in _KNOWN_PATTERNS)
        self.specials = dict(vocabulary.specials)
        self.special_ids = set(self.specials.values())
        ranked = range(len(vocabulary.tokens)) if vocabulary.ids is None else vocabulary.ids
        self.n_vocab = 1 + max(chain(ranked, self.special_ids, vocabulary.extra))
        self._bytes: list[bytes | None] = [None] * self.n_vocab
        for token_id, token in zip(ranked, vocabulary.tokens, strict=True):
            self._bytes[token_id] = token
        for token_id, token in vocabulary.extra.items():
            self._bytes[token_id] = token
        for spelling, token_id in self.specials.items():
            self._bytes[token_id] = spelling.encode()

    @classmethod
    def o200k_harmony(cls) -> "Tokenizer":
        """The tokenizer of gpt-oss, from the ranks in this package."""
        return cls(Vocabulary(o200k.load_tokens(), None, {}, o200k.specials(), o200k.PATTERN))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a `tokenizer.json`; raises CheckpointError if it is malformed or not byte-level BPE."""
        tokenizer = cls(tokenizer_json.read(Path(path)))
        if not tokenizer._pairs.known:
            try:
                tokenizer._pairs.encode(
                    " \n A"
                )  # compiles the regex, and finds one that matches nothing at all
            except ValueError as error:
                raise CheckpointError(
                    f"{path}: pre_tokenizer holds a regex that cannot be used ({error}); "
                    "use the tokenizer.json that came with the model"
                ) from None
        return tokenizer

    @classmethod
    def for_checkpoint(cls, directory: str | os.PathLike[str]) -> "Tokenizer":
        """The tokenizer of a checkpoint folder.

        That is `o200k_harmony` without a `tokenizer.json` (OpenAI's layout), and for the published file,
        which is recognised by size and sha256. Any other file is read in full. Raises CheckpointError, also
        for a link out of the folder.
        """
        if not os.path.lexists(Path(directory) / "tokenizer.json"):
            return cls.o200k_harmony()
        path = contained_file(Path(directory), "tokenizer.json")
        return cls.o200k_harmony() if _is_published(path) else cls.from_file(path)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: "<|end|>" in `text` is seven characters, never a special token.

        Lone surrogates become U+FFFD. Raises RequestError for text the checkpoint's word regex cannot cut.
        """
        if not isinstance(text, str):
            raise RequestError(
                f"text is a {type(text).__name__}, expected a str; pass text, not bytes or ids"
            )
        ranks = self._pairs.encode(text)
        if not self._pairs.known:
            expected = len(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())
            found = sum(len(self._vocabulary.tokens[rank]) for rank in ranks)
            if found != expected:
                raise RequestError(
                    f"the word regex of this tokenizer covers {found} of the text's {expected} bytes; "
                    "use the tokenizer.json that came with the model"
                )
        ids = self._vocabulary.ids
        return ranks if ids is None else [ids[rank] for rank in ranks]

    def ordinary_tokens(self) -> Iterator[tuple[int, bytes]]:
        """(id, bytes) of every token that is text."""
        for token_id, token in enumerate(self._bytes):
            if token is not None and token_id not in self.special_ids:
                yield token_id, token

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, for a special token its spelling. RequestError for an id without one."""
        token = self._bytes[token_id] if 0 <= token_id < self.n_vocab else None
        if token is None:
            raise RequestError(
                f"token id {token_id} is not in this vocabulary of {self.n_vocab} ids; "
                "use ids from this checkpoint's tokenizer"
            )
        return token

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The concatenated bytes of `ids`. Raises RequestError like `token_bytes`."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, invalid UTF-8 as U+FFFD, specials as their spelling. Raises RequestError."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self) -> "StreamDecoder":
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self)


class StreamDecoder:
    """Decodes ids one at a time into whole characters.

    The pieces joined are what `Tokenizer.decode` makes of all the ids: a character cut by a token boundary
    waits for its rest, and bytes that cannot become one turn into U+FFFD as soon as that is certain.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that `token_id` completes. Raises RequestError for an unknown id."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD; the decoder can then be used again."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _is_published(path: Path) -> bool:
    descriptor, status = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size != PUBLISHED_SIZE:
            return False
        try:
            return hashlib.sha256(file.read(PUBLISHED_SIZE + 1)).hexdigest() == PUBLISHED_SHA256
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the disk") from None
