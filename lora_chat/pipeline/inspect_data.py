"""Look at the data of a recipe as a run would see it; no weights are loaded."""

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from lora_chat.audit.format import whole_audit
from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.data.format import shown_dialogues, whole_account
from lora_chat.pipeline.audit_data import audit_sets
from lora_chat.pipeline.prepare import PreparedRun, prepare
from lora_chat.system.atomic_write import file_written_whole
from lora_chat.system.console import Part, say
from lora_chat.system.hardware import detect_hardware


def look_at_data(recipe: Recipe, count: int, *, as_json: bool) -> "dict[str, Any] | list[Part]":
    """The account of a recipe's data with its first `count` training dialogues: as text, or for machines."""
    prepared = prepare(make_plan(recipe, detect_hardware()), say)
    if as_json:
        return prepared.account.as_dict() | ({"shown": _rows(prepared, count)} if count else {})
    return [whole_account(prepared.account), *shown_dialogues(prepared.train, prepared.tokenizer, count)]


def audit_recipe(recipe: Recipe, to: Path | None, *, as_json: bool) -> "tuple[dict[str, Any] | str, bool]":
    """What an audit finds, and whether the recipe refuses it; `to` gets the training dialogues as they are trained."""
    prepared = prepare(make_plan(recipe, detect_hardware()), say)
    report = audit_sets(
        prepared.train,
        prepared.validation,
        prepared.tokenizer,
        recipe.audit,
        say,
        questions=prepared.questions,
        template=recipe.data.template,
    )
    if to:
        with file_written_whole(to, "the dialogues") as file:
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in prepared.training_lines())
        redacted = prepared.account.total["redacted"]
        say(f"Written to {to}: {len(prepared.train):,} dialogues, {redacted:,} stretches redacted in all.")
    if as_json:
        return asdict(report) | {"redactions": prepared.account.total["redacted"]}, report.refuses
    return whole_audit(report, recipe.audit), report.refuses


def _rows(prepared: PreparedRun, count: int) -> list[dict[str, Any]]:
    return [
        {"path": path, "line": line, "input_ids": row.input_ids, "labels": row.labels}
        for path, line, rows in islice(prepared.train.read_rows(), count)
        for row in rows
    ]
