"""Tokenizer and processor files of a merged model: the base's own, with the chat template and pad token of training."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from lora_chat.data.encoding.control_tokens import KEPT_TOKENS_FIELD, read_kept_tokens
from lora_chat.errors import LoraChatError
from lora_chat.models.base_model import LocalBase, load_tokenizer
from lora_chat.models.base_settings import canonical_json, read_lenient_json_object
from lora_chat.models.tokenizer_parts import read_tokenizer_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TEMPLATE_NAME, OLD_TEMPLATE_NAME = "chat_template.jinja", "chat_template.json"
_SETTINGS_NAME, _MAP_NAME = "tokenizer_config.json", "special_tokens_map.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    _SETTINGS_NAME,
    _MAP_NAME,
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tiktoken.model",
    "tekken.json",
)
_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "feature_extractor_config.json",
    "audio_tokenizer_config.json",
)
"""Settings of images, video and sound of bases that read them beside text."""
_LATER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Names of tokenizer classes that only Transformers 5 knows, with the name that both versions know."""


def write_tokenizer(folder: Path, base: LocalBase, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Write a tokenizer as the base's own files; only the template, the pad token and names are changed.

    A tokenizer that differs from the files of the base, because tokens were added, is saved by Transformers instead.
    """
    names = dict.fromkeys([*_TOKENIZER_FILES, *type(tokenizer).vocab_files_names.values()])
    for name in names:
        _copy_file(base.folder / name, folder)
    _adapt_settings(folder, tokenizer)
    if not _reads_the_same(folder, tokenizer):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
        _copy_file(base.folder / "tokenizer.model", folder)
        _adapt_settings(folder, tokenizer)
    for name in _PROCESSOR_FILES:
        _copy_processor_file(base.folder / name, folder)
    if (base.folder / OLD_TEMPLATE_NAME).is_file():  # read by processors of earlier versions, before the other file
        _write_json(folder / OLD_TEMPLATE_NAME, {"chat_template": str(tokenizer.chat_template)})


def _copy_file(path: Path, folder: Path) -> None:
    """Copy a file of the base, if it has it. Its size was limited when the base was found."""
    if path.is_file():
        shutil.copyfile(path, folder / path.name)


def _copy_processor_file(path: Path, folder: Path) -> None:
    """Copy the settings of a processor without references to code."""
    content = read_lenient_json_object(path)
    if content is None:
        return
    if "auto_map" in content:
        _write_json(folder / path.name, {name: value for name, value in content.items() if name != "auto_map"})
    else:
        _copy_file(path, folder)


def _adapt_settings(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Write the template and the pad token of training, and names that earlier versions know."""
    template = str(tokenizer.chat_template)
    (folder / TEMPLATE_NAME).write_text(template, encoding="utf-8")
    settings = read_lenient_json_object(folder / _SETTINGS_NAME) or {}
    changed = {name: value for name, value in settings.items() if name != "auto_map"}
    if "chat_template" in changed:  # llama.cpp and earlier versions read it there, before the other file
        changed["chat_template"] = template
    is_generic = type(tokenizer).__name__ in _LATER_CLASSES
    special = read_lenient_json_object(folder / _MAP_NAME)
    for name, token in (("eos_token", tokenizer.eos_token), ("pad_token", tokenizer.pad_token)):
        if name == "eos_token" and not (is_generic and name not in changed):
            continue  # the file or the class names it
        if _token_text(changed.get(name)) != token:
            changed[name] = token
        if special is not None and _token_text(special.get(name)) != token:
            special[name] = token
    named = changed.get("tokenizer_class")
    if is_generic and (named is None or named in _LATER_CLASSES):
        changed["tokenizer_class"] = _LATER_CLASSES[type(tokenizer).__name__]
    if names := read_kept_tokens(tokenizer):
        changed[KEPT_TOKENS_FIELD] = [*names]
    if isinstance(changed.get("extra_special_tokens"), list):  # Transformers 4 expects names in an object
        changed.setdefault("additional_special_tokens", changed["extra_special_tokens"])
        del changed["extra_special_tokens"]
    if changed != settings:
        _write_json(folder / _SETTINGS_NAME, changed)
    if special is not None and special != read_lenient_json_object(folder / _MAP_NAME):
        _write_json(folder / _MAP_NAME, special)


def _token_text(token: JsonValue) -> JsonValue:
    """Return the text of a token, which a file contains alone or with its attributes."""
    return token.get("content") if isinstance(token, dict) else token


def _reads_the_same(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the written files give the tokenizer of training."""
    try:
        written = load_tokenizer(LocalBase(str(folder), folder))
    except LoraChatError as error:
        logger.debug("The base's tokenizer files alone cannot be read: %s", error)
        return False
    return (
        written.get_vocab() == tokenizer.get_vocab()
        and str(written.chat_template) == str(tokenizer.chat_template)
        and _describe(folder, written) == _describe(folder, tokenizer)
    )


def _describe(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the loaded parts of a tokenizer as canonical JSON, without the fields of its files."""
    parts = read_tokenizer_parts(folder, tokenizer)
    skipped = "file ", f"{_SETTINGS_NAME}.", f"{_MAP_NAME}."
    return canonical_json({name: value for name, value in parts.items() if not name.startswith(skipped)})


def _write_json(path: Path, content: Mapping[str, JsonValue]) -> None:
    """Write a JSON file in the form of Transformers."""
    path.write_text(json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
