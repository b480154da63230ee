"""/v1/internal: the model's numbers over HTTP. There with --internal-api-key, and behind that key alone."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import RequestError
from ..open_numbers import EDIT_TIMEOUT, OpenNumbers
from ..parameters import Change, Edit, Parameter
from ..strict_json import show
from . import internal_names
from .beside import done
from .errors import ApiError
from .fields import Fields
from .service import Service

PATH = "/v1/internal"
#: Values in one JSON answer; more come as a .npy file.
MOST_VALUES = 1 << 20


def routes(service: Service) -> list[Route]:
    """None without a key for them."""
    if service.settings.internal_api_key is None:
        return []
    numbers = service.llm.numbers

    async def parameters(request: Request) -> Response:
        """Names, dtypes, shapes; ?match=PATTERN chooses."""
        pattern = request.query_params.get("match")
        found = await done(lambda: numbers.parameters.match(pattern or "*"))
        return JSONResponse({"object": "list", "data": [_card(parameter) for parameter in found]})

    async def parameter(request: Request) -> Response:
        """One parameter's statistics and histogram; ?bins=N."""
        bins = _whole(request, "bins", 64, 1, 4096)

        def work() -> dict[str, Any]:
            found = _parameter(numbers, request)
            counts, edges = found.histogram(bins)
            histogram = {"counts": counts.tolist(), "edges": edges.tolist()}
            return {**_card(found), "statistics": asdict(found.statistics()), "histogram": histogram}

        return JSONResponse(await done(work))

    async def values(request: Request) -> Response:
        """Decoded numbers; ?rows=FIRST:END or one row, ?expert=N, ?format=npy for a NumPy file."""
        query = request.query_params
        rows, expert = _rows(query.get("rows")), _whole(request, "expert", None, 0, 1 << 20)
        as_file = query.get("format", "json") == "npy"

        def work() -> Response:
            found = _parameter(numbers, request)
            size = prod(found.part_shape(rows, expert))
            if size > MOST_VALUES and not as_file:
                raise RequestError(
                    f"{size} values are asked for, {MOST_VALUES} fit an answer; ask for fewer rows, or for "
                    "npy"
                )
            array = found.decode(rows, expert)
            if as_file:
                file = io.BytesIO()
                np.save(file, array)
                return Response(file.getvalue(), media_type="application/octet-stream")
            return JSONResponse({"name": found.name, "shape": list(array.shape), "values": array.tolist()})

        return await done(work)

    async def edits(request: Request) -> Response:
        """The history."""
        return JSONResponse({"object": "list", "data": [_change(change) for change in numbers.edits]})

    async def edit(request: Request) -> Response:
        """Apply changes together: {"name", "running", "timeout", "changes": [see _apply]}."""
        fields = Fields(await service.body(request))
        name, running, timeout = _urgency(fields)
        changes = fields.list("changes")
        fields.end()
        if not changes:
            raise fields.error("changes", "must be a list of changes, found none")

        def work() -> dict[str, Any]:
            with numbers.edit(name, running=running, timeout=timeout) as open_edit:
                for place, each in enumerate(changes):
                    _apply(open_edit, each, f"changes[{place}]")
            report = open_edit.report
            return {
                "name": name,
                "values": report.values,
                "saturated": report.saturated,
                "max_error": report.max_error,
                "relative_error": report.relative_error,
            }

        return JSONResponse(await done(work))

    def step(back: bool) -> Callable[[Request], Any]:
        async def work(request: Request) -> Response:
            fields = Fields(await service.body(request))
            _, running, timeout = _urgency(fields)
            fields.end()
            action = numbers.undo if back else numbers.redo
            return JSONResponse(_change(await done(lambda: action(running=running, timeout=timeout))))

        return work

    async def diff(_: Request) -> Response:
        """What differs from the numbers as they were loaded."""
        found = await done(numbers.diff)
        return JSONResponse({"object": "list", "data": [asdict(each) for each in found]})

    async def patch(_: Request) -> Response:
        """The same as a patch file."""

        def work() -> bytes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "patch.safetensors"
                numbers.save_patch(path)
                return path.read_bytes()

        return Response(await done(work), media_type="application/octet-stream")

    async def save(request: Request) -> Response:
        """Write a checkpoint on the server's machine: {"folder", "layout"}."""
        fields = Fields(await service.body(request))
        folder, layout = fields.text("folder"), fields.text("layout", "huggingface")
        fields.end()
        if not folder or not Path(folder).is_absolute():
            raise fields.error("folder", f"must be an absolute path, found {show(folder)}")
        return JSONResponse({"folder": str(await done(lambda: numbers.save(folder, layout=layout)))})

    return [
        *internal_names.routes(service, PATH),
        Route(f"{PATH}/parameters", parameters),
        Route(f"{PATH}/parameters/{{name}}", parameter),
        Route(f"{PATH}/parameters/{{name}}/values", values),
        Route(f"{PATH}/edits", edits, methods=["GET"]),
        Route(f"{PATH}/edits", edit, methods=["POST"]),
        Route(f"{PATH}/edits/undo", step(True), methods=["POST"]),
        Route(f"{PATH}/edits/redo", step(False), methods=["POST"]),
        Route(f"{PATH}/diff", diff),
        Route(f"{PATH}/patch", patch),
        Route(f"{PATH}/save", save, methods=["POST"]),
    ]


