"""Many requests over real sockets to a server whose cache is far too small, with clients that behave badly.

    python -m tests.server.storm [REQUESTS] [IN_FLIGHT]

Some requests are read to the end, some are left in the middle by closing the connection, some are aborted on
the server's side, some have a deadline that passes. What was read must be what the same request
gives alone, or its beginning; each ends exactly once; no page stays behind; memory does not grow.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
from gptoss_native import LLM, OverloadedError, SamplingParams

from .conftest import Running

CHAT = "/v1/chat/completions"
#: As few pages as one request of the longest kind needs, so that crowds preempt each other.
TINY_CACHE_TOKENS = 2048


@dataclass
class Case:
    """body: of a chat completion; said: what it answers alone, reasoning and content; tokens: the same"""

    body: dict[str, Any]
    said: str = ""
    tokens: tuple[int, ...] = ()


def cases(random_source: random.Random, count: int) -> list[Case]:
    found = []
    for number in range(count):
        a, b = random_source.randrange(10_000), random_source.randrange(10_000)
        question = {"role": "user", "content": f"What is {a} {random_source.choice('+-')} {b}?"}
        padding = {"role": "system", "content": "calm " * random_source.choice([0, 0, 30, 120])}
        body = {
            "messages": [padding, question] if padding["content"] else [question],
            "temperature": random_source.choice([0, 0.7, 1.5]),
            "seed": number,
            "max_tokens": random_source.choice([5, 40, 120]),
        }
        found.append(Case(body))
    return found


def answer_alone(all_cases: list[Case]) -> None:
    with LLM("demo", max_model_len=TINY_CACHE_TOKENS, enable_prefix_caching=False) as llm:
        for case in all_cases:
            params = {name: case.body[name] for name in ("temperature", "seed", "max_tokens")}
            output = llm.chat(case.body["messages"], SamplingParams(**params))[0].outputs[0]
            case.said = f"{output.reasoning}|{output.content}"
            case.tokens = tuple(output.token_ids)


class Storm:
    """Sends requests and counts how they end."""

    def __init__(self, running: Running, all_cases: list[Case], seed: int):
        self.running, self.cases, self.random = running, all_cases, random.Random(seed)
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, requests: int, in_flight: int) -> None:
        left = iter(range(requests))
        limits = httpx.Limits(max_connections=in_flight)
        base = f"http://127.0.0.1:{self.running.port}"
        async with httpx.AsyncClient(base_url=base, timeout=120, limits=limits) as client:

            async def work() -> None:
                for _ in left:
                    await self.one(client)

            await asyncio.gather(*(work() for _ in range(in_flight)))

    async def one(self, client: httpx.AsyncClient) -> None:
        case = self.random.choice(self.cases)
        kind = self.random.choices(["whole", "stream", "leave", "abort", "deadline"], [3, 3, 2, 1, 1])[0]
        said, ended = await getattr(self, f"_{kind}")(client, case)
        self.ends[f"{kind}: {ended}"] += 1
        alone = case.said if isinstance(said, str) else case.tokens
        right = said == alone if ended == "whole" else _is_beginning(said, alone)
        if not right:
            self.wrong.append(f"{kind} {ended} {case.body}: {said!r}, alone {alone!r}")

    async def _whole(self, client: httpx.AsyncClient, case: Case) -> tuple[str, str]:
        response = await client.post(CHAT, json=case.body)
        if response.status_code == 429:
            return "", "refused"
        message = response.json()["choices"][0]["message"]
        return f"{message.get('reasoning', '')}|{message['content'] or ''}", "whole"

    async def _stream(
        self, client: httpx.AsyncClient, case: Case, leave: int | None = None
    ) -> tuple[str, str]:
        reasoning, content, events = "", "", 0
        async with client.stream("POST", CHAT, json=case.body | {"stream": True}) as response:
            if response.status_code == 429:
                return "", "refused"
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                delta = json.loads(line[6:])["choices"][0]["delta"]
                reasoning += delta.get("reasoning", "")
                content += delta.get("content", "")
                events += 1
                if events == leave:
                    return f"{reasoning}|{content}", "left"
        return f"{reasoning}|{content}", "whole"

    async def _leave(self, client: httpx.AsyncClient, case: Case) -> tuple[str, str]:
        return await self._stream(client, case, self.random.randrange(1, 40))

    async def _abort(self, _: httpx.AsyncClient, case: Case) -> tuple[tuple[int, ...], str]:
        return await self._engine(case, self.random.randrange(1, 60), None)

    async def _deadline(self, _: httpx.AsyncClient, case: Case) -> tuple[tuple[int, ...], str]:
        return await self._engine(case, None, self.random.random() * 0.2)

    async def _engine(
        self, case: Case, pieces: int | None, deadline: float | None
    ) -> tuple[tuple[int, ...], str]:
        """Past HTTP, on another event loop than the server's."""
        params = {name: case.body[name] for name in ("temperature", "seed", "max_tokens")}
        request_id = f"storm {self.random.getrandbits(64)}"
        seen = 0
        with suppress(OverloadedError):
            async for piece in self.running.llm.generate(
                case.body["messages"], SamplingParams(**params), request_id=request_id, deadline=deadline
            ):
                seen += 1
                if seen == pieces:
                    self.running.llm.abort(request_id)
                if piece.output is not None:
                    whole = piece.output.finish_reason in ("stop", "length")
                    return tuple(piece.output.token_ids), "whole" if whole else "cut"
        return (), "refused"


