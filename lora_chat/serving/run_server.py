"""The process of a server: its socket, its signals and its end."""

import logging
from typing import TYPE_CHECKING

import uvicorn

from lora_chat.serving.app import create_app
from lora_chat.serving.server_options import ServerOptions

if TYPE_CHECKING:
    from lora_chat.pipeline.served_models import ServedModels

logger = logging.getLogger(__name__)


def run_server(models: "ServedModels", options: ServerOptions) -> None:
    """Answer requests until a signal ends the process."""
    config = uvicorn.Config(
        create_app(models, options),
        host=options.host,
        port=options.port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=int(options.grace_seconds),
    )
    logger.info(f"http://{options.host}:{options.port}/ answers. Ctrl-C ends it.")
    uvicorn.Server(config).run()
    models.close(options.grace_seconds)
