"""The steps from data to a checked recipe: measure, plan bases, choose, explain and check."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lora_chat.config.load import parse_recipe
from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import BaseSection, Recipe
from lora_chat.errors import DataError, OutOfMemoryError
from lora_chat.models.base_config import find_planned_base
from lora_chat.models.base_model import is_base_local
from lora_chat.models.hub import can_reach_hub
from lora_chat.pipeline.check_metrics import check_listed_metrics
from lora_chat.pipeline.new.base_candidates import (
    BaseCandidate,
    BasePlanner,
    PlanningTask,
    choose_default,
    list_candidates,
)
from lora_chat.pipeline.new.base_proposals import EMBEDDED_BASE, find_proposal
from lora_chat.pipeline.new.data_settings import (
    write_evaluation,
    write_held_out,
    write_lengths,
    write_source,
    write_wording,
)
from lora_chat.pipeline.new.inputs import (
    NewRecipeRequest,
    RecipeInputs,
    RecipeLocation,
    find_location,
    read_inputs,
    with_settings,
)
from lora_chat.pipeline.new.introduction import introduce
from lora_chat.pipeline.new.recipe_text import RecipeDraft, format_recipe
from lora_chat.pipeline.new.sibling_files import find_held_out_files
from lora_chat.pipeline.new.task_kinds import find_contradiction
from lora_chat.pipeline.new.token_lengths import MEASURED_LENGTH, LengthLimit, TokenLengths, measure_tokens
from lora_chat.pipeline.new.training_settings import write_adapter, write_base, write_learning_rate, write_training
from lora_chat.pipeline.new.user_questions import UserQuestions
from lora_chat.pipeline.prepare import prepare_run
from lora_chat.planning.format import format_refusal
from lora_chat.system.atomic_write import write_new_text
from lora_chat.system.hardware import describe_cpu
from lora_chat.system.sanitize import sanitize_line

_BLOCK_LENGTH = 1024
"""Length of the blocks by which plain text is measured, in tokens."""


_TOOLS_TEMPLATE = "chatml_tools"


class ProposalView(Protocol):
    """The display of proposals before the user chooses."""

    def show_data(self, inputs: RecipeInputs) -> None:
        """Show the profile of the data and its task."""

    def show_bases(self, inputs: RecipeInputs, candidates: Sequence[BaseCandidate], chosen: BaseCandidate) -> None:
        """Show the bases that were planned, and the default."""


@dataclass(frozen=True)
class NewRecipe:
    """A recipe that was checked and written, with the reasons for its settings."""

    inputs: RecipeInputs
    text: str
    lengths: TokenLengths
    candidates: Sequence[BaseCandidate]
    chosen: BaseCandidate
    notes: Sequence[str]

    def as_dict(self) -> dict[str, object]:
        """Return everything for JSON."""
        inputs, roles = self.inputs, self.inputs.roles
        return {
            "recipe": str(inputs.path.absolute()),
            "task": inputs.task_name,
            "task_reason": inputs.task_reason,
            "profile": inputs.profile.as_dict(),
            "tokens": self.lengths.as_dict(),
            "columns": roles.as_columns if roles is not None else None,
            "columns_are_a_guess": roles is not None and roles.is_guess,
            "device": inputs.target.device.name,
            "base": self.chosen.name,
            "quantization": self.chosen.mode,
            "candidates": [candidate.as_dict() for candidate in self.candidates],
            "notes": list(self.notes),
        }


def make_new_recipe(request: NewRecipeRequest, questions: UserQuestions, view: ProposalView) -> NewRecipe:
    """Write a checked recipe for the data and the device of a request, and return it.

    Raises an error of `sft` if it would refuse the recipe; then nothing is written.
    """
    location = find_location(request, questions)
    if location.example is not None:
        location.example.copy_to(location.folder)
    try:
        recipe = _make(request, location, questions, view)
        write_new_text(location.path, recipe.text, "a new recipe")
    except BaseException:
        if location.example is not None:
            shutil.rmtree(location.folder, ignore_errors=True)
        raise
    return recipe


def _make(
    request: NewRecipeRequest, location: RecipeLocation, questions: UserQuestions, view: ProposalView
) -> NewRecipe:
    """Return a checked recipe."""
    inputs = read_inputs(request, location, questions)
    view.show_data(inputs)
    only = request.base or _read_base_setting(inputs)
    files, notes = _find_held_out(inputs, location)
    draft = RecipeDraft("", sections={name: {} for name in ("base", "quantization", "adapter", "data", "training")})
    write_source(draft, inputs.source.section, inputs.roles, "format" not in inputs.settings.get("data", {}))
    draft.set("data", "train", location.data if location.example else draft.sections["data"]["train"].value)
    write_wording(draft, inputs.task_name, inputs.roles, inputs.profile)
    lengths = _measure(inputs, draft, only)
    limits = _list_limits(inputs, lengths)
    _write_settings(inputs, draft, lengths, limits[0], files)

    planner = BasePlanner(_make_planning_task(inputs, draft, limits))
    candidates = list(list_candidates(planner, only))
    is_available = _make_availability(inputs, only)
    chosen = choose_default(candidates, is_available)
    if not all(is_available(candidate.name) for candidate in candidates):
        notes.append(_explain_unavailable(candidates, chosen))
    view.show_bases(inputs, candidates, chosen)
    if only is None:
        name = questions.ask("Base, one of the table or another hub id?", chosen.name)
        if name is not None and name != chosen.name:
            chosen = planner.plan(find_proposal(name), name)
    if chosen.estimate is not None and not chosen.fits:
        raise OutOfMemoryError(format_refusal(chosen.estimate))

    write_lengths(draft, inputs.task, inputs.profile, lengths, chosen.limit)
    write_learning_rate(draft, inputs.task, chosen.weights)
    write_base(draft, chosen.name, chosen.mode, *_explain_base(inputs, chosen))
    introduce(draft, inputs, chosen)
    if is_base_local(BaseSection(name=chosen.name)):
        _write_tools(draft, inputs)
    text = format_recipe(with_settings(draft, inputs.settings))
    _check_recipe(parse_recipe(text, location.path), inputs, planner)
    notes = [
        *_note_answers(inputs),
        *inputs.source.local.notes,
        *([inputs.target.note] if inputs.target.note else []),
        *notes,
    ]
    return NewRecipe(inputs, text, lengths, candidates, chosen, notes)


def _note_answers(inputs: RecipeInputs) -> list[str]:
    """Return notes on answers that cannot belong to the task, or that are all the same."""
    profile = inputs.profile
    contradiction = find_contradiction(inputs.task_name, profile)
    if contradiction is not None:
        return [contradiction]
    if profile.rows < 2 or len(profile.first_replies) != 1 or profile.exchanges > 1 or profile.has_calls:
        return []
    answer = sanitize_line(profile.first_replies[0], 60)
    return [f"All answers are {answer!r}, so the model learns to answer this to everything."]


def _find_held_out(inputs: RecipeInputs, location: RecipeLocation) -> tuple[dict[str, str], list[str]]:
    """Return the validation and test data beside the training data, and notes.

    Data that the user named, or that cannot be read, is left out.
    """
    if location.example is not None:
        test = location.example.test
        return ({"test": str(location.folder / test.name)} if test is not None else {}), []
    files, notes = {}, []
    for setting, file in find_held_out_files(location.data).items():
        if {setting, f"{setting}_share"} & inputs.settings.get("data", {}).keys():
            continue
        draft = RecipeDraft("")
        write_source(draft, inputs.source.section, inputs.roles, "format" not in inputs.settings.get("data", {}))
        draft.set("data", setting, file)
        name = f"Split {setting} of the folder" if file == location.data else f"{Path(file).name}, beside the data,"
        try:
            inputs.check_files(draft)
        except DataError as error:
            notes.append(f"{name} is not used as {setting} data: {str(error).splitlines()[0]}")
        else:
            files[setting] = file
            notes.append(f"{name} is the {setting} data.")
    return files, notes


def _read_base_setting(inputs: RecipeInputs) -> str | None:
    """Return the base of `--set base.name`."""
    name = inputs.settings.get("base", {}).get("name")
    return name if isinstance(name, str) else None


def _measure(inputs: RecipeInputs, draft: RecipeDraft, only: str | None) -> TokenLengths:
    """Return the lengths of all rows, in tokens of the only base, or of the embedded one."""
    trial = with_settings(draft, inputs.settings)
    trial.set("data", "max_length", _BLOCK_LENGTH if inputs.profile.is_text else MEASURED_LENGTH)
    trial.set("data", "over_long", "drop")
    for key in ("validation", "test", "test_share"):
        trial.drop("data", key)
    trial.set("data", "validation_share", 0.0)
    _write_tools(trial, inputs)
    base = find_planned_base(BaseSection(name=only or EMBEDDED_BASE))
    recipe = parse_recipe(format_recipe(trial), inputs.path)
    return measure_tokens(recipe, base, inputs.target.hardware, inputs.profile.reply_texts)


def _list_limits(inputs: RecipeInputs, lengths: TokenLengths) -> list[LengthLimit]:
    """Return the length limits to try, the longest first."""
    setting = inputs.settings.get("data", {}).get("max_length")
    if isinstance(setting, int):
        return [LengthLimit(setting, int((lengths.rows.tokens > setting).sum()) + lengths.num_longer)]
    return [LengthLimit(lengths.choose_block_length(), 0)] if inputs.profile.is_text else lengths.list_limits()


def _write_settings(
    inputs: RecipeInputs, draft: RecipeDraft, lengths: TokenLengths, limit: LengthLimit, files: Mapping[str, str]
) -> None:
    """Set everything that does not depend on the base."""
    profile = inputs.profile
    rows = max(1, lengths.total // limit.tokens) if profile.is_text else lengths.count
    write_held_out(draft, profile, rows, rows if profile.is_text else lengths.num_distinct, files)
    write_adapter(draft, profile)
    write_training(draft, inputs.task, profile, rows)
    write_evaluation(draft, inputs.task, profile, lengths)


def _make_planning_task(inputs: RecipeInputs, draft: RecipeDraft, limits: Sequence[LengthLimit]) -> PlanningTask:
    """Return the task for which bases are planned, with all rows that are measured."""
    trial = with_settings(draft, inputs.settings)
    trial.set("data", "max_length", limits[0].tokens if inputs.profile.is_text else MEASURED_LENGTH)
    trial.set("data", "over_long", "drop")
    _write_tools(trial, inputs)
    recipe = parse_recipe(format_recipe(trial), inputs.path)
    mode = inputs.settings.get("quantization", {}).get("mode")
    languages = inputs.profile.languages
    target = inputs.target
    return PlanningTask(recipe, target.device, target.hardware, limits, languages, str(mode) if mode else None)


def _make_availability(inputs: RecipeInputs, only: str | None) -> Callable[[str], bool]:
    """Return a function that says whether a base can be used: on this machine it must be here or on the hub."""
    answers: dict[str, bool] = {}

    def is_available(name: str) -> bool:
        if only is not None or not inputs.target.device.at_hand or is_base_local(BaseSection(name=name)):
            return True
        if "hub" not in answers:
            answers["hub"] = can_reach_hub(name)
        return answers["hub"]

    return is_available


def _explain_unavailable(candidates: Sequence[BaseCandidate], chosen: BaseCandidate) -> str:
    """Return the sentence for a machine that has no connection to the hub."""
    text = "the hub cannot be reached, so the default is a base on this machine. The others need a download."
    better = [candidate for candidate in candidates if candidate.fits and not candidate.missing]
    if chosen.missing and better:
        text += f" {better[0].name} reads {' and '.join(chosen.missing)}: --base {better[0].name}"
    return text[:1].upper() + text[1:]


def _explain_base(inputs: RecipeInputs, chosen: BaseCandidate) -> tuple[str, str]:
    """Return the reasons for a base and for its precision."""
    languages = [name for name in inputs.profile.languages if name not in chosen.missing]
    reason = f"reads {' and '.join(languages)}" if languages and chosen.license is not None else "fits the device"
    if chosen.missing:
        reason = f"has read little {' and '.join(chosen.missing)}, but no base that has is at hand"
    download = chosen.estimate.download_bytes if chosen.estimate is not None else None
    if download:
        reason += f"; a download of {download / 1e9:.1f} GB"
    if chosen.license is not None:
        reason += f"; {chosen.license}"
    if chosen.mode != "none":
        return reason, "without quantization it does not fit"
    return reason, "it fits without quantization, which is faster"


def _write_tools(draft: RecipeDraft, inputs: RecipeInputs) -> None:
    """Set a chat template that writes tools, for data with tools, because that of the embedded base leaves them out."""
    if inputs.profile.has_tools and "template" not in inputs.settings.get("data", {}):
        draft.set("data", "template", _TOOLS_TEMPLATE, "the template of this base leaves out tools")


def _check_recipe(recipe: Recipe, inputs: RecipeInputs, planner: BasePlanner) -> None:
    """Raise the error with which `data`, `plan` or `sft` would refuse the recipe."""
    planned = recipe
    if inputs.profile.has_tools and recipe.data.template is None:
        # The tokenizer of the base is not at hand; the template of the embedded one leaves out tools.
        planned = recipe.model_copy(update={"data": recipe.data.model_copy(update={"template": _TOOLS_TEMPLATE})})
    estimate = planner.estimate_recipe(planned, find_planned_base(recipe.base))
    if estimate.verdict == "does not fit":
        raise OutOfMemoryError(format_refusal(estimate))
    if is_base_local(recipe.base):
        plan = make_plan(recipe, describe_cpu())
        check_listed_metrics(prepare_run(plan), plan.evaluation)
