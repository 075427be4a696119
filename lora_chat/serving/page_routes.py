"""Routes of the page: a fixed table of files in the package, with headers that let the page load nothing else."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE_FILES = (
    "index.html",
    "icon.svg",
    "style.css",
    "chat.css",
    "compare.css",
    "main.js",
    "api.js",
    "api_error.js",
    "chat.js",
    "chat_message.js",
    "chat_reply.js",
    "clipboard.js",
    "composer.js",
    "compare.js",
    "compare_column.js",
    "context_meter.js",
    "conversation.js",
    "conversation_list.js",
    "conversation_store.js",
    "dialogs.js",
    "dom.js",
    "event_stream.js",
    "judge.css",
    "judge.html",
    "judge.js",
    "judge_api.js",
    "judge_main.js",
    "judge_pair.js",
    "judge_result.js",
    "markdown.js",
    "markdown_blocks.js",
    "markdown_emphasis.js",
    "markdown_inline.js",
    "model_picker.js",
    "reply.js",
    "sampling.js",
    "shortcuts.js",
    "side_panels.js",
    "tabs.js",
    "text.js",
    "token_view.js",
    "training_row.js",
    "word_difference.js",
)
"""Names of the files in `static/` that are served. Nothing else is, because no path is built from a request."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Policy of the page: own scripts, styles and images, requests to this server, and nothing else."""

SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # The browser asks each time whether a file has changed, so that a new version of the server brings its own page.
    "Cache-Control": "no-cache",
}
"""Headers of every file of the page."""


@dataclass(frozen=True)
class PageFile:
    """A file of the page in memory."""

    content: bytes
    media_type: str
    etag: str
    """Quoted digest of the content, by which a browser recognises an unchanged file."""


@cache
def read_page_file(name: str) -> PageFile:
    """Read a file of the table from the package, once."""
    content = files("lora_chat.serving").joinpath("static", name).read_bytes()
    return PageFile(content, _TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def build_file_route(path: str, name: str) -> Route:
    """Return the route that answers a path with a file of the table."""

    async def answer(request: Request) -> Response:
        file = read_page_file(name)
        headers = {**SECURITY_HEADERS, "ETag": file.etag}
        if _matches(request.headers.get("if-none-match", ""), file.etag):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    return Route(path, answer, methods=["GET"], name=f"page {name}")


def _matches(condition: str, etag: str) -> bool:
    """Return whether an If-None-Match header names the file that the server has."""
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in condition[:2000].split(","))


_FILE_ROUTES = tuple(build_file_route(f"/static/{name}", name) for name in PAGE_FILES if name != "index.html")
ROUTES = (build_file_route("/", "index.html"), *_FILE_ROUTES)
"""The page at `/` and one route for each of its files."""
JUDGE_ROUTES = (build_file_route("/", "judge.html"), *_FILE_ROUTES)
"""The page of a server that only judges, and its files."""
