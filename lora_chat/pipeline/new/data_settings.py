"""The sections `data` and `evaluation` of a new recipe, from the profile of the data."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from lora_chat.config.data import DataSection
from lora_chat.evaluation.reply_kinds import lacks_data
from lora_chat.pipeline.new.column_roles import ColumnRoles
from lora_chat.pipeline.new.profile import DataProfile
from lora_chat.pipeline.new.recipe_text import RecipeDraft
from lora_chat.pipeline.new.task_kinds import TASKS, TaskKind
from lora_chat.pipeline.new.token_lengths import LengthLimit, TokenLengths

_MAX_PARENTS = 2
"""Number of `..` in a relative path; a file farther away is named by its absolute path."""
_MAX_LISTED_LABELS, _MAX_LABEL_LIST = 20, 600
"""Most labels of a system message, and most characters of their list."""
_LIST_SIGN = re.compile(r",|\.$|\bor\b")
"""Parts of a label that a list on one line would take for its own."""
_MIN_TO_CHOOSE, _DEFAULT_SHARE, _LARGE_SHARE = 8, 0.1, 0.25
"""Validation rows from which a step is chosen, the default of `validation_share`, and its largest proposal."""
_MIN_ROWS_FOR_TEST = 300
"""Rows from which a share becomes a test set."""
_MAX_REPLY_TOKENS, _FREE_REPLY_TOKENS, _TEXT_TOKENS, _REPLY_STEP = 512, 64, 60, 8
_CALL_MARKS = 24
"""Tokens that a chat template adds to a reply with calls."""


def write_source(draft: RecipeDraft, section: DataSection, roles: ColumnRoles | None, found_format: bool) -> None:
    """Set the training file with its format or columns."""
    train = section.train
    assert isinstance(train, str)
    draft.set("data", "train", relative_path(train))
    if found_format and section.format is not None:
        draft.set("data", "format", section.format, "every token carries loss, and a stop token ends each document")
    if roles is not None:
        draft.set("data", "columns", roles.as_columns, roles.reason)


def relative_path(path: str) -> str:
    """Return a path relative to the working directory, unless it is far away."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive of Windows
        return path
    relative = relative.replace(os.sep, "/") if os.sep != "/" else relative
    if relative.split("/").count("..") > _MAX_PARENTS:
        return str(Path(path).absolute())
    return f"./{relative}" if relative.startswith("~") else relative


def write_wording(draft: RecipeDraft, task_name: str, roles: ColumnRoles | None, profile: DataProfile) -> None:
    """Name the task in every prompt: in the text of the columns, or in the system message for labels."""
    task = TASKS[task_name]
    if roles is not None and task.wording and roles.user is not None:
        text = _word_prompt(task, roles, profile)
        if text is not None:
            columns = roles.as_columns | {"user": text}
            reason = draft.sections["data"]["columns"].comment
            draft.set("data", "columns", columns, f"{reason}; the prompt names the task, so ask later in the same way")
    if task_name == "classification" and not profile.has_system:
        text = _list_labels(profile)
        if text is not None:
            draft.set("data", "system", text, "the labels are in the prompt, so the comparison with the base is fair")


def _list_labels(profile: DataProfile) -> str | None:
    """Return a system message with all labels; None if they are too many or too long, or not all rows were read."""
    labels = sorted(profile.first_replies)
    is_short = 2 <= len(labels) <= _MAX_LISTED_LABELS and sum(map(len, labels)) <= _MAX_LABEL_LIST
    if profile.is_part or not is_short or not all(label.isprintable() for label in labels):
        return None
    if any(_LIST_SIGN.search(label) for label in labels):
        return "\n".join(["Reply with one of these labels:", *labels])
    return f"Reply with one label: {', '.join(labels[:-1])} or {labels[-1]}."


