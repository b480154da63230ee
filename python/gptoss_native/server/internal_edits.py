"""/v1/internal: edits, undo and redo, patches, export. What waits for others does so on no shared thread."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..open_numbers import EDIT_TIMEOUT
from ..parameters import Change, Edit
from ..strict_json import show
from .beside import done, finite, told, waited
from .errors import ApiError
from .fields import Fields
from .service import Service


def routes(service: Service, path: str) -> list[Route]:
    """Below `path`."""
    numbers = service.llm.numbers

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

        def work() -> None:
            for place, each in enumerate(changes):
                _apply(open_edit, each, f"changes[{place}]")

        with told():
            async with service.llm.edit(name, running=running, timeout=timeout) as open_edit:
                await done(work)
        report = open_edit.report
        return JSONResponse(
            {
                "name": name,
                "values": report.values,
                "saturated": report.saturated,
                "max_error": report.max_error,
                "relative_error": report.relative_error,
            }
        )

    def step(back: bool) -> Callable[[Request], Any]:
        async def work(request: Request) -> Response:
            fields = Fields(await service.body(request, empty=True))
            _, running, timeout = _urgency(fields)
            fields.end()
            action = numbers.undo if back else numbers.redo
            return JSONResponse(_change(await waited(lambda: action(running=running, timeout=timeout))))

        return work

    async def diff(_: Request) -> Response:
        """What differs from the numbers as they were loaded."""
        found = await waited(numbers.diff)
        return JSONResponse({"object": "list", "data": [finite(asdict(each)) for each in found]})

    async def patch(_: Request) -> Response:
        """The same as a patch file."""

        def work() -> bytes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "patch.safetensors"
                numbers.save_patch(path)
                return path.read_bytes()

        return Response(await waited(work), media_type="application/octet-stream")

    async def apply_patch(request: Request) -> Response:
        """Apply a patch file of the server's machine: {"path", "force", "running", "timeout"}."""
        fields = Fields(await service.body(request))
        path, force = fields.text("path"), fields.flag("force")
        _, running, timeout = _urgency(fields)
        fields.end()
        _check_absolute(fields, "path", path)
        options = {"force": force, "running": running, "timeout": timeout}
        return JSONResponse(_change(await waited(lambda: numbers.apply_patch(path, **options))))

    async def save(request: Request) -> Response:
        """Write a checkpoint on the server's machine: {"folder", "layout"}."""
        fields = Fields(await service.body(request))
        folder, layout = fields.text("folder"), fields.text("layout", "huggingface")
        fields.end()
        _check_absolute(fields, "folder", folder)
        return JSONResponse({"folder": str(await waited(lambda: numbers.save(folder, layout=layout)))})

    return [
        Route(f"{path}/edits", edits, methods=["GET"]),
        Route(f"{path}/edits", edit, methods=["POST"]),
        Route(f"{path}/edits/undo", step(True), methods=["POST"]),
        Route(f"{path}/edits/redo", step(False), methods=["POST"]),
        Route(f"{path}/diff", diff),
        Route(f"{path}/patch", patch, methods=["GET"]),
        Route(f"{path}/patch", apply_patch, methods=["POST"]),
        Route(f"{path}/save", save, methods=["POST"]),
    ]


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
    """{"set": NAME, "value"}, {"scale": NAME, "factor"}, {"write": NAME, "values", "rows", "expert"} or
    {"merge_lora": FOLDER, "strength"}."""
    if not isinstance(change, dict):
        raise ApiError(400, f"{where} must be an object, found {show(change)}", param=where)
    fields = Fields(change, f"{where}.")
    kinds = [kind for kind in ("set", "scale", "write", "merge_lora") if kind in change]
    if len(kinds) != 1:
        raise ApiError(
            400, f"{where} must have one of set, scale, write and merge_lora, found {len(kinds)}", param=where
        )
    name = fields.text(kinds[0]) or ""
    if kinds[0] == "merge_lora":
        strength = fields.number("strength", 1.0)
        fields.end()
        _check_absolute(fields, "merge_lora", name)
        edit.merge_lora(name, strength)
        return
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


def _check_absolute(fields: Fields, name: str, path: str | None) -> None:
    if not path or not Path(path).is_absolute():
        raise fields.error(name, f"must be an absolute path, found {show(path)}")
