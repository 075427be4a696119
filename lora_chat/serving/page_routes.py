"""The page and its files, from a fixed table."""

from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

PAGE_FILES = {"/": ("index.html", "text/html; charset=utf-8")}
"""Path of each file of the page: its name in the package, and its content type."""


async def send_page_file(request: "Request") -> Response:
    """Return a file of the page."""
    name, kind = PAGE_FILES[request.url.path]
    return Response(files("lora_chat.serving").joinpath("static", name).read_bytes(), media_type=kind)


ROUTES = tuple(Route(path, send_page_file, methods=["GET"]) for path in PAGE_FILES)
