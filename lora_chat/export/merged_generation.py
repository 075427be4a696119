"""Generation settings of a merged model: the base's own, without the fields that contradict one another."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from lora_chat.models.base_settings import read_lenient_json_object

logger = logging.getLogger(__name__)

GENERATION_CONFIG_NAME = "generation_config.json"
_METADATA = ("_from_model_config", "transformers_version")
_SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
"""Settings that have an effect only with `do_sample`."""
_COUNT_FIELDS = (
    *("top_k", "num_beams", "num_return_sequences", "no_repeat_ngram_size", "max_length", "max_new_tokens"),
    *("min_length", "min_new_tokens", "num_beam_groups"),
)
_NUMBER_FIELDS = (
    *(name for name in _SAMPLING_FIELDS if name not in _COUNT_FIELDS),
    *("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "diversity_penalty", "guidance_scale"),
)
_BEAM_FIELDS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "constraints")
"""Settings that have an effect only with several beams."""


def write_generation_config(
    folder: Path, base_folder: Path, stop_ids: Sequence[int], pad_id: int | None, bos_id: int | None
) -> None:
    """Write the generation_config.json of a merged model, with the stop ids and the pad id of training.

    `bos_id` is used if the base has no such file.
    """
    base = read_lenient_json_object(base_folder / GENERATION_CONFIG_NAME)
    if base is None:
        base = {} if bos_id is None else {"bos_token_id": bos_id}
    settings = select_valid_settings(base)
    if dropped := sorted(base.keys() - settings.keys() - {*_METADATA}):
        logger.info(f"Left out of the merged {GENERATION_CONFIG_NAME}, without effect or invalid: {', '.join(dropped)}")
    settings = {**settings, "eos_token_id": list(stop_ids)}
    if pad_id is not None:
        settings["pad_token_id"] = pad_id
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / GENERATION_CONFIG_NAME).write_text(text, encoding="utf-8")


def select_valid_settings(settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the settings without those that have no effect, and without those that Transformers refuses.

    Some bases, such as Vicuna and Llama 2, are greedy with a temperature; Transformers cannot save such settings.
    """
    unused = {
        *_METADATA,
        *(() if _samples(settings) else ("do_sample", *_SAMPLING_FIELDS)),
        *(() if _has_beams(settings) else _BEAM_FIELDS),
    }
    chosen: dict[str, JsonValue] = {
        name: value for name, value in settings.items() if name not in unused and value is not None
    }
    if _is_valid(chosen):
        return chosen
    valid: dict[str, JsonValue] = {}
    for name, value in chosen.items():  # one by one, because a message names only the first contradiction
        if _is_valid({**valid, name: value}):
            valid[name] = value
    return valid


def _samples(settings: Mapping[str, JsonValue]) -> bool:
    """Return whether the settings ask for sampling; a temperature of 0 means greedy replies."""
    temperature = settings.get("temperature", 1.0)
    is_zero = isinstance(temperature, int | float) and temperature <= 0
    return settings.get("do_sample") is True and not is_zero


def _has_beams(settings: Mapping[str, JsonValue]) -> bool:
    """Return whether the settings ask for several beams."""
    beams = settings.get("num_beams")
    return type(beams) is int and beams > 1


def _is_valid(settings: Mapping[str, JsonValue]) -> bool:
    """Return whether Transformers accepts the settings as a file that it would write."""
    from transformers import GenerationConfig

    # Transformers checks no types, and `generate` then fails.
    if any(type(settings[name]) is not int for name in _COUNT_FIELDS if name in settings) or any(
        type(settings[name]) not in (int, float) for name in _NUMBER_FIELDS if name in settings
    ):
        return False
    try:
        GenerationConfig.from_dict(dict(settings)).validate(strict=True)
    except Exception:  # untrusted values raise many types of errors
        return False
    return True
