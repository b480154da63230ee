"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from . import UsageError

if TYPE_CHECKING:
    from ..llm import LLM
    from ..sampling import SamplingParams

MODEL_HELP = "demo, a checkpoint's folder, or a name in the Hugging Face cache such as openai/gpt-oss-20b"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How to run a model."""
    group = parser.add_argument_group("model")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    group.add_argument(
        "--numerics",
        choices=("auto", "exact", "fast"),
        default="auto",
        help="exact: fp32 activations; fast: 8-bit activations in the experts; default: auto",
    )
    group.add_argument(
        "--max-model-len",
        type=int,
        metavar="N",
        help="longest conversation in tokens; default: as long as the model and the memory allow",
    )
    group.add_argument("--threads", type=int, default=0, metavar="N", help="default: one per core")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How to draw tokens. Those left out keep the checkpoint's own defaults."""
    group = parser.add_argument_group("sampling", "Left out, a setting is what the checkpoint recommends.")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens of this sum")
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    group.add_argument(
        "--min-p", type=float, metavar="P", help="drop tokens below this share of the likeliest"
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    group.add_argument("--max-tokens", type=int, metavar="N", help="end the answer after N tokens")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer here; may be repeated")


def load(args: argparse.Namespace, **settings: Any) -> LLM:
    """The model that `args` name."""
    from ..llm import LLM

    return LLM(
        args.model,
        device=args.device,
        numerics=args.numerics,
        max_model_len=args.max_model_len,
        threads=args.threads,
        **settings,
    )


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
        return replace(default, **given)
    except RequestError as error:
        raise UsageError(str(error)) from None
