"""What LLM offers on its model's numbers: parameters, edits, their history, differences, patches, export."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .adapters import Adapters
from .arguments import as_path, new_file
from .capture import Capture, ExpertUsage
from .checkpoint import Checkpoint
from .config import ModelConfig
from .engine import Engine
from .errors import RequestError
from .export import export
from .interventions import SteeringVector
from .parameters import Change, Edit, Parameters, TensorDiff, diff_stores
from .parameters.history import History
from .parameters.patch import read_patch, write_patch
from .parameters.store import ModelStore, Region
from .parameters.tree import Layer
from .prompts import is_conversation
from .sampling import SamplingParams
from .strict_json import show
from .turns import Turn, Turns

#: Seconds that an edit waits for running requests to end.
EDIT_TIMEOUT = 600.0


class OpenNumbers:
    """Mixed into LLM, which has `config` and `engine`. One edit is open at a time, on whatever thread."""

    config: ModelConfig
    engine: Engine
    adapters: Adapters
    chat: Any
    generate: Any

    def _open_numbers(self, checkpoint: Checkpoint) -> None:
        self._store, self._source = _LiveStore(self), checkpoint.path
        self._files = checkpoint.tokenizer_directory
        self._history = History()
        self._turns = Turns()

    @property
    def parameters(self) -> Parameters:
        """Every parameter by its checkpoint name, as the model uses it now; see Parameters.

        A write is an edit of its own; to make several take effect together, see `edit`.
        """
        return Parameters(self.config, self._store)

    @property
    def layers(self) -> list[Layer]:
        """The same along the model's structure: llm.layers[7].experts[3].down_proj.decode()."""
        return list(self.parameters.layers)

    def edit(self, name: str = "edit", *, running: str = "finish", timeout: float = EDIT_TIMEOUT) -> Edit:
        """Changes that take effect together when the `with` block ends, and can be undone; see Edit.

        name: for the history
        running: "finish": requests that have begun end with the old numbers, later ones wait for the new
            ones, so that each sees one set of numbers; "continue": the change comes between two steps,
            requests that run go on with the new numbers, and with the keys and values of the old ones
        timeout: seconds to wait for running requests; GptossError then, and nothing has changed

        Keys and values of before are never reused for another request. An exception in the block drops all
        changes.
        """
        return self._new_edit(name, running, timeout)[0]

    def _new_edit(
        self, name: str = "edit", running: str = "finish", timeout: float = EDIT_TIMEOUT
    ) -> tuple[Edit, Turn]:
        """See `edit`; the turn that it takes when it begins, unless it has it by then."""
        _check_name("an edit", name)
        _check_running(running, timeout)
        turn = Turn(self._turns, EDIT_TIMEOUT)

        def end(regions: list[Region] | None) -> None:
            try:
                if regions:
                    self._apply(Change(name, regions), running, timeout)
            finally:
                turn.give()

        return Edit(name, self.config, self._store, turn.take, end), turn

    @property
    def edits(self) -> list[Change]:
        """The edits of this model, oldest first; those with `applied` false have been undone."""
        return list(self._history)

    def undo(self, *, running: str = "finish", timeout: float = EDIT_TIMEOUT) -> Change:
        """Take the last edit back, bit for bit; returns it. Raises RequestError when there is none."""
        return self._step(True, running, timeout)

    def redo(self, *, running: str = "finish", timeout: float = EDIT_TIMEOUT) -> Change:
        """Apply the edit again that was undone last; returns it. Raises RequestError when there is none."""
        return self._step(False, running, timeout)

    def forget_edits(self) -> None:
        """Keep the numbers as they are and free what undo, redo and diff would need."""
        with self._alone():
            self._history.clear()

    def diff(self) -> list[TensorDiff]:
        """What differs from the numbers as they were loaded (or when `forget_edits` was called)."""
        with self._alone():
            names = self._history.touched()
            logical = [p for p in self.parameters if {p, p + "_blocks", p + "_scales"} & names.keys()]
            before = Parameters(self.config, self._history.original(self._store))
            return diff_stores(before, self.parameters, logical)

    def save_patch(self, path: str | os.PathLike[str], name: str = "patch") -> int:
        """Write what differs from the loaded numbers as a small safetensors file; returns its bytes.

        A regular file of that name is replaced. Raises RequestError when nothing differs, CheckpointError
        when it cannot be written.
        """
        _check_name("a patch", name)
        with self._alone():
            original = self._history.original(self._store)
            return write_patch(new_file(path), name, self._history.touched(), original, self._store)

    def apply_patch(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        running: str = "finish",
        timeout: float = EDIT_TIMEOUT,
    ) -> Change:
        """Apply a patch file, as an edit that can be undone; returns it.

        force: also where the numbers to be replaced are not those of the model that the patch was made from
        Raises CheckpointError for a file that is no patch for this model.
        """
        _check_running(running, timeout)
        with self._alone():
            name, regions = read_patch(as_path(path), self.config, self._store, force)
            change = Change(name, regions)
            self._apply(change, running, timeout)
            return change

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        layout: str = "huggingface",
        shard_bytes: int | None = 5 << 30,
    ) -> Path:
        """Write the model as it is now as a checkpoint that other programs load; returns the folder.

        layout: "huggingface", "openai" (the `original` layout), or "both": that in the folder's `original`
        shard_bytes: a new file begins before one grows beyond; None: one file

        The folder appears when all of it is written. Raises CheckpointError when it exists and is not empty,
        or cannot be written.
        """
        with self._alone():
            return export(
                self.config, self._store, as_path(folder), self._source, self._files, layout, shard_bytes
            )

    def expert_usage(self) -> ExpertUsage:
        """Begin to count which experts all requests' tokens go to; see ExpertUsage. One count at a time.

        While it goes on, steps are watched: on a GPU they are not replayed from CUDA graphs.
        """
        extras = self.engine.extras
        if extras.usage is not None:
            raise RequestError("expert usage is being counted already; stop that count first")

        def stop(usage: ExpertUsage) -> None:
            if extras.usage is usage:  # another count may have begun since
                extras.usage = None

        extras.usage = ExpertUsage(self.config, stop)
        return extras.usage

    def extract_steering(
        self, positive: list[Any], negative: list[Any], layers: Sequence[int] | None = None
    ) -> SteeringVector:
        """Where the residual stream goes from `negative` to `positive` prompts: a vector for each layer.

        positive, negative: prompts or conversations; of each, the stream after the last token is taken
        layers: None: all
        The difference of the means (Turner et al., 2023; Rimsky et al., 2023), as it is: strength 1 moves
        the stream by as much as the prompts differ.
        Raises RequestError for an empty list or a bad prompt.
        """
        if not positive or not negative:
            raise RequestError("both lists need a prompt; pass prompts that differ in what is wanted")
        capture = Capture(residual=True if layers is None else layers)
        params = SamplingParams(max_tokens=1, temperature=0, capture=capture)
        means = []
        for prompts in (positive, negative):
            ask = self.chat if is_conversation(prompts[0]) else self.generate
            streams = [output.outputs[0].captured.residual for output in ask(prompts, params)]
            means.append(
                {layer: np.mean([each[layer][-1] for each in streams], axis=0) for layer in streams[0]}
            )
        return SteeringVector({layer: means[0][layer] - means[1][layer] for layer in means[0]})

    def _step(self, back: bool, running: str, timeout: float) -> Change:
        _check_running(running, timeout)
        with self._alone():
            change = self._history.last if back else self._history.next
            try:
                self._change(change, running, timeout)
            finally:  # Ctrl+C may come when it has happened
                if change.applied != back:
                    self._history.step(back)
            return change

    def _apply(self, change: Change, running: str, timeout: float) -> None:
        try:
            self._change(change, running, timeout)
        finally:
            if change.applied:
                self._history.add(change)

    def _change(self, change: Change, running: str, timeout: float) -> None:
        def swap() -> None:
            with self._store.lock:
                change.swap(ModelStore(self.engine.model))

        self.engine.change(swap, running=running, timeout=timeout)

    def _alone(self) -> _Alone:
        return _Alone(Turn(self._turns, EDIT_TIMEOUT))


