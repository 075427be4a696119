"""The adapter folded into a 16-bit base: the base's values as they were trained against."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.delivery.proof import ProofReport, check_agreement, collect_logits
from lora_chat.errors import RecipeError
from lora_chat.models.adapter import load_adapter, merge_adapter
from lora_chat.models.base_model import FoundBase, load_base_model
from lora_chat.models.dequantised import load_dequantised
from lora_chat.models.loading import FoundAdapter
from lora_chat.planning.plan import PrecisionPlan
from lora_chat.writing import folder_written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge(
    found: FoundAdapter,
    precision: PrecisionPlan,
    stop_ids: Sequence[int],
    probes: Sequence[list[int]],
    to: Path,
    notice: Callable[[str], None],
) -> ProofReport:
    """Merge into the dequantised base, write it, read it again, compare it with the adapted model.

    The base is quantised exactly as in training and then dequantised: the adapter learned against those
    values, and a live 4-bit model must not be merged into. `probes` are token ids of held-out dialogues.
    Raises IntegrityError if the written model does not agree; then nothing is kept.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RecipeError(f"{to} is there already; a merged model is never written over something. Name a new folder.")
    notice("Asking the adapted model")
    adapted = load_adapter(load_base_model(found.base, precision), found.stored)
    expected = collect_logits(adapted, probes)
    del adapted
    notice("Merging into the base as it was trained against")
    merged = merge_adapter(load_adapter(load_dequantised(found.base, precision), found.stored))
    with folder_written_whole(to, "the merged model") as folder:
        _write(merged, found, stop_ids, folder)
        del merged
        notice("Reading the merged model again and comparing")
        plain = precision.model_copy(update={"mode": "none"})
        again = load_base_model(FoundBase(str(to), folder), plain)
        report = check_agreement(expected, collect_logits(again, probes), precision.mode)
        (folder / "proof.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    return report


def _write(merged: "PreTrainedModel", found: FoundAdapter, stop_ids: Sequence[int], folder: Path) -> None:
    settings: Any = merged.generation_config
    settings.eos_token_id = list(stop_ids)
    settings.pad_token_id = found.tokenizer.pad_token_id
    merged.save_pretrained(folder)
    found.tokenizer.save_pretrained(folder)
