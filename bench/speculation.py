"""What drafts without a model gain: the same answers with and without, A B A B, on one engine's weights.

    python bench/synthetic_checkpoint.py 20b-4layer /data/random-4 --vocab 201088
    python -m bench.speculation /data/random-4 [--rounds 3] [--tokens 16] [--together 1] [--json OUT]

Random weights do not write texts, so each answer is spelled out by masks, one token allowed at each place.
All else is real: every row runs through the model, every token is drawn, and the engine only knows a token
once it has been drawn; wrong guesses run and are drawn otherwise, as a model's own choice would be. A round
generates the answer without drafts and with them; the prompt is in the prefix cache, so that the figures are
those of decoding. The ratio is that of each round's pair. On a CPU that others use too, the ratio by work is
steadier: it counts the seconds that this process has had of the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gptoss_native import LLM, SamplingParams
from gptoss_native.constraints.states import mask_of

from bench.speculation_texts import WORKLOADS


@dataclass
class Round:
    """One answer, or several together: tokens a second, the same by seconds of work on the CPU's cores,
    steps, and guesses run and right."""

    speed: float
    speed_of_work: float
    steps: int
    drafted: int
    accepted: int


class Spelled:
    """Stands for a request's constraint: the tokens of an answer.

    Unlike a real one it does not tell before the draw which guesses are wrong: a model's choice would not.
    """

    done = False

    def __init__(self, masks: list[np.ndarray]):
        self._masks, self._place = masks, 0

    def mask(self) -> np.ndarray:
        return self._masks[self._place]

    def take(self, token: int) -> None:
        self._place += 1

    def masks_along(self, tokens: list[int]) -> list[np.ndarray]:
        return self._masks[self._place :][: len(tokens) + 1]


def generate(llm: LLM, prompt: list[int], answer: list[int], together: int) -> Round:
    """Have `answer` generated `together` times in one batch, and look at the engine before and after."""
    engine, counted = llm.engine, llm.engine.speculation
    masks = {token: mask_of([token], llm.config.vocab_size) for token in set(answer)}
    params = SamplingParams(temperature=0, max_tokens=len(answer))
    requests = [llm.request(prompt, params, {}) for _ in range(together)]
    for request in requests:
        request.constraint = Spelled([masks[token] for token in answer])
    before = engine.steps_run, *((counted.drafted, counted.accepted) if counted else (0, 0))
    start, worked = time.perf_counter(), time.process_time()
    engine.run(requests)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    assert all(request.output == answer for request in requests), "the masks have not been kept to"
    after = engine.steps_run, *((counted.drafted, counted.accepted) if counted else (0, 0))
    tokens = together * len(answer)
    return Round(tokens / seconds, tokens / worked, *(b - a for a, b in zip(before, after, strict=True)))


def compare(llm: LLM, name: str, rounds: int, together: int, most: int | None) -> dict:
    """One workload's figures; most: tokens of its answer."""
    prompt, answer = (llm.tokenizer.encode(text) for text in WORKLOADS[name])
    answer = answer[:most]
    speculation, engine = llm.engine.speculation, llm.engine
    pairs = []
    generate(llm, prompt, answer[:4], together)  # pays for the prompt, and for the pages of the weights
    for _ in range(rounds):
        engine.speculation = None
        off = generate(llm, prompt, answer, together)
        engine.speculation = speculation
        on = generate(llm, prompt, answer, together)
        pairs.append((off, on))
    ratios = [on.speed / off.speed for off, on in pairs]
    drafted, accepted = (sum(getattr(on, what) for _, on in pairs) for what in ("drafted", "accepted"))
    return {
        "workload": name,
        "prompt_tokens": len(prompt),
        "answer_tokens": len(answer),
        "off": statistics.median(off.speed for off, _ in pairs),
        "on": statistics.median(on.speed for _, on in pairs),
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        "ratio_of_work": statistics.median(on.speed_of_work / off.speed_of_work for off, on in pairs),
        "steps_off": statistics.median(off.steps for off, _ in pairs),
        "steps_on": statistics.median(on.steps for _, on in pairs),
        "drafted": drafted / rounds,
        "accepted": accepted / rounds,
        "step_ms": 1e3 * speculation.costs.seconds[together],
        "factors": speculation.costs.factors(together),
    }


def show(found: dict, together: int) -> None:
    share = found["accepted"] / found["drafted"] if found["drafted"] else 0.0
    rows = (together * found["answer_tokens"] - found["accepted"] + found["drafted"]) / found["steps_on"]
    print(
        f"{found['workload']:16s} {found['answer_tokens']:5d} tokens"
        f"  off {found['off']:7.2f}  on {found['on']:7.2f} tok/s"
        f"  ratio {found['ratio']:.3f} ({found['ratios'][0]:.3f} to {found['ratios'][-1]:.3f})"
        f", by work {found['ratio_of_work']:.3f}"
        f"  steps {found['steps_off']:.0f} -> {found['steps_on']:.0f}, {rows:.2f} rows each"
        f"  guesses {found['drafted']:.0f}, {share:.0%} right",
        flush=True,
    )
    factors = ", ".join(f"{factor:.2f} with {guesses:.1f}" for guesses, factor in found["factors"][1:])
    print(f"{'':16s} a step takes {found['step_ms']:.1f} ms; with guesses, times {factors or 'nothing seen'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="num_speculative_tokens")
    parser.add_argument("--together", type=int, default=1, help="answers at once")
    parser.add_argument("--most", type=int, help="tokens of an answer; default: all of it")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = {"method": "ngram", "num_speculative_tokens": args.tokens}
    with LLM(
        args.checkpoint,
        device=args.device,
        threads=args.threads,
        max_model_len=4096,
        max_num_seqs=args.together,
        speculative_config=config,
    ) as llm:
        about = {
            "command": " ".join(sys.argv),
            "device": f"{llm.device}, {platform.machine()}, {llm.isa}, {llm.threads} threads",
            "numpy": np.__version__,
            "load_before": os.getloadavg(),
        }
        print(f"{about['device']}; load {about['load_before'][0]:.2f}; {config}", flush=True)
        found = []
        for name in args.workloads:
            found.append(compare(llm, name, args.rounds, args.together, args.most))
            show(found[-1], args.together)
        about["load_after"] = os.getloadavg()
        print(f"load {about['load_after'][0]:.2f}")
    if args.json:
        args.json.write_text(json.dumps({**about, "workloads": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
