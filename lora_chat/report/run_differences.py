"""The differences of two runs, section by section: settings, data, base, versions, machine and figures."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lora_chat.report.figures import Figure, are_comparable, read_figures
from lora_chat.report.run_files import RunFiles
from lora_chat.report.show import NOTHING, show_bytes, show_number, show_seconds, show_value
from lora_chat.report.values import as_number, as_text, find_value, flatten

IGNORED_SETTINGS = ("output.name", "output.directory")
"""Settings that only name the run."""
_MAX_CHARACTERS = 44
"""Largest number of characters of a value."""
_CONTEXT_CHARACTERS = 8
"""Number of equal characters that are shown before the first difference of two long values."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOT_SET = "not set"
_BASE_VERSION = "base.version"


@dataclass(frozen=True)
class Difference:
    """A value that two runs do not share."""

    name: str
    """Key of the value in the recipe, in a file of the run, or in `result.json`."""
    label: str
    first: object
    second: object
    """Values for JSON; None if a run does not have it."""
    texts: tuple[str, str]
    """Both values for a table."""
    note: str = ""
    """Meaning of the difference, in a few words."""

    def as_dict(self) -> dict[str, object]:
        """Return the difference for JSON."""
        note = {"note": self.note} if self.note else {}
        return {"name": self.name, "first": self.first, "second": self.second, **note}


@dataclass(frozen=True)
class DifferenceSection:
    """The compared values of one kind."""

    title: str
    differences: tuple[Difference, ...]
    equal: int
    """Number of values that both runs share."""

    def as_dict(self) -> dict[str, object]:
        """Return the section for JSON."""
        return {"name": self.title, "equal": self.equal, "differences": [d.as_dict() for d in self.differences]}


@dataclass(frozen=True)
class ComparedRun:
    """The values of a run, or of a recipe, which has only settings."""

    name: str
    settings: Mapping[str, object]
    files: RunFiles | None = None
    digests: Mapping[str, object] = field(default_factory=dict)
    """SHA-256 of each file of held-out data."""


@dataclass(frozen=True)
class _ResultValue:
    """A figure of a result that has no interval."""

    label: str
    keys: tuple[str, ...]
    show: Callable[[float | None], str]


_RESULT_VALUES = (
    _ResultValue("steps", ("steps",), show_number),
    _ResultValue("step that was kept", ("kept_step",), show_number),
    _ResultValue("supervised tokens", ("supervised_tokens",), show_number),
    _ResultValue("trained parameters", ("trainable_parameters",), show_number),
    _ResultValue("adapter size", ("adapter_bytes",), show_bytes),
    _ResultValue("seconds of training", ("seconds", "train"), show_seconds),
    _ResultValue("seconds in total", ("seconds", "total"), show_seconds),
    _ResultValue("peak memory", ("peak_memory_bytes",), show_bytes),
)
_COUNTS = ("train_dialogues", "train_rows", "validation_dialogues", "test_dialogues", "duplicates")
_TOTALS = ("lines", "accepted", "refused", "dropped", "cut", "replies", "tokens", "supervised_tokens", "longest")
_DEVICE_FIELDS = ("device", "name", "memory", "capability", "bfloat16")


def find_differences(first: ComparedRun, second: ComparedRun) -> list[DifferenceSection]:
    """Return the compared sections: all of two runs, or only the settings if one of them is a recipe."""
    sections = [_compare_values("settings", first.settings, second.settings)]
    if first.files is None or second.files is None:
        return sections
    return [
        *sections,
        _compare_values("data", _read_data(first, first.files), _read_data(second, second.files)),
        _compare_values("base", *_read_bases(first.files, second.files)),
        _compare_values("versions", first.files.read("versions"), second.files.read("versions")),
        _compare_values("machine", _read_machine(first.files), _read_machine(second.files)),
        _compare_figures(first.files, second.files),
    ]


def _compare_values(title: str, first: Mapping[str, object], second: Mapping[str, object]) -> DifferenceSection:
    """Return the values that are not equal, in the order of the first run."""
    names = list(dict.fromkeys([*first, *second]))
    differing = [n for n in names if n not in first or n not in second or first[n] != second[n]]
    differences = (
        Difference(name, name, first.get(name), second.get(name), _show_pair(first, second, name)) for name in differing
    )
    return DifferenceSection(title, tuple(differences), len(names) - len(differing))


def _show_pair(first: Mapping[str, object], second: Mapping[str, object], name: str) -> tuple[str, str]:
    """Return both values as text, cut around their first difference."""
    texts = [_show(run[name]) if name in run else _NOT_SET for run in (first, second)]
    if texts[0] == texts[1]:  # numbers that differ in a later digit
        texts = [str(run[name]) for run in (first, second)]
    if max(map(len, texts)) <= _MAX_CHARACTERS:
        return texts[0], texts[1]
    start = 0
    while start < min(map(len, texts)) and texts[0][start] == texts[1][start]:
        start += 1
    start = max(0, start - _CONTEXT_CHARACTERS) if start + _CONTEXT_CHARACTERS > _MAX_CHARACTERS // 2 else 0
    shown = [f"...{text[start:]}" if start and text != _NOT_SET else text for text in texts]
    cut = [text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 3]}..." for text in shown]
    return cut[0], cut[1]


