"""Serve routes without a model in this process: `python scripted_server.py NUMBER_OF_MESSAGES GRACE_SECONDS`."""

import logging
import os
import sys
from types import SimpleNamespace

import guarded_app

from lora_chat.serving import run_server
from lora_chat.serving.server_options import ServerOptions
from lora_chat.system.console import filter_output, print_json, print_logged_messages
from lora_chat.system.signals import raise_on_signals


def main():
    assert "torch" not in sys.modules  # a used port or a wrong key file must be reported before PyTorch loads
    filter_output()
    print_logged_messages()
    raise_on_signals()
    models = guarded_app.ScriptedModels()
    models.list = lambda: (SimpleNamespace(name="base"),)

    def create_app(models, options, keys, log, telemetry, judging):
        guard = guarded_app.build_app(options, keys, models)
        guard.state.pause = 0.02
        return guard

    run_server.create_app = create_app
    prepared = run_server.prepare_server(ServerOptions(port=0, grace_seconds=float(sys.argv[2])))

    def announce():
        for number in range(int(sys.argv[1])):
            logging.getLogger("lora_chat").info(f"message {number} {'x' * 100}")
        print_json({"port": prepared.listener.port})

    if not run_server.run_server(models, prepared, announce):
        os._exit(0)


main()
