"""The chat page at `/`: files of this package, nothing from anywhere else."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .service import Service

TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "text.js": "text/javascript; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
#: Where a browser asks for the key itself.
PATHS = frozenset({"/", *(f"/page/{name}" for name in TYPES if name != "index.html")})


def routes(_: Service) -> list[Route]:
    folder = resources.files(__package__) / "static"
    files = {name: (folder / name).read_bytes() for name in TYPES}

    async def file(request: Request) -> Response:
        name = request.url.path.removeprefix("/page/").strip("/") or "index.html"
        return Response(files[name], headers=HEADERS, media_type=TYPES[name])

    return [Route(path, file) for path in sorted(PATHS)]
