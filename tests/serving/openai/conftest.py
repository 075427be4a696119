"""Servers with scripted replies and with a small random model."""

from dataclasses import replace

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def models():
    """Return models whose replies the tests choose."""
    from scripted_model import ScriptedModels

    return ScriptedModels()


@pytest.fixture
def generator(models):
    """Return the generator of the scripted models with its first settings."""
    models.generator.__init__(models.find("plain").tokenizer)
    return models.generator


@pytest.fixture
def server_options():
    """Return options with the default limits."""
    from lora_chat.serving.server_options import ServerOptions

    return ServerOptions()


@pytest.fixture(scope="module")
def scripted_server(models):
    """Return a running server of the scripted models. It accepts its own port only as a host, as every server does."""
    from scripted_model import RunningServer

    from lora_chat.serving.app import create_app
    from lora_chat.serving.server_options import ServerOptions

    running = RunningServer(create_app(models, ServerOptions()))
    yield running
    running.close()


@pytest.fixture
def filtered(server_options):
    """Return options with a filter for replies."""
    from lora_chat.serving.reply_filter.filter_settings import make_filter_settings

    return replace(server_options, reply_filter=make_filter_settings("redact"))
