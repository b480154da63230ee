"""What HTTP adds to the bare engine: the same requests through a server and through AsyncLLM, A B A B.

    python -m bench.serve [--model demo] [--concurrency 1 4 16 64] [--tokens 128] [--requests 32] [--rounds 3]

The server is a process of its own; each round sends the requests through it, then to the engine in this
process, both with the same number in flight. Times in ms: TTFT until the first piece, TPOT per further token,
ITL between pieces, E2EL until the end. Overhead: how much longer the server's mean E2EL is. On a CPU the last
line is the share of the engine's time that native code takes, sampling included; the rest is Python.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
from gptoss_native import AsyncLLM, SamplingParams


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


def summary(timings: list[Timing], tokens: int) -> dict[str, dict[str, float]]:
    columns: dict[str, list[float]] = {"TTFT": [], "TPOT": [], "E2EL": [], "ITL": []}
    for timing in timings:
        for name, value in timing.figures(tokens).items():
            columns[name].append(value)
        columns["ITL"] += np.diff(timing.pieces).tolist()
    return {
        name: {
            "mean": statistics.fmean(values) * 1e3,
            "median": statistics.median(values) * 1e3,
            "p99": float(np.percentile(values, 99)) * 1e3,
        }
        for name, values in columns.items()
    }


async def compare(options: argparse.Namespace, port: int, llm: AsyncLLM) -> AsyncIterator[dict]:
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
        found = {side: summary(times, options.tokens) for side, times in timings.items()}
        yield {"concurrency": at_once, **found}


async def native_share(options: argparse.Namespace, llm: AsyncLLM) -> float:
    """Of the time that the engine has work, what passes inside forward and the sampler."""
    engine, spent = llm._engine, [0.0]

    def timed(call: Callable) -> Callable:
        def run(*arguments: object) -> object:
            begin = time.perf_counter()
            try:
                return call(*arguments)
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
                raise SystemExit("the server has ended") from None
            time.sleep(0.05)


async def measure(options: argparse.Namespace) -> None:
    max_len = options.prompt + options.tokens + 1
    server, port = start_server(options.model, max_len)
    llm = AsyncLLM(options.model, max_model_len=max_len, enable_prefix_caching=False)
    rows = []
    try:
        print(f"{options.model}, {llm.device}, {os.cpu_count()} cores, {platform.machine()}; ms")
        print(
            f"{'in flight':>9} {'':8}"
            + "".join(f"{n:>10}" for n in ("TTFT", "p99", "TPOT", "ITL p99", "E2EL", "p99"))
        )
        async for row in compare(options, port, llm):
            rows.append(row)
            for side in ("server", "engine"):
                one = row[side]
                values = [one["TTFT"]["mean"], one["TTFT"]["p99"], one["TPOT"]["mean"], one["ITL"]["p99"]]
                values += [one["E2EL"]["mean"], one["E2EL"]["p99"]]
                print(f"{row['concurrency']:9} {side:8}" + "".join(f"{value:10.2f}" for value in values))
            share = row["server"]["E2EL"]["mean"] / row["engine"]["E2EL"]["mean"] - 1
            print(f"{'':9} overhead {share:+.1%} of E2EL")
        if llm.device == "cpu":
            print(f"native code: {await native_share(options, llm):.1%} of the engine's time at 1 in flight")
    finally:
        server.terminate()
        server.wait()
        await llm.shutdown()
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"options": vars(options), "rows": rows}, file, indent=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--requests", type=int, default=32, help="a round and concurrency")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="JSON file for the figures")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
