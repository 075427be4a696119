"""The check, before weights load, that the metrics of replies that a recipe lists can be measured on its data."""

from lora_chat.config.recipe import EvaluationSection
from lora_chat.errors import RecipeError
from lora_chat.evaluation.reply_items import read_reply_items
from lora_chat.evaluation.reply_kinds import lacks_data
from lora_chat.evaluation.written_calls import are_calls_readable
from lora_chat.pipeline.prepare import PreparedEvaluation


def check_listed_metrics(prepared: PreparedEvaluation, settings: EvaluationSection) -> None:
    """Raise RecipeError for a listed metric, or a pattern, without data. Metrics that `auto` chooses have data."""
    if settings.metrics == "auto" and settings.number_pattern is None:
        return
    names = ("numeric_match",) if settings.metrics == "auto" else settings.metrics
    key = "evaluation.number_pattern" if settings.metrics == "auto" else "evaluation.metrics"
    items = read_reply_items(
        prepared.compared, prepared.tokenizer, samples=settings.samples, replies=settings.reply_count
    )
    if not items:
        raise RecipeError(
            f"{key} is set, but no held-out prompt is answered. Fix: name a validation set (data.validation or "
            "data.validation_share) and set evaluation.replies above 0, or remove the setting."
        )
    for name in names:
        reason = lacks_data(name, items, settings.number_pattern)
        if reason is None and name == "tool_calls":
            is_readable = are_calls_readable(items, prepared.tokenizer, prepared.stop_ids)
            reason = None if is_readable else "calls in the form of this chat template are not read from replies"
        if reason is not None:
            raise RecipeError(f"{key}: {name} cannot be measured, because {reason}. Fix: change {key}.")
