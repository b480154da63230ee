"""From prompts and conversations to requests for the engine: rendered, encoded, checked, with their ends."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from .adapters import Adapters
from .capture import Recorder
from .config import ModelConfig
from .constraints import Constraint, Constraints
from .constraints.constraints import OPTIONS
from .constraints.states import State
from .engine import Engine
from .errors import RequestError
from .harmony import render_conversation, stop_token_ids
from .interventions import Intervention
from .prompts import Conversation, TextOrIds, check_messages, token_ids
from .readers import ChatReader, TextReader, call_id
from .request import Reader, Request
from .sampling import SamplingParams, derive_seed
from .tokenizer import Tokenizer

#: What a chat takes beside messages and sampling settings.
CHAT_OPTIONS = OPTIONS | frozenset(
    parameter.name
    for parameter in inspect.signature(render_conversation).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
)


class Job(NamedTuple):
    """The requests of one prompt: as many as answers are wanted."""

    request_id: str
    prompt: str | None
    requests: list[Request]


class JobMaker:
    """Makes jobs for one model. Every method raises RequestError for what cannot be served.

    tokenizer: read when first needed; ends: tokens that end a plain completion
    seed: where the seeds of requests that have none come from
    engine: whose model and cache requests look into
    adapters: those that requests may name
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Callable[[], Tokenizer],
        *,
        ends: set[int],
        max_model_len: int,
        max_logprobs: int,
        seed: int,
        engine: Callable[[], Engine],
        adapters: Adapters,
    ):
        self._config, self._tokenizer, self._ends = config, tokenizer, ends
        self._max_model_len, self._max_logprobs, self._seed = max_model_len, max_logprobs, seed
        self._engine, self._adapters = engine, adapters
        self._constraints = Constraints(tokenizer, config.vocab_size)
        self._seeds, self._ids = itertools.count(1), itertools.count()

    def text(self, prompt: TextOrIds, params: SamplingParams, **urgency: Any) -> Job:
        """A prompt to be continued; `urgency`: priority and deadline, see request.Request."""
        tokens = self.prompt_tokens(prompt, answer=1)
        wanted, first = params.structured_outputs, None
        if wanted is not None:
            ends = {*self._ends, *params.stop_token_ids}
            first = self._constraints.text(wanted, {end for end in ends if end < self._config.vocab_size})
        requests = self._requests(
            tokens, params, self._ends, lambda: TextReader(self._tokenizer(), params), first, **urgency
        )
        return Job(self._next_id(), prompt if isinstance(prompt, str) else None, requests)

    def chat(
        self,
        conversation: Conversation,
        params: SamplingParams,
        options: dict[str, Any],
        request_id: str | None = None,
        **urgency: Any,
    ) -> Job:
        """A conversation to be answered."""
        request_id, ends = request_id or self._next_id(), self._ends | stop_token_ids(self._tokenizer())
        tokens = self.prompt_tokens(self._render(conversation, options), answer=1)
        role = "assistant" if options.get("add_generation_prompt", True) else None

        call_ids = (call_id(request_id, tokens, index) for index in itertools.count())

        def reader() -> ChatReader:
            return ChatReader(self._tokenizer(), params, next(call_ids), role)

        first = self._constraints.chat(options, params.structured_outputs)
        return Job(request_id, None, self._requests(tokens, params, ends, reader, first, **urgency))

    def prompt_tokens(self, prompt: TextOrIds, answer: int) -> list[int]:
        """The prompt's tokens, when they and at least `answer` more fit max_model_len."""
        tokens = token_ids(prompt, self._tokenizer, self._config.vocab_size)
        if len(tokens) + answer > self._max_model_len:
            space = " and leaves no room for an answer" if answer else ""
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, max_model_len is {self._max_model_len}{space}; "
                "shorten it or raise max_model_len"
            )
        return tokens

    def _render(self, conversation: Conversation, options: dict[str, Any]) -> list[int]:
        unknown = options.keys() - CHAT_OPTIONS
        if unknown:
            raise RequestError(
                f"{min(unknown)} is no option of a chat, expected one of {', '.join(sorted(CHAT_OPTIONS))}"
            )
        check_messages(conversation)
        rendered = {name: value for name, value in options.items() if name not in OPTIONS}
        choice = options.get("tool_choice")
        if isinstance(choice, str) and choice == "none":
            rendered.pop("tools", None)
        return render_conversation(list(conversation), self._tokenizer(), **rendered)

    def _requests(
        self,
        tokens: list[int],
        params: SamplingParams,
        ends: set[int],
        reader: Callable[[], Reader],
        first: State | None,
        **urgency: Any,
    ) -> list[Request]:
        """The `params.n` requests for one prompt."""
        vocab_size = self._config.vocab_size
        params.check_vocabulary(vocab_size, self._max_logprobs)
        intervention = Intervention(params.steering, params.experts, self._adapters.find(params.adapter))
        intervention.check(self._config)
        ends = {token for token in ends if token < vocab_size and not params.ignore_eos}
        eos = ends.intersection({*self._config.eos_token_ids, self._tokenizer().specials.get("<|return|>")})
        room = self._max_model_len - len(tokens)
        seed = params.seed if params.seed is not None else derive_seed(self._seed, next(self._seeds))
        return [
            Request(
                tokens,
                params,
                derive_seed(seed, index),
                min(params.max_tokens or room, room),
                frozenset(ends.union(params.stop_token_ids)),
                reader(),
                frozenset(eos),
                constraint=Constraint(first) if first is not None else None,
                intervention=intervention or None,
                recorder=self._recorder(params, len(tokens), room),
                **urgency,
            )
            for index in range(params.n)
        ]

    def _recorder(self, params: SamplingParams, prompt: int, room: int) -> Recorder | None:
        if params.capture is None:
            return None
        longest = prompt + min(params.max_tokens or room, room)
        engine = self._engine()
        return Recorder(params.capture, self._config, engine.model, engine.cache, longest)

    def _next_id(self) -> str:
        return str(next(self._ids))
