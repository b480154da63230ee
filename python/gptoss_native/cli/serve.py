"""gptoss-native serve: an HTTP server with OpenAI's API."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress

from .. import startup
from ..errors import RequestError
from . import SUCCESS, UsageError, tell
from .options import MODEL_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..server.settings import add_flags

    parser.add_argument("model", nargs="?", default="demo", help=MODEL_HELP)
    parser.epilog = (
        "Each setting is also an environment variable (--max-num-seqs: GPTOSS_MAX_NUM_SEQS) and a key of the "
        "file that --config names. Flags that vLLM needs for gpt-oss are taken and not needed."
    )
    parser.add_argument("--startup-trace", action="store_true", help="say on stderr what the start took")
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from ..server.settings import notes, read_settings

    try:
        settings = read_settings(args)
    except RequestError as error:
        raise UsageError(str(error)) from None
    try:
        import uvicorn

        from ..server.app import make_app
        from ..server.service import Service
    except ImportError as error:
        raise UsageError(f"serve needs {error.name}; install gptoss-native[server]") from None
    from ..async_llm import AsyncLLM

    startup.mark("modules imported")
    for note in notes(args):
        tell(note)
    try:
        llm = AsyncLLM(args.model, **settings.model_settings())
        service = Service(llm, settings)
    except RequestError as error:
        raise UsageError(str(error)) from None
    where = f"unix:{settings.uds}" if settings.uds else f"http://{settings.host}:{settings.port}"
    print(
        f"{service.name} on {llm.device}, {llm.max_model_len} tokens of context: {where}/v1", file=sys.stderr
    )
    startup.mark("about to listen")
    if args.startup_trace:
        print(startup.render(), file=sys.stderr)
    with suppress(ValueError):  # on another thread than the main one
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # uvicorn drains, then ends by what it found there
    uvicorn.run(
        make_app(service),
        host=settings.host,
        port=settings.port,
        uds=settings.uds,
        log_level="warning",
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    return SUCCESS
