"""tiktoken with its edges taken off: no text makes it panic, and no regex keeps its caller waiting for ever.

Its regex engine backtracks where a regex looks ahead, as `\\s+(?!\\S)` does, and gives up on a million
blanks. A Rust panic is a BaseException, which no `except Exception` sees. So long runs of white space are cut
into words here, by the rules that the known regexes follow; other regexes get a time limit.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from .errors import RequestError

if TYPE_CHECKING:
    import tiktoken

WHOLE_TEXT = r"[\s\S]+"
LOOK_AHEAD = r"\s+(?!\S)"
#: White space from this length on is cut here; tiktoken 0.14 panics from 1,000,000 on.
LONG_RUN = 1 << 16
#: How long a regex that nothing is known about may take for one text.
REGEX_SECONDS = 10.0
# What `\s` means to Rust: Unicode's White_Space. Python's own `\s` also takes U+001C to U+001F.
_WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_NEWLINES_AND_SLASHES = re.compile(r"[\r\n/]*")


class BytePairs:
    """Text to ranks.

    tokens: token bytes by rank
    pattern: the regex that cuts text into words, in which pairs then merge
    known: the regex cuts white space as o200k's and GPT-2's do, and covers every character
    """

    def __init__(self, tokens: list[bytes], pattern: str, known: bool):
        self.tokens, self.pattern, self.known = tokens, pattern, known
        self._late: threading.Thread | None = None  # a thread left behind in a regex

    @cached_property
    def words(self) -> tiktoken.Encoding:
        """Cuts text by the regex. Raises ValueError for one that does not compile."""
        return self._encoding(self.pattern, self.tokens)

    def encode(self, text: str) -> list[int]:
        """Ranks of `text`; lone surrogates count as U+FFFD. Raises RequestError where the regex fails."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if not self.known:
            return self._encode_in_time(text)
        ranks: list[int] = []
        for part, is_word in self._parts(text):
            encoding = self._whole if is_word else self.words
            ranks += _without_panic(encoding, part)
        return ranks

    @cached_property
    def _whole(self) -> tiktoken.Encoding:
        """Takes any text for one word."""
        return self._encoding(WHOLE_TEXT, self.tokens)

    @cached_property
    def _probe(self) -> tiktoken.Encoding:
        """Gives a newline a token with the byte before it, 256 + that byte, when both are in one word."""
        single = [bytes((byte,)) for byte in range(256)]
        return self._encoding(self.pattern, single + [byte + b"\n" for byte in single])

    @staticmethod
    def _encoding(pattern: str, tokens: list[bytes]) -> tiktoken.Encoding:
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(tokens)}
        return tiktoken.Encoding("gptoss-native", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """`text` in parts that end where words end; True: the part is one word, of white space alone.

        A run of white space is one word up to its last newline, where the regex knows newlines, and one more
        without the last blank, which belongs to what follows. Newlines right behind a word of punctuation are
        part of that word instead. No regex here looks back, so each part can be read without those before it.
        """
        if LOOK_AHEAD not in self.pattern:
            yield text, False
            return
        newlines = "\r\n" if r"\s*[\r\n]+" in self.pattern else ""
        at = 0  # where the next part begins; it may lie inside a run, or behind it
        for run in re.finditer(f"[{_WHITE}]{{{LONG_RUN},}}", text):
            start, end = max(run.start(), at), run.end()
            blanks = len(text[start:end].lstrip(newlines)) if newlines else end - start
            if blanks < end - start and at < start and self._takes_newlines(text[at:start]):
                if not blanks and text[end : end + 1] == "/":  # the word of punctuation goes on: "!\n/\n"
                    after = _NEWLINES_AND_SLASHES.match(text, end).end()
                    yield text[at:after], False
                    at = after
                    continue
                start = end - blanks
            if at < start:
                yield text[at:start], False
            at = start + max((text[start:end].rfind(newline) + 1 for newline in newlines), default=0)
            if at > start:
                yield text[start:at], True
            last = end if end == len(text) else end - 1
            if last > at:
                yield text[at:last], True
                at = last
        if at < len(text):
            yield text[at:], False

    def _takes_newlines(self, text: str) -> bool:
        """Whether the last word of `text` would include a newline after it."""
        return _without_panic(self._probe, text + "\n")[-1] >= 256

    def _encode_in_time(self, text: str) -> list[int]:
        """In a thread: tiktoken lets go of the GIL, but cannot be stopped. At most one is left behind."""
        if self._late is not None and self._late.is_alive():
            raise RequestError(
                "the word regex of this tokenizer is still busy with an earlier text; "
                "use the tokenizer.json that came with the model"
            )
        words, found = self.words, []

        def work() -> None:
            try:
                found.append(_without_panic(words, text))
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(REGEX_SECONDS)
        if not found:
            self._late = thread
            raise RequestError(
                f"the word regex of this tokenizer took more than {REGEX_SECONDS:g} s for {len(text):,} "
                "characters; use the tokenizer.json that came with the model"
            )
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]


def _without_panic(encoding: tiktoken.Encoding, text: str) -> list[int]:
    try:
        return encoding.encode_ordinary(text)
    except BaseException as error:
        # tiktoken offers no name for it to import; newer versions raise ValueError for some of these.
        if type(error).__name__ != "PanicException" and not isinstance(error, ValueError):
            raise
        raise RequestError(
            f"the word regex of this tokenizer cannot cut a text of {len(text):,} characters "
            f"({str(error)[:100]}); use the tokenizer.json that came with the model"
        ) from None
