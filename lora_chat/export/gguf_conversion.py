"""Convert a model folder to a GGUF: what llama.cpp's converter needs beside the files that Transformers 5 writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.errors import DataError, UsageError
from lora_chat.export.llama_cpp_converters import convert, find_converters
from lora_chat.models.architectures import find_architecture
from lora_chat.models.base_model import LocalBase, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE_MARK = "\u2581"
"""Character that SentencePiece writes for a space."""
_STRIPPING_NAME = "Phi-3"
"""Part of a model's name for which llama.cpp drops spaces after special tokens (`src/llama-vocab.cpp`, `load`)."""
_STRIPPING_NAMES = ("phi-3", "phi3")
_LETTER = "a"
_MIN_SECTIONED_HEAD = 32
"""Smallest size of heads for the sections 11, 11 and 10 that the converter writes."""


def convert_model(model: Path, gguf_type: str, to: Path, name: str) -> None:
    """Write a GGUF of a model folder in a float type."""
    options: list[Path | str] = ["--outfile", to, "--outtype", gguf_type]
    convert(find_converters() / "convert_hf_to_gguf.py", model, [*options, *prepare_conversion(model, name)])


def prepare_conversion(model: Path, name: str) -> list[Path | str]:
    """Complete the config of a model folder for the converter, and return the options that its tokenizer needs."""
    fields = _add_converter_fields(model / "config.json")
    tokenizer = load_tokenizer(LocalBase(str(model), model))
    options: list[Path | str] = ["--model-name", _name_model(tokenizer, name), "--added-fields", json.dumps(fields)]
    if (prefix := find_space_prefix(tokenizer)) is not None:
        options += ["--space-prefix", "yes" if prefix else "no"]
    return options


def find_space_prefix(tokenizer: "PreTrainedTokenizerBase") -> bool | None:
    """Return whether llama.cpp must put a space before a text that follows a special token or begins a prompt.

    None means that the tokenizer is not one of SentencePiece. Some put the space only before the first text, which
    llama.cpp cannot do; then the prompts of the chat template decide, because most of them begin with a special token.
    """
    vocabulary = tokenizer.get_vocab()
    special = sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    if not any(token.startswith(_SPACE_MARK) for token in vocabulary) or not special:
        return None
    after_special = _has_prefix(tokenizer, f"{special[0]}{_LETTER}", special)
    if after_special or not _has_prefix(tokenizer, _LETTER, special):
        return after_special
    prompt = _render_prompt(tokenizer)
    return prompt is None or not prompt.startswith(tuple(special))


def _has_prefix(tokenizer: "PreTrainedTokenizerBase", text: str, special: Sequence[str]) -> bool:
    """Return whether the first token of a text that is not special begins with a space."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    return next((token.startswith(_SPACE_MARK) for token in tokens if token not in special), False)


def _render_prompt(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a prompt under the chat template; None without a template or for one that fails."""
    if not tokenizer.chat_template:
        return None
    try:
        return render_texts(tokenizer, [[{"role": "user", "content": _LETTER}]], add_generation_prompt=False)[0]
    except DataError:  # a template that wants other messages
        return None


def _name_model(tokenizer: "PreTrainedTokenizerBase", name: str) -> str:
    """Return a name for which llama.cpp treats spaces after special tokens as the tokenizer does."""
    strips = any(token.special and token.rstrip for token in tokenizer.added_tokens_decoder.values())
    if strips:
        return name if _STRIPPING_NAME.lower() in name.lower() else f"{name} ({_STRIPPING_NAME})"
    return "model" if any(part in name.lower() for part in _STRIPPING_NAMES) else name


def _add_converter_fields(path: Path) -> dict[str, JsonValue]:
    """Add the fields that a converter needs and Transformers 5 does not write, such as GPT-2's `n_ctx`; return them."""
    config = json.loads(path.read_text(encoding="utf-8"))
    sections = _find_rope_sections(config)
    if sections:
        config["rope_parameters"] = {**config["rope_parameters"], "mrope_section": sections}
    needed = {
        name: config.get(name, _find_field(config, source, default))
        for name, source, default in find_architecture(config.get("model_type")).llama_cpp_fields
    }
    needed = {
        name: value for name, value in {**needed, **_find_attention_interval(config)}.items() if value is not None
    }
    if sections or needed.keys() - config.keys():
        path.write_text(json.dumps({**config, **needed}), encoding="utf-8")
    return needed


def _find_rope_sections(config: Mapping[str, JsonValue]) -> list[JsonValue]:
    """Return sections of Qwen3.5's positions for heads smaller than the converter's default needs; empty otherwise.

    Text has the same position in each section, so that the division does not change the result.
    """
    rope, size = config.get("rope_parameters"), config.get("head_dim")
    if not str(config.get("model_type")).startswith("qwen3_5") or not isinstance(rope, dict) or "mrope_section" in rope:
        return []
    share = rope.get("partial_rotary_factor")
    if not isinstance(size, int) or not isinstance(share, float) or size >= _MIN_SECTIONED_HEAD:
        return []
    return [int(size * share) // 2, 0, 0]


def _find_attention_interval(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the interval of layers with full attention among linear ones; Transformers 5 lists each layer instead."""
    text = config.get("text_config")
    layers = (text if isinstance(text, dict) else config).get("layer_types")
    if not isinstance(layers, list) or not {"linear_attention", "full_attention"} <= set(map(str, layers)):
        return {}
    interval = layers.index("full_attention") + 1
    regular = [("linear_attention", "full_attention")[(i + 1) % interval == 0] for i in range(len(layers))]
    if layers != regular:
        raise UsageError(
            "llama.cpp reads linear attention only with full attention in every n-th layer, which this base has not. "
            "Fix: merge --to FOLDER, or export --to peft."
        )
    return {"full_attention_interval": interval}


def _find_field(config: Mapping[str, JsonValue], source: str, default: float | None) -> JsonValue:
    """Return the value of a field, or of one inside a group of fields."""
    value: JsonValue = dict(config)
    for key in source.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return default if value is None else value
