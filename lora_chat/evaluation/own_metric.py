"""Metrics of the user: a function of reference and reply in a Python file, named on the command line only."""

import importlib.machinery
import importlib.util
import logging
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_chat.errors import UsageError
from lora_chat.evaluation.measurement import Measurement
from lora_chat.evaluation.metrics import Metric, MetricFigures, count_each
from lora_chat.evaluation.overlap import OverlapReport
from lora_chat.evaluation.verdict import judge
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)

_FORM = "Fix: name a file and its function, such as --metric my_metric.py:score."
_MODULE_NAME = "lora_chat_own_metric"


@dataclass(frozen=True)
class OwnMetric:
    """A function of the user, which gives the value of a reply. Higher values are better."""

    name: str
    """Name of the function."""
    path: Path
    function: Callable[[str, str], object]

    def score(self, reference: str, reply: str, where: str) -> float | bool:
        """Return the value of one reply; `where` names it in messages. Raise UsageError for errors in the function."""
        with _user_errors(self.path, f"{self.name} failed on {where}"):
            value = self.function(reference, reply)
            if isinstance(value, bool | np.bool_):
                return bool(value)
            number = float(value) if isinstance(value, int | float | np.number) else None
        if number is None:
            raise UsageError(
                f"{self.path.name}:{self.name} returned {sanitize_line(repr(value))[:100]} for {where}. Fix: return a "
                "number, or True or False."
            )
        if not math.isfinite(number):
            raise UsageError(
                f"{self.path.name}:{self.name} returned {number} for {where}. Fix: return a finite number."
            )
        return number

    def compare(self, base: Measurement, adapted: Measurement) -> tuple[Metric, MetricFigures]:
        """Return the metric and its figures for both models."""
        values = [list(self._score_all(measured, name)) for measured, name in ((base, "base"), (adapted, "adapted"))]
        is_right_or_wrong = all(isinstance(value, bool) for row in values for value in row)
        scores = {id(measured): count_each(row) for measured, row in zip((base, adapted), values, strict=True)}
        metric = Metric(
            self.name,
            self.name,
            "replies",
            lambda measured: scores.get(id(measured)),
            "{:.1%}".format if is_right_or_wrong else "{:.4g}".format,
            lower_is_better=False,
            is_right_or_wrong=is_right_or_wrong,
            is_share=is_right_or_wrong,
        )
        figures = metric.compare(base, adapted)
        if figures is None:
            raise UsageError(f"--metric {self.name} has no replies to score.")
        return metric, figures

    def _score_all(self, measured: Measurement, model_name: str) -> Iterator[float | bool]:
        """Yield the value of each reply of a model."""
        pairs = zip(measured.items, measured.replies, strict=True)
        for number, (item, reply) in enumerate(pairs, 1):
            yield self.score(item.reference, reply.content, f"reply {number} of the {model_name} model")


def load_own_metrics(texts: Sequence[str], known: Sequence[str]) -> list[OwnMetric]:
    """Return the functions that FILE:FUNCTION names, by running the code of the files. Raise UsageError for errors."""
    metrics: list[OwnMetric] = []
    for text in texts:
        metric = _load(text)
        if metric.name in known or metric.name in [other.name for other in metrics]:
            raise UsageError(f"--metric {text}: there is another metric {metric.name}. Fix: rename the function.")
        metrics.append(metric)
    return metrics


def report_own_metrics(
    metrics: Sequence[OwnMetric], base: Measurement, adapted: Measurement, overlap: OverlapReport | None = None
) -> dict[str, object]:
    """Return the figures and the verdict of each function for JSON, and show the verdicts.

    `overlap` says whether the dialogues were trained on.
    """
    report: dict[str, object] = {}
    for own in metrics:
        metric, figures = own.compare(base, adapted)
        if overlap is not None and overlap.withholds(metric.items):
            figures["verdict"], figures["needed_items"] = "withheld", None
        verdict = judge(metric, {metric.name: figures}, overlap=overlap)
        logger.info(f"{own.path.name}: {verdict.text}")
        report[metric.name] = {**figures, "text": verdict.text}
    return report


def _load(text: str) -> OwnMetric:
    """Return the function of one FILE:FUNCTION."""
    file, colon, name = text.rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise UsageError(f"--metric {text} is not FILE:FUNCTION. {_FORM}")
    path = Path(expand_user_path(file))
    if not path.is_file():
        raise UsageError(f"--metric {text}: there is no file {file}. {_FORM}")
    logger.info(f"Running the code of {path} for --metric.")
    loader = importlib.machinery.SourceFileLoader(_MODULE_NAME, str(path))
    spec = importlib.util.spec_from_loader(_MODULE_NAME, loader)
    if spec is None:
        raise UsageError(f"--metric {text}: Python cannot read {file}. {_FORM}")
    module = importlib.util.module_from_spec(spec)
    with _user_errors(path, "it cannot be loaded"):
        sys.modules[_MODULE_NAME] = module  # dataclasses in the file look their module up
        writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            loader.exec_module(module)
        finally:
            sys.dont_write_bytecode = writes_bytecode
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{file} has no function {name}; it has {', '.join(functions) or 'none'}. {_FORM}")
    return OwnMetric(name, path, function)


@contextmanager
def _user_errors(path: Path, problem: str) -> Iterator[None]:
    """Raise UsageError with the file and line of an error in the code of the user."""
    try:
        yield
    except (Exception, SystemExit) as error:
        line = _line_of(error, path)
        where = f"{path}:{line}" if line else str(path)
        detail = sanitize_line(str(error))[:300]
        raise UsageError(f"{where}: {problem}: {type(error).__name__}: {detail}. Fix: correct the file.") from error


def _line_of(error: BaseException, path: Path) -> int | None:
    """Return the line of the file in which an error began; None if it began elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