def _show(value: object) -> str:
    """Return a value as text; a digest is shortened."""
    text = show_value(value)
    return f"{text[:12]}..." if _DIGEST.fullmatch(text) else text


def _read_data(run: ComparedRun, files: RunFiles) -> dict[str, object]:
    """Return digests and counts of the data of a run."""
    identity, statistics = files.read("identity"), files.read("data")
    digests = {name: value for name, value in identity.items() if name.startswith("data.")}
    counts = {name: statistics.get(name) or 0 for name in _COUNTS} if statistics else {}
    totals = {name: value for name in _TOTALS if (value := find_value(statistics, "total", name)) is not None}
    return {**digests, **run.digests, **counts, **totals}


def _read_bases(first: RunFiles, second: RunFiles) -> list[dict[str, object]]:
    """Return the identities of both bases; beside a run of an older version only the fields that it recorded."""
    bases = [
        {name: value for name, value in run.read("identity").items() if name.startswith("base.")}
        for run in (first, second)
    ]
    if any(_BASE_VERSION not in base for base in bases):
        shared = bases[0].keys() & bases[1].keys()
        bases = [{name: value for name, value in base.items() if name in shared} for base in bases]
    return bases


def _read_machine(files: RunFiles) -> dict[str, object]:
    """Return the device of a run and its number of processes."""
    device = flatten(files.read("estimate").get("device"))
    result = files.read("result")
    values = {name: value for name in _DEVICE_FIELDS if (value := device.get(name)) is not None}
    if (memory := as_number(values.get("memory"))) is not None:  # it changes by some pages at each start of the system
        values["memory"] = f"{memory / 2**30:.1f} GiB"
    if "name" not in values and (name := as_text(find_value(result, "forecast", "device"))):
        values["name"] = name
    return {**values, "processes": result.get("processes", 1)}


def _compare_figures(first: RunFiles, second: RunFiles) -> DifferenceSection:
    """Return the figures that differ: metrics with their intervals, then the other figures of the results."""
    differences: list[Difference] = []
    metrics = [{figure.style.name: figure for figure in _read_metrics(run)} for run in (first, second)]
    names = list(dict.fromkeys([*metrics[0], *metrics[1]]))
    for name in names:
        pair = metrics[0].get(name), metrics[1].get(name)
        if pair[0] is None or pair[1] is None or pair[0].adapted != pair[1].adapted:
            differences.append(_describe_figures(*pair))
    results = first.read("result"), second.read("result")
    words = [as_text(find_value(result, "verdict", "word")) for result in results]
    if words[0] != words[1]:
        shown = words[0] or NOTHING, words[1] or NOTHING
        differences.append(Difference("verdict", "verdict", words[0], words[1], shown))
    compared = len(names) + 1
    for value in _RESULT_VALUES:
        numbers = [as_number(find_value(result, *value.keys)) for result in results]
        compared += numbers != [None, None]
        if numbers[0] != numbers[1]:
            shown = value.show(numbers[0]), value.show(numbers[1])
            differences.append(Difference(".".join(value.keys), value.label, numbers[0], numbers[1], shown))
    return DifferenceSection("figures", tuple(differences), compared - len(differences))


def _read_metrics(files: RunFiles) -> Sequence[Figure]:
    """Return the figures of the last comparison of a run."""
    return read_figures(files.read("comparison") or files.read("result"))


def _describe_figures(first: Figure | None, second: Figure | None) -> Difference:
    """Return the adapted values of a metric with their intervals, and whether the intervals allow a difference."""
    style = next(figure.style for figure in (first, second) if figure)
    values = [
        {"value": figure.adapted, "interval": figure.adapted_interval, "base": figure.base} if figure else None
        for figure in (first, second)
    ]
    texts = tuple(_show_figure(figure) if figure else NOTHING for figure in (first, second))
    note = _judge_difference(first, second) if first and second else ""
    return Difference(style.name, style.label, values[0], values[1], (texts[0], texts[1]), note)


def _show_figure(figure: Figure) -> str:
    interval = figure.style.show_interval(figure.adapted_interval)
    return figure.style.show(figure.adapted) + (f" ({interval})" if interval else "")


def _judge_difference(first: Figure, second: Figure) -> str:
    """Return in words whether two values differ by more than their intervals.

    Both runs may be measured on the same items, so intervals that do not overlap show a difference, and intervals that
    overlap do not exclude one.
    """
    if not are_comparable([first, second]):
        return "not comparable: the base has other values"
    low, high = sorted((first, second), key=lambda figure: figure.adapted)
    if low.adapted_interval is None or high.adapted_interval is None:
        return "no interval"
    if low.adapted_interval[1] < high.adapted_interval[0]:
        return "more than the intervals"
    is_inside = low.adapted >= high.adapted_interval[0] or high.adapted <= low.adapted_interval[1]
    return "within the interval" if is_inside else "the intervals overlap"
