"""Services that receive the metrics of training through Transformers' own integrations.

They receive the metrics of each step, the settings of the trainer and the config of the base, and no text of a
dialogue. Several of them would upload more if they could: the model, the terminal's output, which quotes replies, the
command, the code and the changes of a git repository. Variables that this module sets prevent it. By default everything
stays in the run folder; only wandb without `WANDB_MODE=offline` and servers that the user names in the environment get
anything over the network. No variable comes from a recipe.
"""

import importlib
import logging
import netrc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import quote, urlsplit

from lora_chat.errors import (
    IntegrityError,
    MissingPackageError,
    UnavailableError,
    explain_disk_error,
    explain_write_errors,
    first_line,
)
from lora_chat.system.atomic_write import private_umask
from lora_chat.system.console import keep_stdout_for_results

logger = logging.getLogger(__name__)

_PROJECT = "lora-chat"
_WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Hosts of wandb's own service, in older and newer versions."""


@dataclass(frozen=True)
class Reporter:
    """A service, and how it is prevented from uploading more than metrics and settings."""

    name: str
    """Name in recipes and in Transformers."""
    modules: tuple[str, ...]
    """Modules of which one must be installed."""
    required: Callable[[Path], Mapping[str, str]] = lambda folder: {}
    """Environment variables, by the folder of the run, that replace the variables of the user."""
    defaults: Callable[[Path], Mapping[str, str]] = lambda folder: {}
    """Environment variables that are set unless the user has set them."""
    check: Callable[[], None] = lambda: None
    """Function that raises UnavailableError if the service cannot work, without using the network."""
    start: Callable[[ModuleType, str], object] | None = None
    """Function of the module and the name of the run that connects; None if training itself does so."""
    finish: Callable[[ModuleType], object] = lambda module: None
    is_in_run: bool = True
    """Whether its files are in the folder of the run, and not beside it."""

    def locate(self, folder: Path) -> Path:
        """Return the folder of its files, by the folder of the run."""
        return (folder if self.is_in_run else folder.parent) / self.name


def _default_mlflow_folder(folder: Path) -> dict[str, str]:
    """Return variables that make MLflow write into a run folder, unless the user names a server."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return {}
    base = folder / "mlflow"
    database = f"sqlite:///{quote(str(base / 'mlflow.db'))}"
    uri = database if find_spec("sqlalchemy") else base.as_uri()
    return {"MLFLOW_TRACKING_URI": uri, "_MLFLOW_SERVER_ARTIFACT_ROOT": (base / "artifacts").as_uri()}


def _check_wandb() -> None:
    """Raise UnavailableError if wandb would ask for a login."""
    if not _has_wandb_login():
        raise UnavailableError(
            "output.report_to names wandb, which has no login on this machine. Fix: wandb login, or set WANDB_API_KEY, "
            "or set WANDB_MODE=offline, which writes files beside the run."
        )


def _has_wandb_login() -> bool:
    """Return whether wandb is offline or finds a key in the environment, in ~/.netrc or in its own settings."""
    settings = _read_wandb_settings()
    mode = os.environ.get("WANDB_MODE") or settings.get("mode", "")
    if mode in ("offline", "disabled", "dryrun") or settings.get("api_key"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or "").hostname
    hosts = _WANDB_HOSTS if host in (None, *_WANDB_HOSTS) else (host,)
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for name in names:
        with suppress(OSError, netrc.NetrcParseError, ValueError, RuntimeError):
            known_hosts = netrc.netrc(Path(name).expanduser()).hosts
            if any(known in known_hosts for known in hosts):
                return True
    return False


def _read_wandb_settings() -> dict[str, str]:
    """Return the user's own settings of wandb; none if the file is missing or damaged."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    parser = ConfigParser(interpolation=None)
    with suppress(OSError, ConfigError, ValueError, RuntimeError):
        parser.read(Path(folder).expanduser() / "settings", encoding="utf-8")
        return dict(parser["default"]) if "default" in parser else {}
    return {}


