"""Services that receive the metrics of training through Transformers' own integrations, in one table.

They receive the metrics of each step, the settings of the trainer, the config of the base and the figures of the
comparison, and no text of a dialogue. Several of them would upload more if they could: the model, the terminal's
output, which quotes replies, the command, the code and the changes of a git repository. Variables that this module sets
prevent it. By default everything stays in the run folder; only wandb without `WANDB_MODE=offline` and servers that the
user names in the environment get anything over the network. No variable comes from a recipe.
"""

import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import quote, urlsplit

from lora_chat.errors import MissingPackageError, UnavailableError

_PROJECT = "lora-chat"
_WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Hosts of wandb's own service, in older and newer versions."""

_MLFLOW_TAGS = {"mlflow.source.name": "lora-chat", "mlflow.source.git.commit": "-", "mlflow.source.git.branch": "-"}
"""Tags in place of the path of the program and the state of its git repository, which MLflow would send."""


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
    start: Callable[[ModuleType, str, str | None], object] | None = None
    """Function of the module, the name of the run and the id of the service's run that is continued, if any. It
    connects and returns the id of its run; None if training itself connects."""
    finish: Callable[[ModuleType, bool], object] = lambda module, failed: None
    """Function of the module, and of whether the run failed, that ends the run of the service."""
    note: Callable[[ModuleType, str, str], object] | None = None
    """Function of the module, a name and a text that adds the text to the run; None if texts are logged as metrics."""
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


def _start_wandb(wandb: ModuleType, name: str, earlier: str | None) -> object:
    """Start or continue a run of wandb, and return its id."""
    continued = {"id": earlier, "resume": "allow"} if earlier else {}
    return getattr(wandb.init(project=os.environ["WANDB_PROJECT"], name=name, **continued), "id", None)


def _start_mlflow(mlflow: ModuleType, name: str, earlier: str | None) -> object:
    """Start or continue a run of MLflow, and return its id."""
    run = mlflow.start_run(run_id=earlier) if earlier else mlflow.start_run(run_name=name, tags=_MLFLOW_TAGS)
    os.environ.pop("MLFLOW_RUN_ID", None)  # Transformers would start the run of this id a second time
    return run.info.run_id


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
        start=_start_wandb,
        finish=lambda wandb, failed: wandb.finish(exit_code=int(failed)),
        is_in_run=False,
    ),
    Reporter(
        "mlflow",
        ("mlflow",),
        required=lambda folder: {
            "HF_MLFLOW_LOG_ARTIFACTS": "FALSE",
            "DISABLE_MLFLOW_INTEGRATION": "FALSE",
            "MLFLOW_NESTED_RUN": "FALSE",  # it would start a second run
        },
        defaults=_default_mlflow_folder,
        start=_start_mlflow,
        finish=lambda mlflow, failed: mlflow.end_run("FAILED" if failed else "FINISHED"),
        note=lambda mlflow, name, text: mlflow.set_tag(name, text),
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
