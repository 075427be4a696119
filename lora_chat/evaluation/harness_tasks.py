"""Tasks of lm-evaluation-harness: names of tasks that it ships, and files of the user, which must not run code.

Without consent only fields are accepted that cannot run code: no `!function`, no class, no metric or data set that the
harness would fetch with its code, and no argument of `generate` that loads code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_chat.errors import UsageError
from lora_chat.system.bounded_files import read_text
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.strict_yaml import MAX_RECIPE_CHARACTERS, compose_strict
from lora_chat.system.user_path import expand_user_path

_SUFFIXES = (".yaml", ".yml")
_READERS = ("json", "csv", "parquet", "text")
"""Readers of local data; other readers of `datasets` unpickle files or load code."""
_METRICS = (
    *("acc", "acc_norm", "exact_match", "f1", "mcc", "bleu", "chrf", "ter", "brier_score", "perplexity"),
    *("word_perplexity", "byte_perplexity", "bits_per_byte"),
)
"""Metrics of the harness itself; it would fetch other names from the hub, with their code."""
_FIELDS = {
    *("task", "task_alias", "dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split"),
    *("test_split", "fewshot_split", "doc_to_text", "doc_to_target", "doc_to_choice", "description", "num_fewshot"),
    *("target_delimiter", "fewshot_delimiter", "metric_list", "output_type", "generation_kwargs", "filter_list"),
    *("repeats", "gen_prefix", "metadata"),
}
_METRIC_FIELDS = {
    *("metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation", "ignore_numbers"),
    "regexes_to_ignore",
}
_GENERATION_FIELDS = {
    *("until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks", "num_beams", "repetition_penalty"),
}
_DATA_FIELDS = {"data_files", "field"}
_FILTERS = {
    "regex",
    "regex_pos",
    "remove_whitespace",
    "multi_choice_regex",
    "take_first",
    "take_first_k",
    "majority_vote",
}
_FIX = "Fix: leave it out, or add --allow-code if you trust the file."


@dataclass(frozen=True)
class HarnessTask:
    """A task on the command line."""

    name: str
    """Name of a task of the harness, or path of a file."""
    config: dict[str, object] | None = None
    """Checked content of a file; None for names, and for files whose code may run."""
    is_file: bool = False


def parse_tasks(text: str, *, allow_code: bool) -> list[HarnessTask]:
    """Return the tasks of `--tasks`, separated by commas. Raise UsageError for a file that could run code."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError("--tasks has an empty name. Fix: name tasks with commas between them, such as arc_easy,piqa.")
    if len(set(names)) < len(names):
        raise UsageError("--tasks names a task twice. Fix: name each task once.")
    return [_parse_task(name, allow_code=allow_code) for name in names]


def _parse_task(name: str, *, allow_code: bool) -> HarnessTask:
    """Return one task. Raise UsageError."""
    if not name.endswith(_SUFFIXES):
        if "/" in name or "\\" in name:
            raise UsageError(f"--tasks {name}: a task of your own is a file that ends with .yaml. Fix: name the file.")
        return HarnessTask(name)
    path = expand_user_path(name)
    if not path.is_file():
        raise UsageError(f"--tasks {name}: there is no such file. Fix: check the path.")
    if allow_code:
        return HarnessTask(str(path.resolve()), is_file=True)
    return HarnessTask(name, read_task_file(path), is_file=True)


def read_task_file(path: Path) -> dict[str, object]:
    """Read the file of a task that cannot run code, with its data files as absolute paths. Raise UsageError."""
    import yaml

    try:
        text = read_text(path, MAX_RECIPE_CHARACTERS, UsageError)
        if "!function" in text:
            raise UsageError(f"{path.name} names a function (!function), which would run code of a file. {_FIX}")
        root = compose_strict(text)
        config = yaml.constructor.SafeConstructor().construct_document(root) if root is not None else None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path.name} is not the file of a task: {sanitize_line(str(error))[:300]}") from error
    if not isinstance(config, dict) or not isinstance(config.get("task"), str):
        raise UsageError(f"{path.name} is not the file of a task: it has no name in `task`.")
    _check_fields(path, config, _FIELDS, "")
    _check_metrics(path, config.get("metric_list"))
    _check_fields(path, config.get("generation_kwargs") or {}, _GENERATION_FIELDS, "generation_kwargs.")
    _check_filters(path, config.get("filter_list"))
    return config | {"dataset_kwargs": _read_data_files(path, config)}


def _check_fields(path: Path, fields: object, allowed: set[str], prefix: str) -> None:
    """Raise UsageError for a field that is not allowed without consent."""
    if not isinstance(fields, Mapping):
        raise UsageError(f"{path.name}: {prefix.rstrip('.')} is not a mapping.")
    for key in fields:
        if key not in allowed:
            raise UsageError(
                f"{path.name}: {prefix}{sanitize_line(str(key))[:100]} is not accepted, because fields of the harness "
                f"can run code. {_FIX}"
            )


def _check_metrics(path: Path, metrics: object) -> None:
    """Raise UsageError for metrics that the harness would fetch with their code."""
    if not isinstance(metrics, list) or not metrics:
        raise UsageError(f"{path.name} has no metric_list. Fix: add one, such as `- metric: acc`.")
    for entry in metrics:
        _check_fields(path, entry, _METRIC_FIELDS, "metric_list.")
        name = entry.get("metric")
        if name not in _METRICS:
            raise UsageError(
                f"{path.name}: the metric {sanitize_line(str(name))[:100]} is not one of the harness "
                f"({', '.join(_METRICS)}). {_FIX}"
            )


def _check_filters(path: Path, filters: object) -> None:
    """Raise UsageError for filters of replies that take a function."""
    if filters is None:
        return
    if not isinstance(filters, list):
        raise UsageError(f"{path.name}: filter_list is not a list.")
    for group in filters:
        _check_fields(path, group, {"name", "filter"}, "filter_list.")
        steps = group.get("filter")
        for step in steps if isinstance(steps, list) else [steps]:
            function = step.get("function") if isinstance(step, Mapping) else None
            if function not in _FILTERS:
                raise UsageError(
                    f"{path.name}: the filter {sanitize_line(str(function))[:100]} is not accepted "
                    f"({', '.join(sorted(_FILTERS))}). {_FIX}"
                )


def _read_data_files(path: Path, config: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments of the data set: local files, relative to the task's folder. Raise UsageError."""
    reader, arguments = config.get("dataset_path"), config.get("dataset_kwargs")
    if reader not in _READERS or config.get("dataset_name") is not None:
        raise UsageError(
            f"{path.name}: dataset_path is not one of {', '.join(_READERS)}, so the harness could load code. {_FIX}"
        )
    _check_fields(path, arguments, _DATA_FIELDS, "dataset_kwargs.")
    if not isinstance(arguments, Mapping) or "data_files" not in arguments:
        raise UsageError(f"{path.name}: dataset_kwargs names no data_files.")
    files = arguments["data_files"]
    data_files: object = (
        {str(split): _find_files(path, names) for split, names in files.items()}
        if isinstance(files, Mapping)
        else _find_files(path, files)
    )
    return {**arguments, "data_files": data_files}


def _find_files(path: Path, names: object) -> list[str]:
    """Return the absolute paths of files that exist. Raise UsageError."""
    paths = []
    for name in names if isinstance(names, Sequence) and not isinstance(names, str) else [names]:
        file = path.resolve().parent / name if isinstance(name, str) else None
        if file is None or not file.is_file():
            raise UsageError(
                f"{path.name}: there is no file {sanitize_line(str(name))[:200]} beside it, as data_files says."
            )
        paths.append(str(file))
    return paths
