"""The comment at the beginning of a new recipe."""

from pathlib import Path

from lora_chat.pipeline.new.base_candidates import BaseCandidate
from lora_chat.pipeline.new.inputs import RecipeInputs
from lora_chat.pipeline.new.recipe_text import RecipeDraft
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.format import format_duration, format_gib
from lora_chat.system.sanitize import sanitize_line


def introduce(draft: RecipeDraft, inputs: RecipeInputs, chosen: BaseCandidate) -> None:
    """Set the summary and the comment of a recipe: the task, the figures of the plan, and the commands that follow."""
    profile, name = inputs.profile, inputs.path.name
    unit = ("text" if profile.is_text else "dialogue") + ("s" if profile.rows != 1 else "")
    more = "at least " if profile.is_part else ""
    languages = " and ".join(profile.languages) or "no words"
    title = inputs.task.title
    data = sanitize_line(Path(inputs.data).name, 80)
    draft.summary = f"{title[:1].upper()}{title[1:]}: {more}{profile.rows:,} {unit} of {data}, in {languages}."
    draft.introduction = [
        f"Written by `lora-chat new` for {sanitize_line(inputs.target.device.name, 80)}. "
        f"Task: {inputs.task_name}, because {inputs.task_reason}."
    ]
    if chosen.estimate is not None:
        draft.introduction.append(format_figures(chosen.estimate))
    draft.introduction.append(
        f"Look at it first: lora-chat data {name} --show 3; lora-chat audit {name} finds secrets and personal data. "
        f"Train: lora-chat sft {name}"
    )


def format_figures(estimate: RunEstimate) -> str:
    """Return memory and time of a plan as a sentence."""
    memory = f"{format_gib(estimate.peak)} of {format_gib(estimate.target.free)} GiB"
    total = estimate.total_time
    if total is None:
        return f"Planned: {memory} of memory; the time is unknown."
    span = f"{format_duration(total.low)} to {format_duration(total.high)}"
    is_quick_look = estimate.target.at_hand and estimate.target.device == "cpu"
    source = ", by a quick look at this machine; `lora-chat plan` measures it" if is_quick_look else ""
    return f"Planned: {memory} of memory; roughly {format_duration(total.likely)} ({span}){source}."
