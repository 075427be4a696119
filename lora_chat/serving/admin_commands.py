"""The commands of the admin socket: list, status, load and unload."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pydantic import JsonValue

from lora_chat.errors import LoraChatError, UsageError
from lora_chat.pipeline.admitted_model import AdmittedModel
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from lora_chat.pipeline.served_models import ServedModels

_MAX_TEXT = 4096
"""Characters of a path or a name."""

Answer = dict[str, JsonValue]


@dataclass(frozen=True)
class AdminCommand:
    """A command with its fields; a field in `texts` is required."""

    run: "Callable[[ServedModels, TrustOptions, Mapping[str, JsonValue]], Answer]"
    texts: tuple[str, ...] = ()
    optional_texts: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()


def answer_command(models: "ServedModels", trust: TrustOptions, request: JsonValue) -> Answer:
    """Run a command, and return its answer or the reason why it failed."""
    try:
        if not isinstance(request, dict):
            raise UsageError("A request is one JSON object on one line.")
        name = request.get("command")
        command = COMMANDS.get(name) if isinstance(name, str) else None
        if command is None:
            raise UsageError(f"There is no command {sanitize_line(str(name), 100)}: {', '.join(COMMANDS)}.")
        _check_fields(command, request)
        return {"ok": True, **command.run(models, trust, request)}
    except LoraChatError as error:
        return {"ok": False, "error": str(error), "exit_code": error.exit_code}


def _check_fields(command: AdminCommand, request: Mapping[str, JsonValue]) -> None:
    """Raise UsageError for missing, unknown or odd fields."""
    known = {"command", *command.texts, *command.optional_texts, *command.switches}
    if unknown := sorted(request.keys() - known):
        raise UsageError(f"Unknown field {sanitize_line(unknown[0], 100)}. Known are {', '.join(sorted(known))}.")
    for field in (*command.texts, *command.optional_texts):
        value = request.get(field)
        if value is None and field in command.optional_texts:
            continue
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or "\0" in value:
            raise UsageError(f"The field {field} must be a text of 1 to {_MAX_TEXT} characters.")
    for field in command.switches:
        if not isinstance(request.get(field, False), bool):
            raise UsageError(f"The field {field} must be true or false.")


def _list(models: "ServedModels", trust: TrustOptions, request: Mapping[str, JsonValue]) -> Answer:
    return {"models": [_describe(model) for model in models.list()], "refused": dict(models.refused)}


def _status(models: "ServedModels", trust: TrustOptions, request: Mapping[str, JsonValue]) -> Answer:
    refused: list[JsonValue] = [*sorted(models.refused)]
    return {
        "alive": models.generator.is_alive,
        "models": [model.name for model in models.list()],
        "refused": refused,
        "generator": asdict(models.generator.statistics()),
    }


def _load(models: "ServedModels", trust: TrustOptions, request: Mapping[str, JsonValue]) -> Answer:
    source, name = str(request["thing"]), request.get("name")
    if request.get("accept_template"):
        trust = replace(trust, accept_template=True)
    return {"model": _describe(models.admit(f"{name}={source}" if name else source, trust))}


def _unload(models: "ServedModels", trust: TrustOptions, request: Mapping[str, JsonValue]) -> Answer:
    models.dismiss(str(request["name"]))
    return {"unloaded": request["name"]}


COMMANDS = {
    "list": AdminCommand(_list),
    "status": AdminCommand(_status),
    "load": AdminCommand(_load, texts=("thing",), optional_texts=("name",), switches=("accept_template",)),
    "unload": AdminCommand(_unload, texts=("name",)),
}
"""All commands by their names."""


def _describe(model: AdmittedModel) -> JsonValue:
    """Return a model with its checks as JSON."""
    return {"name": model.name, "source": model.source, "checks": [asdict(check) for check in model.checks]}
