"""LLM: a checkpoint on a device, and what one asks of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from threading import Lock, Thread
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from . import startup
from .adapters import Adapters
from .checkpoint import open_checkpoint
from .dense_forms import check_dense_dtype
from .devices import GPU_MEMORY_UTILIZATION, device_for
from .engine import Engine
from .errors import GptossError, RequestError
from .extras import Extras
from .host_memory import host_memory
from .interventions import Intervention, Slots, intervention_of
from .jobs import Job, JobMaker
from .kv_cache import PageManager
from .loading import load_model
from .open_numbers import OpenNumbers
from .outputs import ChatOutput, RequestOutput, ScoreOutput, StreamDelta
from .placement import place
from .plan import logit_rows_of, reach
from .progress import ProgressBar
from .prompts import (
    Conversation,
    Prompt,
    as_conversations,
    as_prompts,
    is_conversation,
    one_prompt,
    pair_params,
)
from .request import Request, Scoring
from .sampling import SamplingParams
from .scheduler import Scheduler
from .scoring import LogitRows, TokenLogprobs
from .settings import AUTO_NUMERICS, check_settings, default_params, end_tokens
from .speculation import MAX_DRAFTED, Speculation
from .speculation import speculative_config as speculative_config_of
from .strict_json import show
from .tokenizer import Tokenizer

Output = TypeVar("Output", bound=RequestOutput)


class LLM(OpenNumbers):
    """A gpt-oss model, ready to generate. Several threads may call it; their requests share steps.

    model: "demo", a checkpoint's folder, or a name in the local Hugging Face cache; the network is never used
    device: "cpu", "cuda", or "auto": a usable GPU, else the CPU
    numerics: "exact" (fp32 activations and keys/values; CPU only), "fast" (on a CPU 8-bit activations in the
        experts, on a GPU bf16 ones wherever they are multiplied; bf16 keys/values) or "auto", which is fast
    dense_dtype: "bf16", attention and lm_head as the checkpoint stores them; on a CPU also copies of them
        that are read faster: "packed", the same numbers in 12 bits and bit for bit the same answers, or "q8",
        8 bits with a scale for each 32 values and 8-bit activations, which is less exact
    gpu_memory_utilization: share of a GPU's memory that may be in use, other processes' part included
    max_model_len: tokens of the longest sequence, prompt and answer; None: as long as model and memory allow
    threads: 0: as many as the process may use, by its affinity mask and its control group's CPU quota
    max_num_seqs, max_num_batched_tokens: sequences that run at once, and tokens computed in one step
    page_size: tokens per page of the key/value cache, a multiple of 16 up to 256. Attention sums page by
        page, so that another size changes logits in the last digits, and through the 8-bit rounding of
        "fast" on a CPU by some thousandths of the largest; the same settings give the same logits
    seed: where the seeds of requests that have none come from; the same program then gives the same output
    kv_cache_tokens: capacity of the key/value cache, at most what max_num_seqs sequences can use; None: that,
        or what memory has
    max_logprobs: the most that SamplingParams.logprobs may ask for; -1: the whole vocabulary
    enable_prefix_caching: equal beginnings of texts share their keys and values, in whole pages;
        what ended texts leave in the cache stays until its place is needed, so that all of it is used in time
    speculative_config: {"method": "ngram", "num_speculative_tokens": 16, "prompt_lookup_max": 4,
        "prompt_lookup_min": 2} guesses up to so many coming tokens from where the last ones have stood
        before, and checks them in one step; what is generated stays the same, bit for bit. Guesses are run
        only as far as they pay, by what the text and the machine have shown so far. None: one token a step

    On a CPU the weights are the mapped files themselves. Every request first checks that nobody has changed
    them since (CheckpointError). A file cut short in the middle of a step cannot be caught: the system ends
    the process (SIGBUS). To replace a checkpoint, put new files in the place of the old ones; those in use
    then live on until they are let go of.

    Raises CheckpointError for a checkpoint that cannot be used, RequestError for such a setting.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "demo",
        *,
        device: str = "auto",
        numerics: str = "auto",
        dense_dtype: str = "bf16",
        max_model_len: int | None = None,
        threads: int = 0,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        page_size: int = 32,
        seed: int = 0,
        kv_cache_tokens: int | None = None,
        max_logprobs: int = 20,
        gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
        enable_prefix_caching: bool = True,
        speculative_config: Mapping[str, Any] | None = None,
    ):
        check_settings(
            numerics=numerics,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            threads=threads,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            page_size=page_size,
            seed=seed,
            kv_cache_tokens=kv_cache_tokens,
            max_logprobs=max_logprobs,
            enable_prefix_caching=enable_prefix_caching,
        )
        speculation = speculative_config_of(speculative_config)
        drafted = MAX_DRAFTED if speculation is not None else 0
        device = device_for(device)
        check_dense_dtype(dense_dtype, numerics, device)
        from . import _native

        checkpoint = open_checkpoint(model)
        self.name, self.config, self.generation_config = (
            checkpoint.name,
            checkpoint.config,
            checkpoint.generation_config,
        )
        self.numerics = AUTO_NUMERICS if numerics == "auto" else numerics
        self._tokenizer_directory = checkpoint.tokenizer_directory
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_lock = Lock()
        backend = _native.Backend(device=device, threads=threads, dense_dtype=dense_dtype)
        self.device, self.threads, self.isa = backend.device, backend.threads, backend.isa
        self.dense_dtype = dense_dtype
        decoded = max_num_seqs + drafted  # rows of one step
        logit_rows, most_logits = logit_rows_of(self.config, decoded)
        size = place(
            checkpoint,
            backend,
            numerics=self.numerics,
            dense_dtype=dense_dtype,
            page_size=page_size,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            kv_cache_tokens=kv_cache_tokens,
            decoded_rows=decoded,
            logit_rows=most_logits,
            gpu_memory_utilization=gpu_memory_utilization,
        )
        self.max_model_len = size.max_model_len
        startup.mark("checkpoint opened")
        Thread(target=self._read_tokenizer, name="gptoss-native tokenizer", daemon=True).start()
        native = load_model(
            checkpoint, backend, self.numerics, dense_dtype, max_num_batched_tokens, max_num_seqs
        )
        native.reserve(decoded, reach(self.max_model_len, page_size), most_logits)
        checkpoint.check_unchanged()
        startup.mark("weights in memory")
        self._open_numbers(checkpoint)
        # A GPU has its own copy of the weights; for the CPU the files must stay as they are.
        self._mapped = checkpoint if backend.memory is None else None
        cache = _native.KvCache(native, page_size, size.full_pages, size.window_pages)
        self.kv_cache_bytes = cache.nbytes
        pages = PageManager(
            page_size,
            self.config.sliding_window,
            size.full_pages,
            size.window_pages,
            prefixes=enable_prefix_caching,
        )
        self.adapters = Adapters(self.config, lambda: self.engine)
        on_its_own = not backend.is_host  # it works while the host goes on
        scheduler = Scheduler(
            pages, max_num_seqs, max_num_batched_tokens, logit_rows, replays=on_its_own, max_drafted=drafted
        )
        self._engine: Engine | None = Engine(
            native,
            cache,
            backend.enqueue_sample,
            _native.sample_row_dtype,
            scheduler,
            self.config.vocab_size,
            ahead=on_its_own,
            extras=Extras(Slots(native, self.config, max_num_seqs)),
            speculation=Speculation(speculation) if speculation is not None else None,
        )
        self._jobs = JobMaker(
            self.config,
            lambda: self.tokenizer,
            ends=end_tokens(self.config, self.generation_config),
            max_model_len=self.max_model_len,
            max_logprobs=max_logprobs,
            seed=seed,
            engine=lambda: self.engine,
            adapters=self.adapters,
        )
        self.default_params = default_params(self.generation_config)

    def _read_tokenizer(self) -> None:
        """Beside the loading of the weights; whoever needs it first is told what is wrong with it."""
        with suppress(GptossError):
            self.tokenizer.encode(" ")
        startup.mark("tokenizer (beside the weights)")

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, read when first used. Raises CheckpointError if it cannot be used."""
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = Tokenizer.for_checkpoint(self._tokenizer_directory)
            return self._tokenizer

    @property
    def engine(self) -> Engine:
        """The generation loop. Raises RequestError once closed, CheckpointError when weights were changed."""
        engine, mapped = self._engine, self._mapped  # read once: another thread may call close
        if engine is None:
            raise RequestError("this LLM has been closed; make a new one")
        if mapped is not None:
            mapped.check_unchanged()
        return engine

    def generate(
        self,
        prompts: Prompt | list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt, all in one batch. Raises RequestError for a bad one before anything runs.

        prompts: a text, token ids, or a list of either; text is taken as it is, without a chat format. vLLM's
            {"prompt": text} and {"prompt_token_ids": ids} are taken for what they hold
        sampling_params: one for all or one each; None: the checkpoint's own defaults
        use_tqdm: show on a terminal how many answers are done
        """
        prompts = as_prompts(prompts)
        settings = pair_params(sampling_params, len(prompts), self.default_params)
        jobs = [self._jobs.text(*job) for job in zip(prompts, settings, strict=True)]
        return self._run(jobs, RequestOutput, use_tqdm)

    def chat(
        self,
        messages: Conversation | list[Conversation],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        **options: Any,
    ) -> list[ChatOutput]:
        """Answer each conversation, all in one batch. Raises RequestError for a bad one before anything runs.

        messages: one conversation or several; a message is a dict as in OpenAI's chat completions, or a
            harmony Message. To go on, append the answer's `message` and the next one.
        sampling_params, use_tqdm: as in `generate`
        options: of harmony.render_conversation, such as tools=, reasoning_effort= and current_date=
        """
        conversations = as_conversations(messages)
        settings = pair_params(sampling_params, len(conversations), self.default_params)
        jobs = [self._jobs.chat(*job, options) for job in zip(conversations, settings, strict=True)]
        return self._run(jobs, ChatOutput, use_tqdm)

    def stream(
        self, prompt: Prompt | Conversation, sampling_params: SamplingParams | None = None, **options: Any
    ) -> Iterator[StreamDelta]:
        """One answer, piece by piece, to a conversation (as in `chat`) or a prompt (as in `generate`).

        The last delta carries the whole answer in `output`. Closing the iterator stops the generation; a step
        that adds no text, such as one of a long prompt, yields an empty delta, so that there is time to.
        Raises RequestError at once for a bad request.
        """
        return self._stream(self.engine, self.request(prompt, sampling_params, options))

    def request(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None,
        options: dict[str, Any],
        request_id: str | None = None,
        **urgency: Any,
    ) -> Request:
        """One answer to be generated, for the engine; `urgency`: priority and deadline of request.Request.

        Raises RequestError for a bad request.
        """
        chat = is_conversation(prompt)
        prompt = prompt if chat else one_prompt(prompt)
        if options and not chat:
            raise RequestError(
                f"{next(iter(options))} is an option of conversations, found a plain prompt; pass messages"
            )
        [params] = pair_params(sampling_params, 1, self.default_params)
        if params.n != 1:
            raise RequestError(f"a stream gives one answer, found n = {params.n}; set n to 1")
        if chat:
            job = self._jobs.chat(prompt, params, options, request_id, **urgency)
        else:
            job = self._jobs.text(prompt, params, **urgency)
        return job.requests[0]

    def logits(
        self, prompt: Prompt, *, steering: Any = None, experts: Any = None, adapter: str | None = None
    ) -> np.ndarray:
        """float32 [tokens, vocab]: row t holds the logits of the token after the first t + 1 tokens.

        steering, experts, adapter: as in SamplingParams

        They are the model's own numbers, NaN and infinity included where bad weights lead to them. Raises
        RequestError for a prompt longer than max_model_len, or whose logits memory cannot hold.
        """
        tokens = self._jobs.prompt_tokens(one_prompt(prompt), answer=0)
        found = LogitRows(len(tokens), self.config.vocab_size, host_memory())
        self.engine.run([Scoring(tokens, found.take, self._intervention(steering, experts, adapter))])
        return found.rows

    def score(
        self,
        prompts: Prompt | list[Prompt],
        *,
        steering: Any = None,
        experts: Any = None,
        adapter: str | None = None,
    ) -> list[ScoreOutput]:
        """Log-probability of each token of each prompt, given those before it; all in one batch.

        steering, experts, adapter: as in SamplingParams

        Raises RequestError for a prompt longer than max_model_len, and where one is not a finite number.
        """
        found = [TokenLogprobs(self._jobs.prompt_tokens(prompt, answer=0)) for prompt in as_prompts(prompts)]
        intervention = self._intervention(steering, experts, adapter)
        self.engine.run([Scoring(text.tokens, text.take, intervention) for text in found])
        for number, text in enumerate(found):
            text.check_finite(number)
        return [ScoreOutput(text.tokens, text.logprobs) for text in found]

    def _intervention(self, steering: Any, experts: Any, adapter: str | None) -> Intervention | None:
        intervention = intervention_of(steering, experts, self.adapters.find(adapter))
        intervention.check(self.config)
        return intervention or None

    def close(self) -> None:
        """Let go of the weights and the key/value cache. Running requests keep them until they end."""
        self._engine = self._mapped = None
        self.adapters.let_go()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, jobs: list[Job], kind: type[Output], use_tqdm: bool) -> list[Output]:
        if not isinstance(use_tqdm, bool):
            raise RequestError(f"use_tqdm must be True or False, found {show(use_tqdm)}; pass a bool")
        requests = [request for job in jobs for request in job.requests]
        if use_tqdm:
            with ProgressBar(len(requests), "answers", in_bytes=False) as progress:
                for _ in self.engine.steps(requests):
                    if progress.due:
                        progress(sum(request.finished for request in requests))
        else:
            self.engine.run(requests)
        return [
            kind(
                job.request_id,
                job.prompt,
                list(job.requests[0].prompt),
                [request.reader.output(request, index) for index, request in enumerate(job.requests)],
            )
            for job in jobs
        ]

    @staticmethod
    def _stream(engine: Engine, request: Request) -> Iterator[StreamDelta]:
        deltas = request.reader.deltas
        with closing(engine.steps([request])) as steps:
            for _ in steps:
                if not deltas:
                    yield StreamDelta()
                while deltas:
                    startup.mark("first token")
                    yield deltas.popleft()
        while deltas:  # another thread's step may have ended it after the last look
            yield deltas.popleft()
        yield StreamDelta(output=request.reader.output(request, 0))
