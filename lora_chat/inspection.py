"""Look at the data of a recipe as a run would see it; no weights are loaded."""

from itertools import islice
from typing import Any

from lora_chat.console import say
from lora_chat.data_view import shown_dialogues, whole_account
from lora_chat.planning.hardware import detect_hardware
from lora_chat.planning.plan import make_plan
from lora_chat.planning.recipe import Recipe
from lora_chat.preparation import PreparedRun, prepare


def look_at_data(recipe: Recipe, count: int, *, as_json: bool) -> "dict[str, Any] | str":
    """The account of a recipe's data with its first `count` training dialogues: as text, or for machines."""
    prepared = prepare(make_plan(recipe, detect_hardware()), say)
    if as_json:
        return prepared.account.as_dict() | ({"shown": _rows(prepared, count)} if count else {})
    return "\n".join([whole_account(prepared.account), *shown_dialogues(prepared.train, prepared.tokenizer, count)])


def _rows(prepared: PreparedRun, count: int) -> list[dict[str, Any]]:
    return [
        {"path": path, "line": line, "input_ids": row.input_ids, "labels": row.labels}
        for path, line, rows in islice(prepared.train.read_rows(), count)
        for row in rows
    ]