REPORTERS = (
    Reporter(
        "tensorboard",
        ("tensorboard", "tensorboardX"),
        required=lambda folder: {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard")},
    ),
    Reporter(
        "wandb",
        ("wandb",),
        required=lambda folder: {
            # wandb writes links, and a run with links is refused. It also reads settings of its folder, so that must
            # not be a working directory of a stranger.
            "WANDB_DIR": str(folder.parent),
            "WANDB_LOG_MODEL": "false",
            "WANDB_WATCH": "false",
            "WANDB_CONSOLE": "off",  # the terminal shows replies
            "WANDB_SAVE_CODE": "false",
            "WANDB_DISABLE_CODE": "true",
            "WANDB_DISABLE_GIT": "true",
            "WANDB__DISABLE_META": "true",  # the command may contain a system message
        },
        defaults=lambda folder: {"WANDB_PROJECT": _PROJECT, "WANDB_SILENT": "true"},
        check=_check_wandb,
        start=lambda wandb, name: wandb.init(project=os.environ["WANDB_PROJECT"], name=name),
        finish=lambda wandb: wandb.finish(),
        is_in_run=False,
    ),
    Reporter(
        "mlflow",
        ("mlflow",),
        required=lambda folder: {"HF_MLFLOW_LOG_ARTIFACTS": "FALSE", "DISABLE_MLFLOW_INTEGRATION": "FALSE"},
        defaults=_default_mlflow_folder,
        start=lambda mlflow, name: mlflow.start_run(run_name=name),
        finish=lambda mlflow: mlflow.end_run(),
    ),
    Reporter("trackio", ("trackio",), defaults=lambda folder: {"TRACKIO_DIR": str(folder / "trackio")}),
)
"""The services that `output.report_to` can name."""


def find_reporters(names: Sequence[str]) -> list[Reporter]:
    """Return the services with these names."""
    return [reporter for reporter in REPORTERS if reporter.name in names]


def check_reporters(names: Sequence[str]) -> None:
    """Raise MissingPackageError or UnavailableError if a service cannot work. The network is not used."""
    for reporter in find_reporters(names):
        if not any(find_spec(module) for module in reporter.modules):
            raise MissingPackageError(
                f"output.report_to names {reporter.name}, which is not installed. Fix: pip install {reporter.name}"
            )
        reporter.check()


def start_reporters(names: Sequence[str], folder: Path) -> None:
    """Set the variables of the services, and connect those that need it. Raise UnavailableError if one cannot start.

    Transformers continues the run of a service that is already active.
    """
    for reporter in find_reporters(names):
        _check_folder(reporter, folder)
        for name, value in reporter.defaults(folder).items():
            os.environ.setdefault(name, value)
        os.environ.update(reporter.required(folder))
        if reporter.start is None:
            continue
        logger.info(f"Connecting to {reporter.name}")
        with explain_write_errors(folder, f"the files of {reporter.name}"):
            reporter.locate(folder).mkdir(mode=0o700, exist_ok=True)
        try:
            with private_umask(), keep_stdout_for_results():
                reporter.start(importlib.import_module(reporter.modules[0]), folder.name)
        except Exception as error:
            if isinstance(error, OSError) and (explained := explain_disk_error(error)):
                raise explained from error
            raise UnavailableError(
                f"{reporter.name} could not start: {first_line(error)}. Fix: check its server and login, or leave "
                f"{reporter.name} out of output.report_to."
            ) from error


@contextmanager
def finished_reporters(names: Sequence[str]) -> Iterator[None]:
    """Keep stdout for results while services report, and end their runs after the block."""
    reporters = find_reporters(names)
    if not reporters:
        yield
        return
    with keep_stdout_for_results():
        try:
            yield
        finally:
            for reporter in reporters:
                module = sys.modules.get(reporter.modules[0])
                if module is not None:
                    with suppress(Exception):  # the training is complete, and its metrics are in the run folder
                        reporter.finish(module)


def _check_folder(reporter: Reporter, folder: Path) -> None:
    """Raise IntegrityError if there are settings that a service would read, because anybody may have written them."""
    settings = reporter.locate(folder) / "settings"
    if os.path.lexists(settings):
        raise IntegrityError(f"{reporter.name} would read {settings}, which may be of a stranger. Fix: delete it.")