def _word_prompt(task: TaskKind, roles: ColumnRoles, profile: DataProfile) -> str | None:
    """Return the text of the prompt with the columns in it; None if their number or a name does not allow it."""
    names = (roles.user,) if isinstance(roles.user, str) else roles.user or ()
    language = profile.reply_languages[0].language if profile.reply_languages else ""
    wording = task.wording.get(language, task.wording[""])
    if any("{" in name or "}" in name for name in names) or wording.count("{") - wording.count("{language}") != len(
        names
    ):
        return None
    if "{language}" in wording:
        wording = wording.replace("{language}", language or "the other language")
    for number, name in enumerate(names):
        wording = wording.replace(f"{{{number}}}", f"{{{name}}}")
    return wording


def write_lengths(
    draft: RecipeDraft, task: TaskKind, profile: DataProfile, lengths: TokenLengths, limit: LengthLimit
) -> None:
    """Set the length limit, and the action for the rows above it."""
    counted = "estimated tokens" if lengths.is_estimated else "tokens"
    if profile.is_text:
        draft.set("data", "max_length", limit.tokens, f"length of the blocks; the text has {lengths.total:,} {counted}")
        return
    longest = f"more than {lengths.rows.longest:,}" if lengths.num_longer else f"{lengths.rows.longest:,}"
    figures = f"half of the rows have up to {lengths.percentile(0.5):,} {counted}, the longest {longest}"
    draft.set("data", "max_length", limit.tokens, figures)
    if limit.num_above:
        reason = "a row that is cut would be wrong" if task.drops_long else "nothing is cut without a word"
        comment = f"leaves out {limit.num_above:,} of {lengths.count:,} rows, which are longer; {reason}"
        draft.set("data", "over_long", "drop", comment)


def write_held_out(
    draft: RecipeDraft, profile: DataProfile, rows: int, num_distinct: int, files: Mapping[str, str]
) -> None:
    """Set files or shares for validation and test; `rows` are dialogues, or blocks of plain text."""
    reasons = {"validation": "the step to keep is chosen by it", "test": "only the comparison at the end sees it"}
    for setting, file in files.items():
        draft.set("data", setting, relative_path(file), reasons[setting])
    if "validation" in files:
        return
    if num_distinct < 2:
        comment = "all rows are trained, because fewer than two differ"
        draft.set("data", "validation_share", 0.0, comment)
        return
    unit = "blocks" if profile.is_text else "rows"
    if rows * _DEFAULT_SHARE < _MIN_TO_CHOOSE:
        share = min(_LARGE_SHARE, round(_MIN_TO_CHOOSE / rows + 0.005, 2))
        comment = f"about {max(1, round(rows * share))} of {rows:,} {unit}; with fewer than 8 the last step is kept"
        draft.set("data", "validation_share", share, comment)
    elif "test" not in files and not profile.is_text and rows >= _MIN_ROWS_FOR_TEST:
        comment = "for figures on rows that neither training nor the choice of the step sees"
        draft.set("data", "test_share", _DEFAULT_SHARE, comment)


def write_evaluation(draft: RecipeDraft, task: TaskKind, profile: DataProfile, lengths: TokenLengths) -> None:
    """Set metrics and the length of replies."""
    is_measured = draft.tree["data"].get("validation_share") != 0.0 and bool(profile.items)
    metrics = [name for name in task.metrics if lacks_data(name, profile.items, None) is None]
    if metrics and is_measured:
        draft.set("evaluation", "metrics", metrics, task.metrics_reason)
    if profile.is_text:
        comment = "a continuation has no right answer, so loss and perplexity decide"
        draft.set("evaluation", "max_new_tokens", _TEXT_TOKENS, comment)
        return
    marks = _CALL_MARKS if profile.has_calls else 2
    wanted = _REPLY_STEP * -(-(lengths.typical_reply + marks) // _REPLY_STEP)
    limit = _MAX_REPLY_TOKENS if task.metrics or profile.has_calls else _FREE_REPLY_TOKENS
    counted = "estimated tokens" if lengths.is_estimated else "tokens"
    figures = f"95 % of the replies have up to {lengths.typical_reply:,} {counted}"
    if wanted > limit:
        figures += "; longer replies are cut off in the comparison, which takes less time"
    draft.set("evaluation", "max_new_tokens", max(_REPLY_STEP, min(wanted, limit)), figures)
