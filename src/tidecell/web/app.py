"""The console: one page of static files that reads the API with the token its user brings.

The files hold no secrets and ask for nothing by themselves, so they are served to anybody who reaches
the port. Everything shown is fetched by the page from ``/v1``, like any other client of the API.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

# Text files only; what is not named here is not served.
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}

# The page loads nothing from elsewhere, runs no inline script, and nobody may frame it.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes() -> list[BaseRoute]:
    """Return the console's routes: ``/`` and ``/static/NAME``."""
    pages = {
        entry.name: _page(entry.read_bytes(), _TYPES[entry.name.rpartition(".")[2]])
        for entry in files("tidecell.web").joinpath("static").iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }

    async def index(request: Request) -> Response:
        return pages["index.html"]

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        return pages.get(name) or Response(f"no file named {name!r}\n", 404, media_type="text/plain")

    return [Route("/", index, methods=["GET"]), Route("/static/{name}", static, methods=["GET"])]


def _page(body: bytes, media_type: str) -> Response:
    return Response(body, media_type=media_type, headers=_HEADERS)
