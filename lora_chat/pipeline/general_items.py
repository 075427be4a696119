"""The general items of a run: chosen before weights load, kept in its folder, and asked again by `eval`."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.audit.redactor import Redactor
from lora_chat.config.audit import FindingKind
from lora_chat.config.limits import GENERAL_MAX_NEW_TOKENS
from lora_chat.config.recipe import GENERAL_CHOICES
from lora_chat.data.encoding.bundled_templates import find_bundled_template
from lora_chat.errors import DataError, IntegrityError, first_line
from lora_chat.evaluation.general.items import GeneralItem, read_items, read_shipped_items
from lora_chat.evaluation.general.measure import render_prompts
from lora_chat.evaluation.general.selection import SHIPPED_NAME, GeneralSet, leave_out_unknown_scripts
from lora_chat.models.base_model import LocalBase, load_meta_model, read_max_positions
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.hashing import digest_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MIN_WEIGHTS = 10_000_000
"""Weights of a base below which `auto` asks nothing, because such a model is made for tests."""
FOREIGN_TEMPLATE_NOTE = (
    "The chat template is not from the base, so the base answers in a form that it was not trained on."
)


def read_general_file(setting: str, redacted: frozenset[FindingKind] = frozenset()) -> tuple[GeneralItem, ...]:
    """Return the items of the user's file, redacted like the dialogues; none for the shipped set.

    Raises DataError with file and line.
    """
    if setting in GENERAL_CHOICES:
        return ()
    items = read_items(setting)
    if redacted:
        redactor = Redactor(redacted)
        items = [item.with_texts(redactor.transform_texts(item.texts)) for item in items]
    return tuple(items)


def choose_general_set(
    setting: str,
    items: Sequence[GeneralItem],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    weights: int,
    positions: int | None = None,
) -> GeneralSet | None:
    """Return the set that a setting names, before a planner takes a part of it; None if nothing is asked.

    `items` are those of the user's file. Raises DataError for an item in it that cannot be asked.
    """
    if setting == "off" or (setting == "auto" and weights < MIN_WEIGHTS):
        return None
    notes = [FOREIGN_TEMPLATE_NOTE] if find_bundled_template(digest_text(str(tokenizer.chat_template))) else []
    if items:
        check_askable(items, tokenizer, positions)
        return GeneralSet(tuple(items), len(items), Path(setting).name, tuple(notes))
    shipped = read_shipped_items()
    known = leave_out_unknown_scripts(shipped, tokenizer)
    if len(known) < len(shipped):
        notes.append(
            f"{len(shipped) - len(known)} Chinese items are left out, because the base's vocabulary has few Chinese "
            "words."
        )
    try:
        check_askable(known, tokenizer, positions)
    except DataError as error:
        if setting == "auto":
            logger.warning(f"No general items are asked: {first_line(error)}")
            return None
        raise
    return GeneralSet(tuple(known), len(known), notes=tuple(notes), is_sampled=setting == "auto")


def check_askable(items: Sequence[GeneralItem], tokenizer: "PreTrainedTokenizerBase", positions: int | None) -> None:
    """Raise DataError if the chat template refuses items, or if one is longer than the base can read."""
    prompts = render_prompts(tokenizer, items)
    longest = (positions or 10**9) - GENERAL_MAX_NEW_TOKENS
    for item, prompt in zip(items, prompts, strict=True):
        if len(prompt) > longest:
            raise DataError(f"{item.path}:{item.line}: the prompt has {len(prompt):,} tokens; at most {longest:,} fit.")


def read_kept_general(run: RunFolder, setting: str) -> GeneralSet | None:
    """Return the items that a run asked; None if it asked none. Raises IntegrityError if its file is damaged."""
    if not run.general.is_file():
        return None
    try:
        items = tuple(replace(item, path="", line=0) for item in read_items(str(run.general)))
    except DataError as error:
        raise IntegrityError(f"{run.general} is damaged: {error}") from error
    if setting not in GENERAL_CHOICES:
        return GeneralSet(items, len(items), Path(setting).name)
    languages = {item.language for item in items}
    available = sum(item.language in languages for item in read_shipped_items())
    return GeneralSet(items, max(available, len(items)), SHIPPED_NAME)


def choose_evaluation_set(
    setting: str | None, run: RunFolder | None, base: LocalBase, tokenizer: "PreTrainedTokenizerBase"
) -> GeneralSet | None:
    """Return the general items of `eval`: with `auto` or None those that a run asked, otherwise a sample.

    Raises DataError for a file that cannot be asked.
    """
    if run is not None and setting in (None, "auto"):
        general = read_kept_general(run, run.read_plan().evaluation.general)
        if general or setting is None:
            return general
    setting = setting or "auto"
    if setting == "off":
        return None
    items = read_general_file(setting)
    weights = sum(weight.numel() for weight in load_meta_model(base).parameters())
    general = choose_general_set(setting, items, tokenizer, weights=weights, positions=read_max_positions(base))
    return general and general.take(min(general.counts))


def take_planned_items(general: GeneralSet | None, planned: int | None, earlier: RunFolder | None) -> GeneralSet | None:
    """Return the items that a run asks: the planned number, without an estimate the smallest.

    A resumed run asks as many as before, although its estimate may differ.
    """
    if general is None or not general.is_sampled:
        return general
    if earlier is not None and earlier.general.is_file():
        planned = len(read_items(str(earlier.general)))
    return general.take(planned or min(general.counts))
