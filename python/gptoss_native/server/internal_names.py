"""/v1/internal: steering vectors and LoRA adapters that requests may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..adapters import LoadedAdapter
from ..errors import RequestError
from ..interventions import SteeringVector, intervention_of
from ..strict_json import show
from .beside import done, waited
from .errors import ApiError
from .fields import Fields
from .service import Service

MOST_VECTORS = 1000


def routes(service: Service, path: str) -> list[Route]:
    """Below `path`."""
    numbers = service.llm.numbers

    async def vectors(_: Request) -> Response:
        """Steering vectors that requests may name."""
        return JSONResponse(
            {"object": "list", "data": [_vector(name, vector) for name, vector in service.steering.items()]}
        )

    async def vector(request: Request) -> Response:
        """Keep one: {"layers": {"12": [numbers]}}, or {"positive", "negative": prompts, "layers": a list}."""
        name, fields = request.path_params["name"], Fields(await service.body(request))
        positive, negative = fields.list("positive"), fields.list("negative")
        layers = fields.any("layers")
        fields.end()

        def work() -> SteeringVector:
            if positive is not None or negative is not None:
                return numbers.extract_steering(positive or [], negative or [], layers)
            try:
                return SteeringVector({int(layer): values for layer, values in dict(layers).items()})
            except (TypeError, ValueError) as error:
                raise RequestError(f"layers must map layers to lists of numbers: {error}") from None

        found = await done(work)
        intervention_of(found, None).check(service.llm.config)
        if len(service.steering) >= MOST_VECTORS and name not in service.steering:
            raise ApiError(400, f"{MOST_VECTORS} vectors are kept already; delete one")
        service.steering[name] = found
        return JSONResponse(_vector(name, found))

    async def forget(request: Request) -> Response:
        """Forget one; requests under way keep it."""
        if service.steering.pop(request.path_params["name"], None) is None:
            raise ApiError(404, f"there is no vector {show(request.path_params['name'])}", param="name")
        return JSONResponse({"deleted": True})

    async def adapters(_: Request) -> Response:
        """LoRA adapters that requests may name as their model."""
        return JSONResponse(
            {"object": "list", "data": [_adapter(each) for each in numbers.adapters.values()]}
        )

    async def adapter(request: Request) -> Response:
        """Load one from a folder of the server's machine: {"folder"}."""
        name, fields = request.path_params["name"], Fields(await service.body(request))
        folder = fields.text("folder")
        fields.end()
        if not folder or not Path(folder).is_absolute():
            raise fields.error("folder", f"must be an absolute path, found {show(folder)}")
        return JSONResponse(_adapter(await done(lambda: service.load_adapter(name, folder))))

    async def drop(request: Request) -> Response:
        """Drop one; requests under way keep it."""
        name = request.path_params["name"]
        if name not in numbers.adapters:
            raise ApiError(404, f"there is no adapter {show(name)}", param="name")
        await waited(lambda: numbers.adapters.drop(name))
        return JSONResponse({"deleted": True})

    return [
        Route(f"{path}/adapters", adapters),
        Route(f"{path}/adapters/{{name}}", adapter, methods=["PUT"]),
        Route(f"{path}/adapters/{{name}}", drop, methods=["DELETE"]),
        Route(f"{path}/steering", vectors),
        Route(f"{path}/steering/{{name}}", vector, methods=["PUT"]),
        Route(f"{path}/steering/{{name}}", forget, methods=["DELETE"]),
    ]


def _vector(name: str, vector: SteeringVector) -> dict[str, Any]:
    return {
        "name": name,
        "layers": sorted(vector),
        "norms": [float(np.linalg.norm(vector[n])) for n in sorted(vector)],
    }


def _adapter(adapter: LoadedAdapter) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "folder": adapter.path,
        "rank": adapter.rank,
        "bytes": adapter.nbytes,
        "parameters": list(adapter.parameters),
    }
