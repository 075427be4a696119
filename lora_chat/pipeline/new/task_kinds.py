"""The tasks that `lora-chat new` knows: one table with their signs and settings, in the order of recognition."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import lora_chat.pipeline.new.task_signs as signs
from lora_chat.pipeline.new.profile import DataProfile


@dataclass(frozen=True)
class TaskKind:
    """A task, its sign in the data, and the settings that fit it."""

    title: str
    recognize: Callable[[DataProfile], str | None]
    """Function that returns the reason why data has this task, or None."""
    example: str | None
    """Bundled recipe with example data."""
    metrics: tuple[str, ...] = ()
    """Metrics of replies, the decisive one first; empty for `auto`."""
    metrics_reason: str = ""
    few_epochs: float = 4
    """Epochs for fewer than 200 rows, as in the bundled recipe."""
    epochs_reason: str = "few rows need several passes"
    small_rate: str = "5e-4"
    """Learning rate for a base below 300 million weights, as in the bundled recipe."""
    rate_reason: str = "the base can do the task in part"
    wording: Mapping[str, str] = field(default_factory=dict)
    """Text of the prompt for columns, by language of the answers; `` for all others. `{0}` is a column."""
    drops_long: bool = False
    """Whether a row that is cut would be wrong, so that long rows are dropped."""
    is_text: bool = False
    """Whether the rows are documents, and not dialogues."""


TASKS: Mapping[str, TaskKind] = {
    "pretraining": TaskKind(
        "continued pretraining on plain text",
        signs.has_documents,
        "pretraining",
        few_epochs=8,
        epochs_reason="facts occur once in a small text",
        small_rate="1e-3",
        rate_reason="facts are new to the base",
        is_text=True,
    ),
    "story": TaskKind(
        "stories as plain text",
        lambda profile: None,
        "story",
        epochs_reason="the validation loss falls for a few passes and then rises",
        rate_reason="the base has read stories",
        is_text=True,
    ),
    "tools": TaskKind(
        "calls of tools", signs.has_calls, None, few_epochs=4, rate_reason="the form of the calls is new to the base"
    ),
    "json": TaskKind(
        "answers in JSON",
        signs.has_json,
        None,
        ("json_match", "json_valid"),
        "the first decides: all fields are equal",
        small_rate="1e-3",
        rate_reason="the fields are new to the base",
    ),
    "classification": TaskKind(
        "sort texts into classes",
        signs.has_labels,
        "classification",
        ("accuracy", "macro_f1"),
        "the first decides; macro F1 counts rare labels as much as frequent ones",
        few_epochs=5,
        small_rate="1e-3",
        rate_reason="few steps must teach new labels",
    ),
    "math": TaskKind(
        "solve problems step by step",
        signs.has_numbers,
        "math",
        ("numeric_match",),
        "the last number, after `####` if there is one, is compared",
        few_epochs=3,
        epochs_reason="more passes teach these numbers by heart",
        rate_reason="a higher rate damages the arithmetic of the base",
    ),
    "reading": TaskKind(
        "answer questions about a text with words from it",
        signs.has_spans,
        "reading",
        ("exact_match", "token_f1"),
        "the first decides; token F1 gives points for parts of an answer",
        rate_reason="short answers are learned quickly",
        wording={
            "": "{0}\n\nQuestion: {1}\nAnswer in a few words of the text.",
            "Chinese": "{0}\n\n问题：{1}\n请用文中的几个字回答。",
        },
        drops_long=True,
    ),
    "translation": TaskKind(
        "translate",
        signs.has_translations,
        "translation",
        ("chrf", "bleu"),
        "the first decides; chrF compares characters",
        few_epochs=5,
        small_rate="1e-3",
        rate_reason="this base has read little of the language",
        wording={"": "Translate into {language}: {0}"},
    ),
    "summary": TaskKind(
        "summarize",
        signs.has_summaries,
        "summary",
        ("rougeL", "rouge2"),
        "shared words in the same order; the first decides",
        rate_reason="training teaches length and tone",
        wording={
            "": "Summarize this text in one or two sentences.\n\n{0}",
            "Chinese": "用一两句话概括下面的内容。\n\n{0}",
        },
        drops_long=True,
    ),
    "questions": TaskKind(
        "questions with short answers",
        signs.has_short_answers,
        None,
        ("exact_match", "token_f1"),
        "the first decides; token F1 gives points for parts of an answer",
        few_epochs=5,
        small_rate="1e-3",
        rate_reason="facts are new to the base",
    ),
    "service": TaskKind(
        "customer service in several turns",
        signs.has_repeated_turns,
        "service",
        few_epochs=6,
        epochs_reason="facts such as prices occur only a few times",
        small_rate="1e-3",
        rate_reason="facts are new to the base; 3e-4 for the tone only",
    ),
    "chat": TaskKind(
        "chat in several turns",
        signs.has_turns,
        "chat-zh",
        few_epochs=3,
        small_rate="1e-3",
        rate_reason="a small base needs large steps",
    ),
    "instructions": TaskKind(
        "questions with free answers",
        signs.has_any,
        "quickstart",
        small_rate="1e-3",
        rate_reason="facts are new to the base",
    ),
}
"""Every task by name, in the order in which it is recognised; names are the choices of `--task`."""


_POSSIBLE: Mapping[str, Callable[[DataProfile], bool]] = {
    "classification": signs.can_be_labels,
    "reading": signs.can_be_spans,
    "translation": signs.can_be_translations,
}
"""Tests of the answers for tasks that names of columns show; a task without a test is always possible."""


def detect_task(profile: DataProfile, named_by_columns: str | None = None) -> tuple[str, str]:
    """Return the name of the task of data and the reason.

    Names of columns come first, if the answers can belong to that task.
    """
    if named_by_columns is not None and not profile.is_text and _is_possible(named_by_columns, profile):
        return named_by_columns, "its columns look like it"
    for name, task in TASKS.items():
        reason = task.recognize(profile)
        if reason is not None:
            return name, reason
    raise AssertionError("the last task recognises everything")


def _is_possible(name: str, profile: DataProfile) -> bool:
    """Return whether the answers can belong to a task."""
    return name not in _POSSIBLE or _POSSIBLE[name](profile)


def find_contradiction(name: str, profile: DataProfile) -> str | None:
    """Return a sentence if the answers of data cannot belong to a task that the user chose."""
    is_sure = name in _POSSIBLE or name in ("json", "math", "tools")
    fits = _is_possible(name, profile) if name in _POSSIBLE else TASKS[name].recognize(profile) is not None
    if not is_sure or fits:
        return None
    other, reason = detect_task(profile)
    return f"The data does not look like the task {name} that you chose, but like {other}: {reason}."
