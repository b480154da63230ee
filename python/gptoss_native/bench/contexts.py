"""What stands before decoded tokens: prompts really computed, or random keys and values in the same pages.

The time of a decoding step depends on how many keys and values it reads, not on what they are. Computing a
prompt takes a time that grows with its square, filling its pages takes seconds.
"""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

from .. import LLM, SamplingParams
from ..errors import RequestError
from ..kv_cache import pages_for
from ..scheduler import Sequence as ScheduledSequence

SEED = 0


def compute(llm: LLM, prompts: list[list[int]]) -> None:
    """Leave the prompts' keys and values in the prefix cache, where answers to them find them."""
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    requests = [llm.request(prompt, params, {}) for prompt in prompts]
    computed: SimpleQueue[Any] = SimpleQueue()

    def listen(task: Any) -> None:
        if task.ended or len(task.output) == 1:
            # All stay until the last is computed, so that none takes the window pages that another leaves.
            llm.engine.pause(task, True)
            computed.put(task)

    llm.engine.submit(requests, listen)
    for _ in requests:
        if (task := computed.get()).error is not None:
            raise task.error
    for request in requests:
        llm.engine.cancel(request)


def fill(llm: LLM, prompts: list[list[int]]) -> None:
    """Leave the pages that `compute` would leave, with random keys and values in them.

    Raises RequestError where the cache cannot hold all of them.
    """
    llm.engine.between_steps(lambda: _fill(llm, prompts))


def _fill(llm: LLM, prompts: list[list[int]]) -> None:
    """On the engine's thread: the scheduler's steps for these prompts, without the device's part of them."""
    cache, scheduler = llm.engine.cache, llm.engine.scheduler
    full: set[int] = set()
    window: set[int] = set()
    sequences = [ScheduledSequence(prompt) for prompt in prompts]
    for sequence in sequences:
        scheduler.add(sequence)
    while chunks := scheduler.schedule():
        for chunk in chunks:
            pages = chunk.sequence.pages
            new = slice(chunk.start // cache.page_size, pages_for(chunk.end, cache.page_size))
            full.update(pages.full[new])
            window.update(pages.window[new])
        scheduler.advance(chunks)
    # As in `compute`, all at the end.
    for sequence in sequences:
        scheduler.remove(sequence)
    for layer, kind in enumerate(llm.config.layer_types):
        cache.fill(layer, sorted(window if kind == "sliding_attention" else full), SEED)
    for prompt in prompts:
        found = len(scheduler.pages.find_prefix(prompt).nodes) * cache.page_size
        if found < len(prompt) - cache.page_size:
            raise RequestError(
                f"the cache keeps {found:,} of {len(prompt):,} tokens of one of {len(prompts)} contexts; use "
                "a smaller --batch or --context"
            )


#: How a context is made, in the words of a report.
WAYS = {"computed": compute, "filled with random keys and values": fill}
COMPUTED, FILLED = WAYS
