"""What HTTP adds to the bare engine: the same requests through a server and through AsyncLLM, A B A B.

The server is a process of its own; each round sends the requests through it, then to the engine in this
process, both with the same number in flight. TTFT is the time until the first piece, TPOT per further token,
ITL between pieces, E2EL until the end.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np

from .. import AsyncLLM, SamplingParams
from ..errors import GptossError
from .report import Line


@dataclass(frozen=True)
class Options:
    """concurrency: requests in flight, in turn. prompt, tokens: of each request. requests: of a round."""

    model: str
    concurrency: Sequence[int]
    prompt: int
    tokens: int
    requests: int
    rounds: int


@dataclass
class Timing:
    """When the pieces of one answer came, in seconds from its request."""

    pieces: list[float] = field(default_factory=list)
    end: float = 0.0

    def figures(self, tokens: int) -> dict[str, float]:
        first = self.pieces[0]
        return {"TTFT": first, "TPOT": (self.end - first) / max(tokens - 1, 1), "E2EL": self.end}


async def through_server(port: int, prompt: list[int], tokens: int) -> Timing:
    """Plain HTTP/1.1 over a socket, so that the client costs next to nothing."""
    begin, timing = time.perf_counter(), Timing()
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    async for line in reader:
        if line.startswith(b"data: {"):
            timing.pieces.append(time.perf_counter() - begin)
    timing.end = time.perf_counter() - begin
    writer.close()
    return timing


async def through_engine(llm: AsyncLLM, prompt: list[int], tokens: int) -> Timing:
    begin, timing = time.perf_counter(), Timing()
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0)
    async with aclosing(llm.generate(prompt, params)) as pieces:
        async for _ in pieces:
            timing.pieces.append(time.perf_counter() - begin)
    timing.end = time.perf_counter() - begin
    return timing


async def crowd(one: Callable[[list[int]], Awaitable[Timing]], prompts: list, at_once: int) -> list[Timing]:
    """All prompts, `at_once` in flight."""
    left, found = iter(prompts), []

    async def work() -> None:
        for prompt in left:
            found.append(await one(prompt))

    await asyncio.gather(*(work() for _ in range(at_once)))
    return found


def lines_of(side: str, at_once: int, timings: list[Timing], tokens: int) -> list[Line]:
    """A line for TTFT, TPOT, ITL and E2EL, its values in ms those of all requests."""
    columns: dict[str, list[float]] = {"TTFT": [], "TPOT": [], "ITL": [], "E2EL": []}
    for timing in timings:
        for name, value in timing.figures(tokens).items():
            columns[name].append(1e3 * value)
        columns["ITL"] += (1e3 * np.diff(timing.pieces)).tolist()
    return [
        Line(
            f"{side} {name} in_flight={at_once}", "ms", values, "less",
            {"side": side, "in_flight": at_once, "what": name, "mean": statistics.fmean(values),
             "p99": float(np.percentile(values, 99))},
        )
        for name, values in columns.items()
        if values
    ]  # fmt: skip


async def compare(options: Options, port: int, llm: AsyncLLM) -> AsyncIterator[list[Line]]:
    """Lines of the server and of the engine, for each number in flight."""
    random = np.random.default_rng(0)
    high = min(llm.config.vocab_size, 250)  # ordinary tokens in every vocabulary
    prompts = random.integers(10, high, (options.requests, options.prompt)).tolist()
    for at_once in options.concurrency:
        timings: dict[str, list[Timing]] = {"server": [], "engine": []}
        for _ in range(options.rounds):
            timings["server"] += await crowd(
                lambda prompt: through_server(port, prompt, options.tokens), prompts, at_once
            )
            timings["engine"] += await crowd(
                lambda prompt: through_engine(llm, prompt, options.tokens), prompts, at_once
            )
        yield [
            line for side, times in timings.items() for line in lines_of(side, at_once, times, options.tokens)
        ]


async def native_share(options: Options, llm: AsyncLLM) -> float:
    """Of the time that the engine has work, what passes inside forward and the sampler."""
    engine, spent = llm._engine, [0.0]

    def timed(call: Callable) -> Callable:
        def run(*arguments: object, **options: object) -> object:
            begin = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                spent[0] += time.perf_counter() - begin

        return run

    engine.model = _Timed(engine.model, timed(engine.model.forward))
    engine.enqueue_sample = timed(engine.enqueue_sample)
    begin = time.perf_counter()
    for seed in range(4):
        await through_engine(llm, [10 + seed] * options.prompt, options.tokens)
    return spent[0] / (time.perf_counter() - begin)


class _Timed:
    """A native model whose `forward` is another."""

    def __init__(self, model: object, forward: Callable):
        self._model, self.forward = model, forward

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


def start_server(model: str, max_len: int) -> tuple[subprocess.Popen, int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gptoss_native", "serve", model, "--port", str(port)]
    command += ["--max-model-len", str(max_len), "--enable-prefix-caching", "false"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return server, port
        except urllib.error.URLError:
            if server.poll() is not None:
                raise GptossError(
                    f"the server has ended with code {server.returncode}; run `gptoss-native serve {model}` "
                    "to see why"
                ) from None
            time.sleep(0.05)


async def measure(options: Options, report: Callable[[list[Line]], None]) -> tuple[str, float | None]:
    """Calls `report` with the lines of each number in flight.

    Returns the device, and on a CPU the share of the engine's time that native code takes, sampling included;
    the rest is Python.
    """
    max_len = options.prompt + options.tokens + 1
    server, port = start_server(options.model, max_len)
    try:
        llm = AsyncLLM(options.model, max_model_len=max_len, enable_prefix_caching=False)
        try:
            async for lines in compare(options, port, llm):
                report(lines)
            share = await native_share(options, llm) if llm.device == "cpu" else None
        finally:
            await llm.shutdown()
    finally:
        server.terminate()
        server.wait()
    return llm.device, share
