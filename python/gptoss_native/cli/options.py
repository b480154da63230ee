"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import argparse
import atexit
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import startup
from ..dense_forms import add_dense_dtype
from ..devices import GPU_MEMORY_UTILIZATION
from ..errors import RequestError
from ..speculation import speculative_json
from . import UsageError

if TYPE_CHECKING:
    from ..llm import LLM
    from ..sampling import SamplingParams

DEVICE_HELP = "auto, cpu or cuda; default: auto, a GPU when there is one"
MODEL_HELP = "demo, a checkpoint's folder, or a name in the Hugging Face cache such as openai/gpt-oss-20b"
SPECULATIVE_HELP = (
    "guess coming tokens from the text before them and check several in one step; the answer stays the same: "
    '{"method": "ngram", "num_speculative_tokens": 16}; default: off'
)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How to run a model."""
    group = parser.add_argument_group("model")
    group.add_argument("--device", metavar="DEVICE", default="auto", help=DEVICE_HELP)
    group.add_argument(
        "--numerics",
        choices=("auto", "exact", "fast"),
        default="auto",
        help="exact: fp32 activations; fast: 8-bit activations in the experts; default: auto, which is fast",
    )
    add_dense_dtype(group)
    group.add_argument(
        "--max-model-len",
        type=int,
        metavar="N",
        help="the context: tokens of prompt and answer together; default: as many as model and memory allow",
    )
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        metavar="SHARE",
        default=GPU_MEMORY_UTILIZATION,
        help="of a GPU's memory, the share that may be in use; default: %(default)s",
    )
    group.add_argument("--speculative-config", metavar="JSON", help=SPECULATIVE_HELP)
    group.add_argument(
        "--startup-trace", action="store_true", help="say on stderr, at the end, what the start took"
    )
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="0, the default: one for each core"
    )


def add_sampling_options(parser: argparse.ArgumentParser, max_tokens: int | None) -> None:
    """How to draw tokens; `max_tokens` is the command's own default, None for what the context holds."""
    group = parser.add_argument_group("sampling", "Left out, a setting is what the checkpoint recommends.")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens of this sum; 1: from all"
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; 0 or -1: from all"
    )
    group.add_argument(
        "--min-p", type=float, metavar="P", help="drop tokens below this share of the likeliest; 0: none"
    )
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="the same seed gives the same answer; default: the same one in every run",
    )
    group.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        default=max_tokens,
        help="end each answer after N tokens; default: "
        + (str(max_tokens) if max_tokens is not None else "when the context (--max-model-len) is full"),
    )
    group.add_argument("--lora", metavar="FOLDER", help="answer with this PEFT adapter")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer here; may be repeated")


def check_utf8(text: str, what: str) -> str:
    """`text`, when it could be decoded. Python smuggles the bytes that could not be as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} is not valid UTF-8 at character {error.start + 1}; convert it to UTF-8"
        ) from None
    return text


def check_text(text: str, what: str) -> str:
    """`text`, when it is UTF-8 and says anything. Raises UsageError."""
    if not check_utf8(text, what).strip():
        raise UsageError(f"{what} is empty; give it some text")
    return text


def load(args: argparse.Namespace, **settings: Any) -> LLM:
    """The model that `args` name."""
    from ..llm import LLM

    startup.mark("modules imported")
    if getattr(args, "startup_trace", False):
        atexit.register(lambda: print(startup.render(), file=sys.stderr))
    try:
        llm = LLM(
            args.model,
            device=args.device,
            numerics=args.numerics,
            dense_dtype=args.dense_dtype,
            max_model_len=args.max_model_len,
            threads=args.threads,
            gpu_memory_utilization=args.gpu_memory_utilization,
            speculative_config=speculative_json(args.speculative_config),
            **settings,
        )
        if getattr(args, "lora", None) is not None:
            llm.adapters.load(args.lora, args.lora)
        return llm
    except RequestError as error:
        raise UsageError(str(error)) from None


def check_sampling(args: argparse.Namespace) -> None:
    """Raise UsageError for settings that no model could take, before one is loaded."""
    from ..sampling import SamplingParams

    _build(SamplingParams(), args)


def sampling_params(args: argparse.Namespace, default: SamplingParams) -> SamplingParams:
    """The checkpoint's `default` with what the user set."""
    return _build(default, args)


def _build(default: SamplingParams, args: argparse.Namespace) -> SamplingParams:
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "stop", "n", "logprobs")
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    try:
        return replace(default, adapter=getattr(args, "lora", None), **given)
    except RequestError as error:
        raise UsageError(str(error)) from None
