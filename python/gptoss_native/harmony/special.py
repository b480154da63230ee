"""The special tokens harmony is built from, by the ids the checkpoint's own tokenizer gives them."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..errors import CheckpointError

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer


@dataclass(frozen=True)
class SpecialIds:
    """Token ids of the harmony specials; the field `start` is the id of "<|start|>", and so on."""

    start: int
    message: int
    channel: int
    constrain: int
    end: int
    return_: int
    call: int

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "SpecialIds":
        """Look them up; raises CheckpointError if the vocabulary lacks one."""
        spellings = {field.name: f"<|{field.name.rstrip('_')}|>" for field in fields(cls)}
        missing = [spelling for spelling in spellings.values() if spelling not in tokenizer.specials]
        if missing:
            raise CheckpointError(
                f"the tokenizer lacks the special token {', '.join(missing)}, which harmony needs "
                f"({len(tokenizer.specials)} specials found); use the tokenizer.json of a gpt-oss checkpoint"
            )
        return cls(**{name: tokenizer.specials[spelling] for name, spelling in spellings.items()})


def stop_token_ids(tokenizer: "Tokenizer") -> set[int]:
    """Ids after which the assistant's turn is over: `<|return|>` (final answer) and `<|call|>` (tool call).

    `<|end|>` is not among them: it ends a message, such as the analysis, and the next one follows.
    """
    special = SpecialIds.of(tokenizer)
    return {special.return_, special.call}
