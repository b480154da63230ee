"""Token ids to messages, one id at a time: a state machine that never raises and never loses text.

Well-formed output gives what openai-harmony's `StreamableParser` gives. It raises on anything else;
a server cannot, because a model that slips once would cost its user the whole answer. So these rules hold,
and `HarmonyParser.recoveries` says where one was used.

 1. Text where `<|start|>` is due begins a header, as if `<|start|>` had come.
 2. `<|message|>` or `<|channel|>` where `<|start|>` is due begins a message of the assistant.
 3. `<|start|>` or `<|channel|>` inside content ends the message; `<|channel|>` goes on in the same role.
 4. A header that ends without `<|message|>` (by `<|end|>`, `<|return|>`, `<|call|>` or `<|start|>`): channel,
    recipient and content type are taken from it, the rest is content. Where nothing is left and neither
    channel nor recipient was named, there is no message. A header that can no longer be one is treated so at
    once, and what follows is content too: at a third word after the role without a `to=` recipient or
    `<|constrain|>`, or beyond 4096 characters. (A header beyond 64 characters is looked at again only each
    time it has grown by a quarter.)
 5. At the end of the tokens an unfinished header is a message only if rule 4 finds content in it. After a
    `<|start|>`, the beginning of a role's name is none: the tokens have been cut.
 6. A header with `<|message|>` but too many words keeps its role, channel, `to=` recipient and content type.
    Of several channels the last counts; a missing role is the assistant; an unknown lone author is a tool if
    its name has a dot, otherwise the assistant; `user:Ann` is a user named Ann.
 7. `<|constrain|>json` without a recipient is a content type. (The official parser calls it the recipient,
    so that a JSON answer looks like a tool call.)
 8. `<|endoftext|>` ends a message like `<|end|>`. Any other special token that has no meaning where it stands
    is dropped, as is a second stop token.
 9. Bytes that are not UTF-8 become U+FFFD, and so does an id outside the vocabulary.

The invariant: of each run of ordinary tokens between two special tokens, the decoded text is in the content
of one message, or its words are in that message's fields, in its content or in `recoveries` (which, so that
a model run wild fills no memory, has the first 100 sentences and the number of the others).
"""

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..strict_json import show
from . import header as headers
from .header import Header
from .messages import ROLES, Message
from .special import SpecialIds

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

MAX_HEADER = 4096  # characters
SHORT_HEADER = 64  # characters; longer than a true header's, but for long tool names
MAX_RECOVERIES = 100  # sentences


@dataclass(frozen=True)
class Delta:
    """A piece of text that was added to a message's content, with the fields of its header.

    message_index: the message's place in `HarmonyParser.messages` once it is complete
    """

    message_index: int
    role: str
    name: str | None
    channel: str | None
    recipient: str | None
    content_type: str | None
    text: str


