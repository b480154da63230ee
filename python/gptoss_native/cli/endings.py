"""What is said on stderr of how answers ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..outputs import CompletionOutput
from . import FAILURE, SUCCESS, tell
from .text import counted

if TYPE_CHECKING:
    from ..llm import LLM
    from ..sampling import SamplingParams


def exit_code(answers: Sequence[CompletionOutput], llm: LLM, params: SamplingParams) -> int:
    """The exit code of these answers, after saying which of them failed and how many were cut off."""
    errors = [answer.error for answer in answers if answer.error is not None]
    for error in errors:
        tell(error)
    cuts = [found for answer in answers if (found := cut(answer, llm, params, "raise --max-model-len"))]
    for why in dict.fromkeys(cuts):
        which = "the answer was" if len(answers) == 1 else f"{cuts.count(why)} of {len(answers)} answers were"
        tell(f"{which} cut off {why}")
    return FAILURE if errors else SUCCESS


def cut(answer: CompletionOutput, llm: LLM, params: SamplingParams, more_context: str) -> str | None:
    """Where an answer was cut off and what to do; None if it was not."""
    if answer.finish_reason != "length":
        return None
    if params.max_tokens is not None and len(answer.token_ids) >= params.max_tokens:
        return f"after {counted(params.max_tokens, 'token')}; raise --max-tokens"
    return f"because all {llm.max_model_len:,} tokens of the context are used; {more_context}"
