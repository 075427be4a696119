"""The data of a recipe as a run reads it; no weights are loaded."""

import json
import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lora_chat.audit.format import format_audit
from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.data.format import format_dialogues, format_statistics, split_by_loss
from lora_chat.data.statistics import DataStatistics
from lora_chat.pipeline.audit_run import audit_run
from lora_chat.pipeline.parent_settings import complete_recipe
from lora_chat.pipeline.prepare import PreparedRun, prepare_run
from lora_chat.system.atomic_write import atomic_output_file
from lora_chat.system.console import ResultPart
from lora_chat.system.hardware import describe_cpu
from lora_chat.system.sanitize import sanitize_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShownDialogue:
    """A training dialogue as the model reads it. One whose template rewrites earlier turns has several rows."""

    path: str
    line: int
    """Line of the file."""
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """Ids of the tokens with loss, and -100 for the others."""
    spans: tuple[tuple[str, bool], ...]
    """Text of the row in parts, each with whether its tokens have loss."""

    def __str__(self) -> str:
        return "".join(f"[[{text}]]" if has_loss else text for text, has_loss in self.spans)


@dataclass(frozen=True)
class DataInspection:
    """The data of a recipe as training reads it."""

    statistics: DataStatistics
    """Counts of lines, dialogues and tokens."""
    dialogues: tuple[ShownDialogue, ...]
    """First training dialogues, one entry for each row."""

    def __str__(self) -> str:
        rows = [f"--- {dialogue.path}:{dialogue.line}\n{dialogue}" for dialogue in self.dialogues]
        return sanitize_text("\n\n".join([format_statistics(self.statistics), *rows]))


def show_dialogues(recipe: Recipe, count: int, *, accept_template: bool = False) -> DataInspection:
    """Return the statistics of a recipe's data and its first `count` training dialogues with their loss mask."""
    prepared = _prepare(recipe, accept_template=accept_template)
    rows = [
        ShownDialogue(
            path, line, tuple(row.input_ids), tuple(row.labels), tuple(split_by_loss(row, prepared.tokenizer))
        )
        for path, line, rows in islice(prepared.train.read_rows(), count)
        for row in rows
    ]
    return DataInspection(prepared.statistics, tuple(rows))


def inspect_data(
    recipe: Recipe, count: int, *, as_json: bool, accept_template: bool = False
) -> "dict[str, object] | list[ResultPart]":
    """Return the statistics of a recipe's data with its first `count` training dialogues, as text or for JSON."""
    prepared = _prepare(recipe, accept_template=accept_template)
    if as_json:
        return prepared.statistics.as_dict() | ({"shown": _collect_rows(prepared, count)} if count else {})
    return [format_statistics(prepared.statistics), *format_dialogues(prepared.train, prepared.tokenizer, count)]


def audit_recipe(
    recipe: Recipe, to: Path | None, *, as_json: bool, accept_template: bool = False
) -> "tuple[dict[str, object] | str, bool]":
    """Return the audit of a recipe's data, and whether the recipe refuses it.

    The training dialogues, redacted and left out as in training, are written to `to`.
    """
    recipe, parent = complete_recipe(recipe)
    plan = make_plan(recipe, describe_cpu())
    prepared = prepare_run(plan, parent, accept_template=accept_template)
    prepared, report = audit_run(prepared, plan)
    if to:
        with atomic_output_file(to, "the dialogues") as file:
            file.writelines(
                f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in prepared.read_training_rows()
            )
        redacted = prepared.statistics.total.redacted
        left_out = f", {len(report.left_out):,} dialogues left out" if report.left_out else ""
        logger.info(
            f"Written to {to}: {len(prepared.train):,} dialogues, {redacted:,} passages redacted in total{left_out}."
        )
    if as_json:
        return report.as_dict() | {"redactions": prepared.statistics.total.redacted}, report.is_refused
    return format_audit(report, recipe.audit), report.is_refused


def _prepare(recipe: Recipe, *, accept_template: bool) -> PreparedRun:
    """Return the data of a recipe, without the dialogues that its audit leaves out."""
    recipe, parent = complete_recipe(recipe)
    plan = make_plan(recipe, describe_cpu())
    prepared = prepare_run(plan, parent, accept_template=accept_template)
    return audit_run(prepared, plan)[0] if plan.audit.dropped else prepared


def _collect_rows(prepared: PreparedRun, count: int) -> list[dict[str, object]]:
    """Return the encoded rows of the first `count` training dialogues with their places."""
    return [
        {"path": path, "line": line, "input_ids": row.input_ids, "labels": row.labels}
        for path, line, rows in islice(prepared.train.read_rows(), count)
        for row in rows
    ]
