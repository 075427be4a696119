"""Compare base and adapted model again, on held-out dialogues or on a file of the user."""

from typing import Any

from lora_chat.config.recipe import EvaluationSection
from lora_chat.errors import RecipeError
from lora_chat.models.adapter_files import is_adapter
from lora_chat.pipeline.compare import compare_run, headline, measure
from lora_chat.pipeline.held_out import Own, find_held_out
from lora_chat.pipeline.open_adapter import Trust, open_thing
from lora_chat.sharing.parcel import is_parcel
from lora_chat.system.console import say
from lora_chat.system.user_path import user_path


def evaluate_thing(thing: str, own: Own, trust: Trust) -> dict[str, Any]:
    """Compare base and adapted once more: a run on what it held out, anything on files of one's own."""
    if own.data is None and (is_parcel(user_path(thing)) or is_adapter(user_path(thing))):
        raise RecipeError(f"{thing} brings no dialogues to measure with: name some with --data FILE.")
    if own.questions is not None and own.data is None:
        raise RecipeError("--questions belongs to --data: what a run held out has its own questions.")
    opened = open_thing(thing, say, trust)
    prepared = find_held_out(opened, own)
    model: Any = opened.found.load(opened.precision)
    if opened.run is not None and own.data is None:
        report = compare_run(model, prepared, opened.run.read_plan().evaluation, opened.run)
    else:
        report = measure(model, prepared, EvaluationSection())
    return {"run" if opened.run else "adapter": str(opened.run.path if opened.run else thing), **headline(report)}
