"""lm-evaluation-harness on a loaded model: one class around its model class, and no code but its own."""

import contextlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lora_chat.errors import LoraChatError, MissingPackageError, UnavailableError, UsageError, first_line
from lora_chat.evaluation.harness_tasks import HarnessTask

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

_BATCH_SIZE = 8
"""Requests that the harness computes together."""


def check_harness() -> str:
    """Return the version of the installed harness. Raise MissingPackageError."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingPackageError(
            "--tasks needs lm-evaluation-harness, which is not installed. Fix: pip install 'lora-chat[harness]'"
        )
    return importlib.metadata.version("lm_eval")


@contextlib.contextmanager
def without_code(*, allow_code: bool) -> Iterator[None]:
    """Let tasks run no code but the harness's own: templates render in Jinja's sandbox, and metrics are not fetched.

    The harness renders templates without a sandbox, and `evaluate.load` runs code of the working directory or the hub.
    """
    if allow_code:
        yield
        return
    import evaluate
    import lm_eval.utils
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment, load = lm_eval.utils.env, evaluate.load
    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(environment.filters)
    lm_eval.utils.env, evaluate.load = sandbox, _refuse_metric
    try:
        yield
    finally:
        lm_eval.utils.env, evaluate.load = environment, load


def _refuse_metric(name: str, *_: object, **__: object) -> None:
    """Raise UsageError in place of fetching a metric with its code."""
    raise UsageError(
        f"The metric {name} is code that the harness would take from the working directory or the hub. Fix: leave the "
        "task out, or add --allow-code if you trust it."
    )


def load_tasks(tasks: Sequence[HarnessTask]) -> tuple[Any, list[object]]:
    """Return the task manager of the harness and its specifications of the tasks, whose data are loaded.

    Raises UsageError for unknown names, and UnavailableError for data that cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=any(not task.is_file for task in tasks))
    for task in tasks:
        if not task.is_file and task.name not in manager.all_tasks:
            similar = get_close_matches(task.name, manager.all_tasks, 3)
            advice = f"Similar: {', '.join(similar)}. " if similar else ""
            raise UsageError(
                f"--tasks {task.name}: the harness has no such task. {advice}Fix: see `lm_eval ls tasks`, or name a "
                ".yaml file of your own."
            )
    specifications: list[object] = [task.config or task.name for task in tasks]
    for specification, task in zip(specifications, tasks, strict=True):
        try:
            manager.load([specification])
        except (MemoryError, LoraChatError):
            raise
        except Exception as error:
            raise UnavailableError(
                f"The task {task.name} cannot be loaded: {first_line(error)} (its data set, or a field of the task)"
            ) from error
    return manager, specifications


def run_harness(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    manager: Any,
    tasks: list[object],
    limit: int | None,
    *,
    allow_code: bool,
) -> Mapping[str, object]:
    """Evaluate a loaded model and return the result of the harness. Raise UsageError if a task fails."""
    import torch
    from lm_eval.evaluator import simple_evaluate

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the harness prints there, beside the JSON of the result
            result = simple_evaluate(
                _wrap_model(model, tokenizer),
                tasks=list(tasks),
                limit=limit,
                task_manager=manager,
                log_samples=False,
                confirm_run_unsafe_code=allow_code,
            )
    except (MemoryError, LoraChatError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(
            f"lm-evaluation-harness failed on these tasks: {first_line(error)}. Fix: correct the task, or leave it out."
        ) from error
    if not result:
        raise UsageError("lm-evaluation-harness returned no result for these tasks.")
    return dict(result)


def _wrap_model(model: "PeftModel", tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Return the model as the harness takes it, with log-probabilities in 32 bits."""
    from lm_eval.models.huggingface import HFLM

    class HarnessModel(HFLM):
        """A loaded model, whose weights the harness must not tie again."""

        def __init__(self) -> None:
            model.tie_weights = lambda *_, **__: None
            try:
                super().__init__(
                    pretrained=model,
                    tokenizer=tokenizer,
                    backend="causal",
                    batch_size=_BATCH_SIZE,
                    softmax_dtype="float32",
                    trust_remote_code=False,
                )
            finally:
                del model.tie_weights

    return HarnessModel()
