"""The settings that a run inherits from its parent, and the refusal of settings that contradict it."""

import logging
from typing import TYPE_CHECKING

from lora_chat.config.inherited_settings import FREE_ADAPTER_SETTINGS, find_inherited_settings
from lora_chat.config.plan import Plan
from lora_chat.config.recipe import AdapterSection, BaseSection, Recipe
from lora_chat.errors import IntegrityError, RecipeError, UnavailableError
from lora_chat.models.adapter import list_adapted_layers, resolve_targets
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.base_model import LocalBase, load_meta_model, load_tokenizer
from lora_chat.models.foreign.tokenizer_check import check_tokenizer_beside
from lora_chat.models.identity import UNCOVERED_BY_VERSION_1, compute_identity, list_identity_differences
from lora_chat.pipeline.choose_template import install_trained_template
from lora_chat.pipeline.open_adapter import TrustOptions, find_adapter_base
from lora_chat.pipeline.parent import Parent, find_parent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_LAYER_SETTINGS = ("target_modules", "layers", "rank_pattern", "alpha_pattern", "experts")
"""Settings that select layers, which are compared when the base is known: several texts can mean the same layers."""


def complete_recipe(recipe: Recipe) -> tuple[Recipe, Parent | None]:
    """Return a recipe with the settings of its parent, and the parent; for commands that train nothing."""
    if recipe.adapter.start is None:
        return recipe, None
    base = recipe.base if "name" in recipe.base.model_fields_set else None
    parent = find_parent(recipe.adapter.start, recipe.adapter.stack or "start", base)
    return inherit_settings(recipe, parent), parent


def inherit_settings(recipe: Recipe, parent: Parent) -> Recipe:
    """Return a recipe with the parent's values for all settings that it leaves out.

    Raises RecipeError for settings that contradict the parent, UnavailableError if the recipe names no base and the
    parent's base is not on this machine.
    """
    inherited = find_inherited_settings(recipe)
    base, quantization, adapter = recipe.base, recipe.quantization, recipe.adapter
    if "name" in inherited["base"]:
        named = _find_base_of_parent(parent)
        revision = recipe.base.revision or named.revision
        base = base.model_copy(update={"name": named.name, "revision": revision})
    elif base.revision is None and base.name == parent.stored.base[0]:
        base = base.model_copy(update={"revision": parent.stored.base[1]})
    precision = parent.record.precision
    if precision is not None:
        trained = {name: getattr(precision, name) for name in inherited["quantization"]}
        quantization = quantization.model_copy(update=trained)
    data, identity = recipe.data, parent.stored.identity
    if "keep_tokens" in inherited["data"] and identity is not None and identity.kept_tokens:
        data = data.model_copy(update={"keep_tokens": identity.kept_tokens})
    if not parent.is_merged:
        settings = parent.settings.to_section()
        _refuse_contradictions(adapter, settings, parent)
        fields = settings.model_dump() | {name: getattr(adapter, name) for name in ("start", "stack")}
        chosen = {*FREE_ADAPTER_SETTINGS, *_LAYER_SETTINGS} - {*inherited["adapter"]}
        fields |= {name: getattr(adapter, name) for name in chosen}
        adapter = AdapterSection.model_validate(fields)
    changes = {"base": base, "quantization": quantization, "adapter": adapter, "data": data}
    return recipe.model_copy(update=changes)


def _find_base_of_parent(parent: Parent) -> BaseSection:
    """Return the base that a parent names, if it was made here or its base is on this machine."""
    name, revision = parent.stored.base
    if not parent.record.made_by_user:
        try:
            find_adapter_base(parent.stored, TrustOptions(), untrusted_name=True)
        except UnavailableError as error:
            raise UnavailableError(str(error).replace("--base ", "--set base.name=")) from error
    return BaseSection(name=name, revision=revision)


def _refuse_contradictions(chosen: AdapterSection, settings: AdapterSection, parent: Parent) -> None:
    """Raise RecipeError for settings of a recipe that differ from the parent's."""
    contradictions = []
    for name in sorted(chosen.model_fields_set - {*FREE_ADAPTER_SETTINGS, *_LAYER_SETTINGS}):
        wanted, present = getattr(chosen, name), getattr(settings, name)
        if wanted != present:
            contradictions.append(f"adapter.{name} is {wanted}, and the parent has {present}")
    if contradictions:
        raise RecipeError(
            f"{parent.name} is continued with its own settings, which the recipe contradicts: "
            f"{'; '.join(contradictions)}. Fix: leave these settings out of the recipe, or merge the parent and train "
            "a new adapter with --set adapter.stack=merge_first."
        )


def install_parent_template(parent: Parent, tokenizer: "PreTrainedTokenizerBase", *, accept: bool) -> None:
    """Set the chat template of the parent's training. Raise ConsentError for one of a stranger without `accept`."""
    install_trained_template(parent.stored, tokenizer, accept=accept, made_by_user=parent.record.made_by_user)


