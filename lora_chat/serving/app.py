"""The ASGI application of a server, from the tables of routes and the guards around them."""

from typing import TYPE_CHECKING

from starlette.applications import Starlette

import lora_chat.serving.judging.routes as judge_routes
import lora_chat.serving.openai.routes as openai_routes
import lora_chat.serving.page_routes as page_routes
import lora_chat.serving.status_routes as status_routes
from lora_chat.errors import UsageError
from lora_chat.serving.api_errors import ERROR_HANDLERS
from lora_chat.serving.guards.key_file import KeyFile
from lora_chat.serving.guards.request_guard import RequestGuard
from lora_chat.serving.judging.judge_desk import JudgeDesk
from lora_chat.serving.listen import is_loopback, resolve_host
from lora_chat.serving.request_log import RequestLog
from lora_chat.serving.server_options import ServerOptions
from lora_chat.serving.telemetry import Telemetry

if TYPE_CHECKING:
    from lora_chat.pipeline.served_models import ServedModels

ROUTES = (*openai_routes.ROUTES, *page_routes.ROUTES, *judge_routes.ROUTES, *status_routes.ROUTES)
JUDGE_ROUTES = (*page_routes.JUDGE_ROUTES, *judge_routes.ROUTES, *status_routes.ROUTES)
"""Routes of a server that only judges."""


def create_app(
    models: "ServedModels",
    options: ServerOptions,
    keys: KeyFile | None = None,
    log: RequestLog | None = None,
    telemetry: Telemetry | None = None,
    judging: JudgeDesk | None = None,
) -> RequestGuard:
    """Return the application that answers for models in memory, with its guards. `judging` takes the votes of people.

    Raises UsageError if other machines could reach it without a key.
    """
    if keys is None and options.key_file is not None:
        keys = KeyFile(options.key_file)
    if keys is None and not is_loopback(resolve_host(options.host, options.port)):
        raise missing_key_file(options.host)
    telemetry = telemetry or Telemetry(models.generator, options)
    desk = judging or JudgeDesk(None)
    app = Starlette(routes=JUDGE_ROUTES if desk.is_only_page else ROUTES, exception_handlers=ERROR_HANDLERS)
    app.router.redirect_slashes = False  # a redirect would repeat the Host header
    guard = RequestGuard(app, options, keys, telemetry, log or RequestLog(options.log_content))
    app.state.models, app.state.options, app.state.telemetry, app.state.guard = models, options, telemetry, guard
    app.state.judging = desk
    return guard


def missing_key_file(host: str) -> UsageError:
    """Return the error for an address that other machines reach without a key."""
    return UsageError(
        f"Other machines can reach {host}, so every client needs a key.\n"
        "Fix: lora-chat serve --new-key keys.txt, and then add --key-file keys.txt; or --host 127.0.0.1."
    )
