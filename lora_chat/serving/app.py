"""The ASGI application of a server, from the tables of routes."""

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

import lora_chat.serving.openai.routes as openai_routes
import lora_chat.serving.page_routes as page_routes
from lora_chat.serving.api_errors import ApiError, answer_api_error
from lora_chat.serving.server_options import ServerOptions

if TYPE_CHECKING:
    from starlette.requests import Request

    from lora_chat.pipeline.served_models import ServedModels


async def answer_health(request: "Request") -> JSONResponse:
    """Return whether requests are answered."""
    is_alive = request.app.state.models.generator.is_alive
    return JSONResponse({"status": "ok" if is_alive else "stopping"}, 200 if is_alive else 503)


def create_app(models: "ServedModels", options: ServerOptions) -> Starlette:
    """Return the application that answers for models in memory."""
    health = Route("/health", answer_health, methods=["GET"])
    routes = [*openai_routes.ROUTES, *page_routes.ROUTES, health]
    app = Starlette(routes=routes, exception_handlers={ApiError: answer_api_error})
    app.state.models, app.state.options = models, options
    return app