def check_parent_tokenizer(parent: Parent, base: LocalBase, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise IntegrityError if another tool saved a tokenizer beside the parent that differs from the base's."""
    if parent.stored.folder is None:
        return
    template, before = tokenizer.chat_template, dict(tokenizer.special_tokens_map)
    tokenizer.chat_template = parent.stored.template or template
    try:
        check_tokenizer_beside(parent.stored.name, parent.stored.folder, base, tokenizer, force=False)
        changed = dict(tokenizer.special_tokens_map) != before
    except IntegrityError as error:
        raise IntegrityError(str(error).partition("\n")[0] + _MERGE_FIX) from error
    finally:
        tokenizer.chat_template = template
    if changed:
        raise IntegrityError(
            f"The chat template of {parent.name} writes other special tokens than those of {base.name}." + _MERGE_FIX
        )


_MERGE_FIX = "\nFix: merge it with lora-chat merge, --base and --to DIR, and use DIR as base.name."


def check_parent_base(parent: Parent, tokenizer: "PreTrainedTokenizerBase", base: LocalBase, plan: Plan) -> None:
    """Raise IntegrityError or RecipeError unless the parent belongs to a base and its targets are those of the plan.

    `tokenizer` has the chat template of the run. Its new tokens are not those of the parent.
    """
    plain = load_tokenizer(base) if plan.adapter.new_tokens else tokenizer
    plain.chat_template = tokenizer.chat_template
    identity, trained = compute_identity(base, plain), parent.stored.identity
    if trained is None:
        logger.warning(f"{parent.name} does not name the weights it was trained on; only names and shapes are checked.")
    elif changed := list_identity_differences(trained, identity, base):
        fix = "leave base.name out of the recipe"
        if changed and all(part.startswith("chat template") for part in changed):
            fix = "leave data.template out of the recipe"
        raise IntegrityError(
            f"{parent.name} cannot be continued, because it belongs to another base or template: other "
            f"{' and '.join(changed)}.\nIt was trained on {trained.base}"
            + (f" at revision {trained.revision}" if trained.revision else "")
            + f"; the recipe has {identity.base}. Fix: {fix}, or name the base that it was trained on."
        )
    elif trained.version == 1:
        logger.warning(f"{parent.name} was made by an older version; it does not cover {UNCOVERED_BY_VERSION_1}.")
    if (
        not parent.is_merged
        and LoraSettings.from_section(plan.adapter).target_modules != parent.settings.target_modules
    ):
        _check_same_layers(parent, base, plan.adapter)
    precision = parent.record.precision
    if precision is not None and precision.mode != plan.precision.mode:
        logger.info(
            f"The parent was trained on the base in {precision.mode}, and this run uses {plan.precision.mode}. The "
            "parent corrects other weights than those of this run, so its loss can be higher at the first step."
        )


def format_start(plan: Plan, parent: Parent) -> str:
    """Format the line about the parent in the summary of a run."""
    adapter, digest = parent.settings, parent.record.adapter[:12]
    if parent.is_merged:
        return f"{plan.adapter.start} (sha256 {digest}) merged into its base, then a new adapter"
    return (
        f"{plan.adapter.start} (sha256 {digest}), {adapter.variant.title} of rank {adapter.rank}, alpha "
        f"{adapter.alpha:g}, on {len(adapter.target_modules)} modules; the optimizer starts new"
    )


def _check_same_layers(parent: Parent, base: LocalBase, chosen: AdapterSection) -> None:
    """Raise RecipeError unless a recipe selects the layers on which the parent has LoRA, with the same ranks."""
    skeleton = load_meta_model(base)
    settings = resolve_targets(skeleton, chosen)
    wanted, present = list_adapted_layers(skeleton, settings), list_adapted_layers(skeleton, parent.settings)
    differing = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if not differing and settings.experts != parent.settings.experts:
        raise RecipeError(
            f"adapter.experts contradicts {parent.name}, which has other experts. Fix: leave it out of the recipe."
        )
    if differing:
        name = differing[0]
        owners = ("the recipe", wanted.get(name)), ("the parent", present.get(name))
        descriptions = [
            f"{owner} has " + (f"LoRA of rank {sizes[0]} and alpha {sizes[1]:g}" if sizes else "no LoRA")
            for owner, sizes in owners
        ]
        raise RecipeError(
            f"The layers of the recipe contradict {parent.name}, which is continued with its own layers: on "
            f"{name} {' and '.join(descriptions)} ({len(differing)} layers differ). Fix: leave "
            f"{', '.join(f'adapter.{setting}' for setting in _LAYER_SETTINGS)} out of the recipe."
        )