def _is_beginning(said: str | tuple[int, ...], alone: str | tuple[int, ...]) -> bool:
    if isinstance(said, tuple):
        return said == alone[: len(said)]
    reasoning, _, content = said.partition("|")
    whole_reasoning, _, whole_content = alone.partition("|")
    return whole_reasoning.startswith(reasoning) and whole_content.startswith(content)


def memory() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def wait_until_idle(running: Running, seconds: float = 60) -> dict[str, int]:
    end = time.monotonic() + seconds
    while True:
        stats = running.llm.stats()
        idle = not (
            stats["running"] or stats["waiting"] or stats["kv_pages_used"] or stats["kv_window_pages_used"]
        )
        if idle or time.monotonic() > end:
            return stats
        time.sleep(0.01)


def storm(requests: int, in_flight: int, seed: int) -> tuple[Storm, dict[str, int], list[int]]:
    """(the storm that is over, the server's numbers after it, resident bytes after each tenth of it)."""
    all_cases = cases(random.Random(seed), 80)
    answer_alone(all_cases)
    running = Running({"kv_cache_tokens": TINY_CACHE_TOKENS})
    try:
        found, sizes = Storm(running, all_cases, seed), []
        for _ in range(10):
            asyncio.run(found.run(requests // 10, in_flight))
            sizes.append(memory())
        return found, wait_until_idle(running), sizes
    finally:
        running.stop()


def main() -> None:
    requests, in_flight = (int(value) for value in [*sys.argv[1:], "10000", "64"][:2])
    seed, begin = random.randrange(1 << 32), time.perf_counter()
    found, stats, sizes = storm(requests, in_flight, seed)
    print(f"seed {seed}: {sum(found.ends.values())} requests in {time.perf_counter() - begin:.0f} s")
    for end, count in sorted(found.ends.items()):
        print(f"  {count:6} {end}")
    print(f"  {len(found.wrong)} wrong")
    print("\n".join(found.wrong[:5]))
    print(f"  preemptions {stats['preemptions']}, pages in use {stats['kv_pages_used']}")
    print("  resident MiB after each tenth:", *(size >> 20 for size in sizes))
    sys.exit(bool(found.wrong or stats["kv_pages_used"] or stats["running"]))


if __name__ == "__main__":
    main()
