"""/v1/internal: the model's numbers over HTTP. There with --internal-api-key, and behind that key alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict
from math import prod
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..capture import ExpertUsage
from ..errors import RequestError
from ..open_numbers import OpenNumbers
from ..parameters import Parameter
from ..strict_json import show
from . import internal_edits, internal_names
from .beside import done, finite
from .errors import ApiError
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
        _check_query(request, "match")
        pattern = request.query_params.get("match")
        found = await done(lambda: numbers.parameters.match(pattern or "*"))
        return JSONResponse({"object": "list", "data": [_card(parameter) for parameter in found]})

    async def parameter(request: Request) -> Response:
        """One parameter's statistics and histogram; ?bins=N."""
        _check_query(request, "bins")
        bins = _whole(request, "bins", 64, 1, 4096)

        def work() -> dict[str, Any]:
            found = _parameter(numbers, request)
            counts, edges = found.histogram(bins)
            histogram = {"counts": counts.tolist(), "edges": edges.tolist()}
            statistics = finite(asdict(found.statistics()))
            return {**_card(found), "statistics": statistics, "histogram": histogram}

        return JSONResponse(await done(work))

    async def values(request: Request) -> Response:
        """Decoded numbers; ?rows=FIRST:END or one row, ?expert=N, ?format=npy for a NumPy file."""
        _check_query(request, "rows", "expert", "format")
        query = request.query_params
        rows, expert = _rows(query.get("rows")), _whole(request, "expert", None, 0, 1 << 20)
        form = query.get("format", "json")
        if form not in ("json", "npy"):
            raise ApiError(400, f"format must be json or npy, found {show(form)}", param="format")

        def work() -> Response:
            found = _parameter(numbers, request)
            size = prod(found.part_shape(rows, expert))
            if form == "npy":
                return StreamingResponse(_npy(found, rows, expert), media_type="application/octet-stream")
            if size > MOST_VALUES:
                raise RequestError(
                    f"{size} values are asked for, {MOST_VALUES} fit an answer; ask for fewer rows, or for "
                    "npy"
                )
            array = found.decode(rows, expert)
            return JSONResponse(
                {"name": found.name, "shape": list(array.shape), "values": finite(array.tolist())}
            )

        return await done(work)

    counted: list[ExpertUsage] = []  # the one count, or none

    async def count(_: Request) -> Response:
        """Begin to count which experts all requests' tokens go to."""
        found = await done(numbers.expert_usage)
        counted[:] = [found]
        return JSONResponse(_usage(found))

    async def usage(_: Request) -> Response:
        """The count so far, or when it was stopped."""
        return JSONResponse(_usage(_last(counted)))

    async def stop(_: Request) -> Response:
        """Count no more."""
        found = _last(counted)
        found.stop()
        return JSONResponse(_usage(found))

    return [
        *internal_names.routes(service, PATH),
        *internal_edits.routes(service, PATH),
        Route(f"{PATH}/parameters", parameters),
        Route(f"{PATH}/parameters/{{name}}", parameter),
        Route(f"{PATH}/parameters/{{name}}/values", values),
        Route(f"{PATH}/usage", count, methods=["POST"]),
        Route(f"{PATH}/usage", usage, methods=["GET"]),
        Route(f"{PATH}/usage", stop, methods=["DELETE"]),
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


def _last(counted: list[ExpertUsage]) -> ExpertUsage:
    if not counted:
        raise ApiError(404, "expert usage has not been counted; POST here to begin")
    return counted[0]


def _usage(found: ExpertUsage) -> dict[str, Any]:
    return {
        "tokens": found.tokens,
        "counts": found.counts.tolist(),
        "entropy": found.entropy.tolist(),
        "router_entropy": found.router_entropy.tolist(),
    }


def _check_query(request: Request, *known: str) -> None:
    """A misspelt parameter is said, not ignored."""
    for name in request.query_params:
        if name not in known:
            expected = f"expected {', '.join(known)}" if known else "none is expected"
            raise ApiError(400, f"{show(name)} is no parameter of this path, {expected}", param=name)


def _npy(parameter: Parameter, rows: int | slice | None, expert: int | None) -> Iterator[bytes]:
    """A NumPy file, a few MiB decoded at a time where a whole parameter is asked for."""
    shape, header = parameter.part_shape(rows, expert), io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    yield header.getvalue()
    if rows is None and expert is None:
        for values in parameter.values():
            yield values.tobytes()
    else:
        yield parameter.decode(rows, expert).tobytes()


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
