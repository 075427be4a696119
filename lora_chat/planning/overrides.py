"""Plans with other values of settings, and the difference of two plans in the form of `--set`."""

from collections.abc import Iterable

from lora_chat.config.plan import Plan

Overrides = dict[str, dict[str, object]]
"""New values of settings, by section and name."""


def with_training(plan: Plan, **training: object) -> Plan:
    """Return the plan with other training settings."""
    return plan.model_copy(update={"training": plan.training.model_copy(update=training)})


def training_differences(plan: Plan, other: Plan) -> Overrides:
    """Return the training settings in which `other` differs."""
    before, after = plan.training.model_dump(), other.training.model_dump()
    return {"training": {key: value for key, value in after.items() if before[key] != value}}


def apply_overrides(plan: Plan, parts: Iterable[Overrides]) -> Plan:
    """Return the plan with new values."""
    for part in parts:
        for section, values in part.items():
            plan = plan.model_copy(update={section: getattr(plan, section).model_copy(update=values)})
    return plan


def format_overrides(before: Plan, after: Plan) -> list[str]:
    """Return the changed settings in the form of `--set`."""
    recipe_names = {"precision": "quantization"}
    overrides = []
    for section in ("training", "precision"):
        old, new = (getattr(plan, section).model_dump() for plan in (before, after))
        for key, value in new.items():
            if old[key] != value and key not in ("gradient_accumulation_steps", "cached_layers"):
                text = str(value).lower() if isinstance(value, bool) else str(value)
                overrides.append(f"{recipe_names.get(section, section)}.{key}={text}")
    return overrides