def _parameter(numbers: OpenNumbers, request: Request) -> Parameter:
    return numbers.parameters[request.path_params["name"]]


def _card(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "dtype": parameter.dtype,
        "shape": list(parameter.shape),
        "bytes": parameter.nbytes,
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "name": change.name,
        "applied": change.applied,
        "at": int(change.at),
        "tensors": change.tensors,
        "bytes": change.nbytes,
    }


def _urgency(fields: Fields) -> tuple[str, str, float]:
    name, timeout = fields.text("name", "edit"), fields.number("timeout", EDIT_TIMEOUT)
    return (
        name or "edit",
        fields.choice("running", ("finish", "continue"), "finish") or "finish",
        timeout or 0,
    )


def _apply(edit: Edit, change: Any, where: str) -> None:
    """{"set": NAME, "value"}, {"scale": NAME, "factor"} or {"write": NAME, "values", "rows", "expert"}."""
    if not isinstance(change, dict):
        raise ApiError(400, f"{where} must be an object, found {show(change)}", param=where)
    fields = Fields(change, f"{where}.")
    kinds = [kind for kind in ("set", "scale", "write") if kind in change]
    if len(kinds) != 1:
        raise ApiError(400, f"{where} must have one of set, scale and write, found {len(kinds)}", param=where)
    name = fields.text(kinds[0]) or ""
    if kinds[0] == "write":
        values, expert, rows = fields.list("values"), fields.integer("expert"), fields.any("rows")
        if isinstance(rows, list) and len(rows) == 2 and all(type(row) is int for row in rows):
            rows = slice(*rows)
        elif rows is not None and type(rows) is not int:
            raise fields.error("rows", f"must be a row or [first, end], found {show(rows)}")
        fields.end()
        edit.write(name, values, rows=rows, expert=expert)
        return
    number = fields.number("value" if kinds[0] == "set" else "factor")
    fields.end()
    if number is None:
        raise fields.error("value" if kinds[0] == "set" else "factor", "must be a number, found none")
    (edit.set if kinds[0] == "set" else edit.scale)(name, number)


def _rows(text: str | None) -> int | slice | None:
    if text is None:
        return None
    first, colon, end = text.partition(":")
    if (
        not all(part == "" or (part.isascii() and part.isdigit() and len(part) < 12) for part in (first, end))
        or not text
    ):
        raise ApiError(400, f"rows must be a number or FIRST:END, found {show(text)}", param="rows")
    if not colon:
        return int(first)
    return slice(int(first) if first else None, int(end) if end else None)


def _whole(request: Request, name: str, default: int | None, low: int, high: int) -> Any:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high):
        raise ApiError(
            400, f"{name} must be a whole number from {low} to {high}, found {show(text)}", param=name
        )
    return int(text)