class _Alone:
    """No edit is open meanwhile, on any thread."""

    def __init__(self, turn: Turn):
        self._turn = turn

    def __enter__(self) -> None:
        self._turn.take()

    def __exit__(self, *error: object) -> None:
        self._turn.give()


class _LiveStore(ModelStore):
    """The loaded model's numbers; a write outside an edit is an edit of its own."""

    def __init__(self, numbers: OpenNumbers):
        self._numbers = numbers
        self.lock = threading.Lock()  # held while an edit is applied: nobody reads half of one

    @property
    def model(self) -> Any:
        """The native one, which only the engine keeps: RequestError once that has been let go of."""
        return self._numbers.engine.model

    def read(self, name: str, first: int, count: int) -> np.ndarray:
        """See Store."""
        return self.read_all([name], first, count)[0]

    def read_all(self, names: Sequence[str], first: int, count: int) -> list[np.ndarray]:
        """See Store."""
        with self.lock:
            return [ModelStore.read(self, name, first, count) for name in names]

    def transaction(self) -> Any:
        """See Store."""
        return _OwnEdit(self._numbers.edit("write"))


class _OwnEdit:
    """An edit whose store is all that its user sees."""

    def __init__(self, edit: Edit):
        self._edit = edit

    def __enter__(self) -> Any:
        return self._edit.__enter__().store

    def __exit__(self, *error: Any) -> None:
        self._edit.__exit__(*error)


def _check_name(whose: str, name: Any) -> None:
    if not isinstance(name, str):
        raise RequestError(f"{whose}'s name must be a text, found {show(name)}; pass one")


def _check_running(running: Any, timeout: Any) -> None:
    if running not in ("finish", "continue"):
        raise RequestError(f"running must be 'finish' or 'continue', found {show(running)}; choose one")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < 1e9:
        raise RequestError(f"timeout must be a number of seconds, found {show(timeout)}; pass e.g. 60")
