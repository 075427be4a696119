"""`lora-chat serve`: answer requests over HTTP."""

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.commands.options import ADAPTER_HELP, add_trust, positive_int, read_trust
from lora_chat.commands.serve_admin import add_run_time_options, run_admin_client
from lora_chat.errors import MissingPackageError, UsageError
from lora_chat.serving.server_options import LIMITS, ServerOptions
from lora_chat.system.console import print_json, print_message, quote_path
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    from lora_chat.pipeline.served_models import ServedModels
    from lora_chat.serving.reply_filter.filter_settings import FilterSettings
    from lora_chat.serving.run_server import PreparedServer
    from lora_chat.serving.run_time_loading import StartLoading

_STDERR = "-"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `serve`."""
    parser.add_argument("things", nargs="*", metavar="RUN|PARCEL|ADAPTER|BASE", help=f"{ADAPTER_HELP}, or a base")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (127.0.0.1: this machine only); any other needs --key-file",
    )
    parser.add_argument(
        "--port", type=_port, default=8000, metavar="N", help="port to listen on (8000); 0 takes a free one"
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="file with one key a line; every route but /health needs one of them",
    )
    parser.add_argument("--new-key", type=Path, metavar="FILE", help="add a random key to a file of keys, and end")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="further name by which clients address the server, such as that of a proxy; may be repeated",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of another page whose scripts may ask; may be repeated",
    )
    parser.add_argument(
        "--log-content", action="store_true", help="log prompts and replies to stderr; without it they are never logged"
    )
    parser.add_argument(
        "--content-file",
        type=Path,
        metavar="FILE",
        help="append prompts and replies to this file, one JSON object a line",
    )
    _add_filter(parser)
    parser.add_argument(
        "--quantization",
        choices=["4bit", "8bit", "none"],
        help="quantization of the base (default: as in training; for a base: none)",
    )
    add_run_time_options(parser)
    add_trust(parser)
    limits = parser.add_argument_group("limits")
    for limit in LIMITS:
        limits.add_argument(
            f"--{limit.name.replace('_', '-')}",
            type=positive_int if limit.is_count else _positive_seconds,
            default=limit.default,
            metavar="N" if limit.is_count else "SECONDS",
            help=f"{limit.help_text} ({limit.default:g})"
            if not limit.is_count
            else f"{limit.help_text} ({limit.default:,})",
        )


def _add_filter(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the filter for replies."""
    parser.add_argument(
        "--filter",
        choices=["redact", "block"],
        help="look for secrets and personal data in replies, and replace them by marks or end the reply",
    )
    parser.add_argument(
        "--filter-kind",
        action="append",
        default=[],
        metavar="KIND",
        help="with --filter: secret, possible_secret or personal_data; may be repeated (all three)",
    )
    parser.add_argument(
        "--filter-allow", type=Path, metavar="FILE", help="with --filter: values that may be sent, one a line"
    )


def run(options: argparse.Namespace) -> None:
    """Answer requests to adapters and their base over HTTP, as OpenAI's API does."""
    if options.new_key is not None:
        from lora_chat.serving.guards.key_file import write_new_key

        path = expand_user_path(options.new_key)
        write_new_key(path)
        print_message(f"Added a key to {path}. Serve with it: lora-chat serve RUN --key-file {quote_path(path)}")
        return
    if run_admin_client(options):
        return
    if not options.things:
        raise UsageError("Nothing is named that could answer. Fix: lora-chat serve runs/NAME, or lora-chat serve BASE")
    server_options = _read_options(options)
    try:
        from lora_chat.serving.run_server import prepare_server
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"The server needs a package that is not installed ({error.name}). Fix: pip install 'lora-chat[serve]'"
        ) from error
    prepared = prepare_server(server_options)
    try:
        from lora_chat.serving.run_time_loading import prepared_loading

        with prepared_loading(options.adapters, options.admin) as start_loading:
            all_printed = _serve(options, prepared, start_loading)
    finally:
        prepared.close()
    if not all_printed:
        os._exit(0)  # Python would wait for the thread that prints


def _serve(options: argparse.Namespace, prepared: "PreparedServer", start_loading: "StartLoading") -> bool:
    """Load the models and answer until a signal ends the server. Return whether all messages were printed."""
    from lora_chat.inference.continuous.request import BatchLimits
    from lora_chat.pipeline.judge_plan import JudgeSettings
    from lora_chat.pipeline.served_models import open_served_models
    from lora_chat.serving.judging.served_desk import make_served_desk
    from lora_chat.serving.run_server import run_server

    limits = BatchLimits(max_running=prepared.options.max_running, max_waiting=prepared.options.max_waiting)
    trust = read_trust(options)
    models = open_served_models(options.things, trust, options.quantization, limits, options.max_adapters)
    desk = make_served_desk(models, trust, JudgeSettings(mode=options.quantization))
    start_loading(models, trust)

    def announce() -> None:
        _announce(models, prepared, as_json=options.json)
        desk.announce(prepared.listener.url)

    return run_server(models, prepared, announce, desk)


def _read_options(options: argparse.Namespace) -> ServerOptions:
    """Return the limits and switches of the server."""
    named = vars(options)
    values = {field.name: named[field.name] for field in fields(ServerOptions) if field.name in named}
    content_file = expand_user_path(options.content_file) if options.content_file else None
    values["log_content"] = content_file or (Path(_STDERR) if options.log_content else None)
    values["key_file"] = expand_user_path(options.key_file) if options.key_file else None
    return ServerOptions(
        **values,
        allow_hosts=tuple(options.allow_host),
        allow_origins=tuple(options.allow_origin),
        reply_filter=_read_filter(options),
    )


def _read_filter(options: argparse.Namespace) -> "FilterSettings | None":
    """Return the settings of the filter for replies; None without `--filter`."""
    if options.filter is None:
        if options.filter_kind or options.filter_allow:
            raise UsageError("Nothing is filtered without --filter. Fix: add --filter redact or --filter block.")
        return None
    from lora_chat.serving.reply_filter.filter_settings import make_filter_settings, read_allowed_values

    allowed = read_allowed_values(options.filter_allow) if options.filter_allow else ()
    return make_filter_settings(options.filter, options.filter_kind, allowed)


def _announce(models: "ServedModels", prepared: "PreparedServer", *, as_json: bool) -> None:
    """Print the address and the names of the models. Their checks and all refusals were printed when they were made."""
    url, admitted, refused = prepared.listener.url, models.list(), dict(models.refused)
    names = ", ".join(model.name for model in admitted)
    print_message(f"Models: {names}" + (f"; not served: {', '.join(refused)}" if refused else ""))
    print_message(f"Open {url} or ask {url}v1. Ctrl-C ends the server.")
    if as_json:
        results = {
            model.name: [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in model.checks]
            for model in admitted
        }
        print_json({"url": url, "models": [model.name for model in admitted], "checks": results, "refused": refused})


def _port(text: str) -> int:
    """Parse a port, or 0."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return value


def _positive_seconds(text: str) -> float:
    """Parse a time of up to a day."""
    value = float(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError("must be above 0 and at most 86400")
    return value
