"""The routes about the server: whether it answers, and its metrics."""

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request


async def answer_health(request: "Request") -> JSONResponse:
    """Return whether requests are answered, and nothing else, because this route needs no key."""
    state = request.app.state
    if state.guard.is_stopping:
        return JSONResponse({"status": "stopping"}, 503, {"retry-after": "1"})
    if not state.models.generator.is_alive:
        return JSONResponse({"status": "failed"}, 503, {"retry-after": "1"})
    return JSONResponse({"status": "ok"})


async def answer_metrics(request: "Request") -> Response:
    """Return the metrics for Prometheus: counts and latencies, never content."""
    content, content_type = request.app.state.telemetry.export(request.headers.get("accept", ""))
    return Response(content, headers={"content-type": content_type})


ROUTES = (
    Route("/health", answer_health, methods=["GET"]),
    Route("/metrics", answer_metrics, methods=["GET"]),
)