class HarmonyParser:
    """Parses what a model generates.

    messages:   the complete messages so far (`current` is the open one)
    recoveries: what was malformed and what was done about it, one sentence each; beyond 100, their number
    """

    def __init__(self, tokenizer: "Tokenizer", role: str | None = "assistant") -> None:
        """`role` is the one the prompt ended with; None to parse from a `<|start|>` on.

        Raises CheckpointError if the vocabulary lacks a harmony special, RequestError for an unknown role.
        """
        if role is not None and role not in ROLES:
            raise RequestError(f"role is {show(role)}, expected None or one of {', '.join(ROLES)}")
        self.messages: list[Message] = []
        self.recoveries: list[str] = []
        self._tokenizer = tokenizer
        self._special = SpecialIds.of(tokenizer)
        self._stops = {self._special.end, self._special.return_, self._special.call}
        self._end_of_text = tokenizer.specials.get("<|endoftext|>")
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._role = role  # of the header being read, if known before its text
        self._header: str | None = None if role is None else ""  # text so far; None outside a header
        self._started = False  # the header being read follows a <|start|>
        self._notes = self._notes_before_header = 0
        self._next_look = 0  # at how many characters it is asked again whether this can be a header
        self._open: Header | None = None  # of the message whose content is being read
        self._content: list[str] = []
        self._deltas: list[Delta] = []

    @property
    def current(self) -> Message | None:
        """The message whose content is being read, as far as it goes; None between contents."""
        return None if self._open is None else self._message(self._open)

    @property
    def role(self) -> str | None:
        """Whose content is being read; None between contents."""
        return None if self._open is None else self._open.role

    def push(self, token_id: int) -> list[Delta]:
        """Read one token; returns the text it adds to message contents. Never raises for any integer."""
        if token_id in self._tokenizer.special_ids:
            self._flush_characters()
            self._on_special(token_id)
        else:
            try:
                data = self._tokenizer.token_bytes(token_id)
            except RequestError:
                self._note(f"an id outside the vocabulary becomes U+FFFD: {token_id}")
                self._flush_characters()
                data = "\ufffd".encode()
            if self._open is None and self._header is None:
                self._note("text without <|start|> begins a header")
                self._begin_header(None)
            self._add_text(self._utf8.decode(data))
        return self._take_deltas()

    def finish(self) -> list[Delta]:
        """The tokens are over: complete the open message. The parser then waits for a `<|start|>`."""
        self._flush_characters()
        if self._open is not None:
            self._close()
        elif self._header is not None and self._is_cut_role():
            self._note(f"the tokens end inside a header: {self._header}")
            self._role = self._header = None
        elif self._header is not None:
            self._salvage("the tokens end inside a header", keep_empty=False)
        return self._take_deltas()

    def _on_special(self, token_id: int) -> None:
        special, in_content, in_header = self._special, self._open is not None, self._header is not None
        if token_id in self._stops or token_id == self._end_of_text:
            if token_id == self._end_of_text:
                self._note("<|endoftext|> ends the message")
            if in_content:
                self._close()
            elif in_header:
                self._salvage("a header ends without <|message|>")
            elif token_id != self._end_of_text:
                self._note(f"{self._spelling(token_id)} outside a message is dropped")
        elif token_id == special.start:
            if in_content:
                self._note("<|start|> ends the message before it")
                self._close()
            elif in_header:
                self._salvage("a header ends at the next <|start|>")
            self._begin_header(None, started=True)
        elif token_id == special.channel:
            if in_content:
                self._note("<|channel|> inside content begins another message of the same role")
                role = self._open.role if self._open else None
                self._close()
                self._begin_header(role)
            elif not in_header:
                self._note("<|channel|> without <|start|> begins a message of the assistant")
                self._begin_header("assistant")
            self._add_text(headers.CHANNEL)
        elif token_id == special.message and not in_content:
            if not in_header:
                self._note("<|message|> without <|start|> begins a message of the assistant")
                self._begin_header("assistant")
            text = self._header or ""
            found, rules = headers.read(text, self._role)
            if rules or self._notes > self._notes_before_header:
                rules.append(f"the header was: {text}")
            self._end_header(found, rules)
        elif token_id == special.constrain and in_header:
            self._add_text(headers.CONSTRAIN)
        else:
            self._note(f"{self._spelling(token_id)} has no meaning here and is dropped")

    def _is_cut_role(self) -> bool:
        return self._started and any(role.startswith(self._header or "") for role in ROLES)

    def _begin_header(self, role: str | None, started: bool = False) -> None:
        self._role, self._header, self._notes_before_header = role, "", self._notes
        self._started = started
        self._next_look = 0

    def _add_text(self, text: str) -> None:
        if not text:
            return
        if self._open is not None:
            self._content.append(text)
            self._emit(text)
        elif self._header is not None:
            self._header += text
            if self._cannot_be_header():
                self._salvage("text that cannot be a header is content", close=False)

    def _cannot_be_header(self) -> bool:
        """Whether the header can no longer become one; looks rarely at a long one, to take linear time."""
        text, length = self._header or "", len(self._header or "")
        if length < self._next_look:
            return False
        if length > SHORT_HEADER:
            self._next_look = min(length + length // 4, MAX_HEADER + 1)
        return length > MAX_HEADER or (
            not headers.has_marks(text) and headers.words_after_role(text, self._role) > 2
        )

    def _end_header(self, found: Header, rules: list[str]) -> None:
        for rule in rules:
            self._note(rule)
        self._open, self._content = found, []
        self._role = self._header = None

    def _salvage(self, why: str, keep_empty: bool = True, close: bool = True) -> None:
        """Rules 4 and 5: make a message of the header text so far, if there is one in it."""
        text = self._header or ""
        found, content, rules = headers.salvage(text, self._role)
        named = found.channel is not None or found.recipient is not None
        self._note(f"{why}: {text}")
        if content or not close or (keep_empty and named):
            self._end_header(found, rules)
            self._add_text(content)
            if close:
                self._close()
        self._role = self._header = None

    def _close(self) -> None:
        if self._open is not None:
            self.messages.append(self._message(self._open))
        self._open, self._content = None, []

    def _flush_characters(self) -> None:
        """A special token cuts the text: bytes of an unfinished character become U+FFFD."""
        self._add_text(self._utf8.decode(b"", final=True))
        self._utf8.reset()

    def _message(self, found: Header) -> Message:
        text = "".join(self._content)
        return Message(found.role, text, found.name, found.channel, found.recipient, found.content_type)

    def _emit(self, text: str) -> None:
        h = self._open
        if h is not None:
            index = len(self.messages)
            self._deltas.append(Delta(index, h.role, h.name, h.channel, h.recipient, h.content_type, text))

    def _take_deltas(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _note(self, sentence: str) -> None:
        self._notes += 1
        if self._notes <= MAX_RECOVERIES:
            self.recoveries.append(f"message {len(self.messages)}: {sentence}")
        else:
            self.recoveries[MAX_RECOVERIES:] = [f"and {self._notes - MAX_RECOVERIES} more"]

    def _spelling(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")
