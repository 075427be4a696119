"""Services that receive the metrics of training through Transformers' own integrations, in one table.

They receive the metrics of each step, the settings of the trainer, the config of the base and the figures of the
comparison, and no text of a dialogue. Several of them would upload more if they could: the model, the terminal's
output, which quotes replies, the command, the code and the changes of a git repository. Variables that this module sets
prevent it. By default everything stays in the run folder; only wandb without `WANDB_MODE=offline` and servers that the
user names in the environment get anything over the network. No variable comes from a recipe.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from lora_chat.errors import MissingPackageError
from lora_chat.training.wandb_login import check_wandb_login

_PROJECT = "lora-chat"
_MLFLOW_TAGS = {"mlflow.source.name": "lora-chat", "mlflow.source.git.commit": "-", "mlflow.source.git.branch": "-"}
"""Tags in place of the path of the program and the state of its git repository, which MLflow would send."""

_COMET_CONTENTS = (
    "log_code",
    "log_graph",
    "parse_args",
    "log_git_metadata",
    "log_git_patch",
    "log_env_details",
    "log_env_gpu",
    "log_env_host",
    "log_env_cpu",
    "log_env_network",
    "log_env_disk",
    "auto_output_logging",
    "auto_param_logging",
    "auto_metric_logging",
    "auto_log_co2",
)
"""Settings of Comet that send facts about the machine, the command, the code or the terminal's output."""
_SWANLAB_CONTENTS = ("hardware", "runtime", "requirements", "conda", "git", "monitor")
"""Settings of SwanLab that send facts about the machine, the command or the code."""


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


def _start_wandb(wandb: ModuleType, name: str, earlier: str | None) -> object:
    """Start or continue a run of wandb, and return its id."""
    continued = {"id": earlier, "resume": "allow"} if earlier else {}
    return getattr(wandb.init(project=os.environ["WANDB_PROJECT"], name=name, **continued), "id", None)


def _start_mlflow(mlflow: ModuleType, name: str, earlier: str | None) -> object:
    """Start or continue a run of MLflow, and return its id."""
    run = mlflow.start_run(run_id=earlier) if earlier else mlflow.start_run(run_name=name, tags=_MLFLOW_TAGS)
    os.environ.pop("MLFLOW_RUN_ID", None)  # Transformers would start the run of this id a second time
    return run.info.run_id


def _end(experiment: Any) -> None:
    """End an experiment of Comet, if there is one."""
    if experiment is not None:
        experiment.end()


def _start_comet(comet: ModuleType, name: str, earlier: str | None) -> object:
    """Start or continue an offline experiment of Comet without facts about the machine, and return its key."""
    config = comet.ExperimentConfig(
        name=name,
        display_summary_level=0,
        offline_directory=os.environ["COMET_OFFLINE_DIRECTORY"],
        **dict.fromkeys(_COMET_CONTENTS, False),
    )
    options = {"experiment_key": earlier, "mode": "get_or_create"} if earlier else {}
    project = os.environ.get("COMET_PROJECT_NAME") or _PROJECT
    return comet.start(online=False, project_name=project, experiment_config=config, **options).get_key()


def _start_swanlab(swanlab: ModuleType, name: str, earlier: str | None) -> object:
    """Start or continue an offline run of SwanLab without facts about the machine, and return its id."""
    settings = swanlab.Settings(
        interactive=False,
        probe=swanlab.Settings.Probe(**dict.fromkeys(_SWANLAB_CONTENTS, False)),
        terminal=swanlab.Settings.Terminal(proxy_type="none"),  # the terminal shows replies
    )
    run = swanlab.init(
        project=os.environ.get("SWANLAB_PROJECT") or _PROJECT,
        name=name,
        mode="offline",
        log_dir=os.environ["SWANLAB_LOG_DIR"],
        settings=settings,
        **({"id": earlier, "resume": "allow"} if earlier else {}),
    )
    return run.id


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
        check=check_wandb_login,
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
    Reporter(
        "comet_ml",
        ("comet_ml",),
        required=lambda folder: {
            "COMET_OFFLINE_DIRECTORY": str(folder / "comet_ml"),
            "COMET_START_ONLINE": "false",
            "COMET_MODE": "get_or_create",  # Transformers takes the experiment that is already running
            "COMET_LOG_ASSETS": "FALSE",
        },
        defaults=lambda folder: {"COMET_LOGGING_CONSOLE": "ERROR"},
        start=_start_comet,
        finish=lambda comet, failed: _end(comet.get_running_experiment()),
        note=lambda comet, name, text: comet.get_running_experiment().log_other(name, text),
    ),
    Reporter(
        "swanlab",
        ("swanlab",),
        required=lambda folder: {"SWANLAB_LOG_DIR": str(folder / "swanlab"), "SWANLAB_MODE": "offline"},
        start=_start_swanlab,
        finish=lambda swanlab, failed: swanlab.finish(),
        note=lambda swanlab, name, text: swanlab.config.update({name: text}),
    ),
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
