"""The options of `lora-chat serve` for adapters at run time, and its client of the admin socket."""

import argparse
from pathlib import Path

from pydantic import JsonValue

from lora_chat.commands.options import positive_int
from lora_chat.errors import LoraChatError, UsageError
from lora_chat.system.console import print_json, print_result
from lora_chat.system.sanitize import sanitize_lines
from lora_chat.system.user_path import expand_user_path

_MARKS = {True: "ok", False: "failed", None: "not checked"}


def add_run_time_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for adapters that are loaded and unloaded while the server runs."""
    group = parser.add_argument_group("adapters at run time")
    group.add_argument(
        "--adapters",
        type=Path,
        metavar="DIR",
        help="watch a folder: new parcels in it are proven and answer, removed ones are unloaded",
    )
    group.add_argument(
        "--max-adapters", type=positive_int, default=64, metavar="N", help="largest number of adapters in memory (64)"
    )
    group.add_argument(
        "--admin",
        type=Path,
        metavar="SOCKET",
        help="local socket of the server by which its owner loads and unloads models",
    )
    command = group.add_mutually_exclusive_group()
    command.add_argument("--load", metavar="[NAME=]THING", help="with --admin: load it into the running server")
    command.add_argument("--unload", metavar="NAME", help="with --admin: unload a model of the running server")
    command.add_argument("--list", action="store_true", help="with --admin: list the models of the running server")


def run_admin_client(options: argparse.Namespace) -> bool:
    """Send the command of the options to a running server. Return False if the options have none.

    Raises UsageError for options that do not fit, and the error that the server reports.
    """
    if not (options.load or options.unload or options.list):
        return False
    from lora_chat.serving.admin_socket import ask_admin

    if options.admin is None:
        raise UsageError("--load, --unload and --list need --admin SOCKET, the socket of a running server.")
    if options.things:
        raise UsageError("--load, --unload and --list go to a running server. Fix: name nothing else to serve.")
    request: dict[str, JsonValue] = {"command": "list"}
    if options.load:
        request = {"command": "load", "thing": _make_absolute(options.load)}
        if options.accept_template:
            request["accept_template"] = True
    elif options.unload:
        request = {"command": "unload", "name": options.unload}
    answer = ask_admin(expand_user_path(str(options.admin)), request)
    if not answer.get("ok"):
        error = LoraChatError(sanitize_lines(str(answer.get("error"))))
        code = answer.get("exit_code")
        error.exit_code = code if isinstance(code, int) and 0 < code < 128 else 1
        raise error
    print_json(answer) if options.json else print_result(sanitize_lines(_format_answer(answer)))
    return True


def _make_absolute(text: str) -> str:
    """Return NAME=THING with an absolute path, because the server may run in another folder."""
    name, separator, source = text.partition("=")
    if not separator or "/" in name or expand_user_path(text).exists():
        name, separator, source = "", "", text
    path = expand_user_path(source)
    return f"{name}{separator}{path.absolute() if path.exists() else source}"


def _format_answer(answer: dict[str, JsonValue]) -> str:
    """Format the answer of the server for the terminal."""
    if "unloaded" in answer:
        return f"{answer['unloaded']} is unloaded."
    models, refused = answer.get("models", [answer.get("model")]), answer.get("refused")
    lines = []
    for model in models if isinstance(models, list) else []:
        if isinstance(model, dict):
            lines.append(f"{model.get('name')}: {model.get('source')}")
            checks = model.get("checks")
            for check in checks if isinstance(checks, list) else []:
                if isinstance(check, dict):
                    passed = check.get("passed")
                    mark = _MARKS[passed] if isinstance(passed, bool) or passed is None else ""
                    lines.append(f"  {mark:<11} {check.get('name')!s:<10} {check.get('detail')}")
    lines += [f"{name} is refused: {reason}" for name, reason in refused.items()] if isinstance(refused, dict) else []
    return "\n".join(lines)
