"""Digests and settings that bind an adapter to the base, tokenizer and template it was trained with."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel
from lora_chat.errors import IntegrityError
from lora_chat.models.base_model import TOKENIZER_SAMPLE_TEXT, LocalBase, read_config
from lora_chat.models.base_settings import canonical_json, read_compared_fields
from lora_chat.models.equivalent_settings import (
    find_equivalent_config_fields,
    find_equivalent_tokenizer_fields,
    is_equivalent_generation,
)
from lora_chat.models.integrity import cached_file_digest, check_digest, check_safetensors_file
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.models.tokenizer_parts import read_tokenizer_parts
from lora_chat.models.weight_files import check_regular_file, find_weight_files
from lora_chat.system.hashing import digest_text
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VERSION_2_FIELDS = ("version", "files", "config", "generation", "tokenizer_parts", "stops")
"""The fields that an identity of version 1 does not have."""
UNCOVERED_BY_VERSION_1 = (
    "the config's fields, the index and subfolders of weights, the whole tokenizer (only its vocabulary and a probe "
    "text), the stop ids and the generation settings"
)
"""The parts of a base that an identity of version 1 does not cover."""


class Identity(StrictModel):
    """What an adapter belongs to; stands as `lora_chat.json` in its folder."""

    base: str
    revision: str | None
    weights: str
    """sha256 over the base's safetensors files."""
    tokenizer: str
    """sha256 of the vocabulary and the ids of a probe text."""
    chat_template: str
    """sha256 of the template's text."""
    system: str | None = None
    """The system message that every training dialogue began with, if they shared one."""
    version: Literal[1, 2] = 1
    """1: only the fields above. 2: all of them."""
    files: str | None = None
    """sha256 over all files of weights that are opened, the index of shards included."""
    config: dict[str, JsonValue] | None = None
    """The fields of config.json that shape the function."""
    generation: dict[str, JsonValue] | None = None
    """The fields of generation_config.json; None if there is no such file."""
    tokenizer_parts: dict[str, JsonValue] | None = None
    """Digests and attributes of the loaded tokenizer."""
    stops: tuple[int, ...] | None = None
    """The ids at which a reply ends."""

    @model_validator(mode="after")
    def _check_version_fields(self) -> Self:
        later = (self.files, self.config, self.tokenizer_parts, self.stops)
        if self.version == 1 and any(value is not None for value in (*later, self.generation)):
            raise ValueError("version 1 has no such fields")
        if self.version > 1 and any(value is None for value in later):
            raise ValueError(f"version {self.version} lacks a field")
        return self

    @model_serializer(mode="wrap")
    def _serialize_version_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return (
            found if self.version > 1 else {key: value for key, value in found.items() if key not in _VERSION_2_FIELDS}
        )

    def version_2_parts(self) -> dict[str, str]:
        """Return everything that version 2 added, by name, as JSON; nothing for version 1."""
        if self.version == 1:
            return {}
        groups: dict[str, Mapping[str, JsonValue] | None] = {
            "config": self.config,
            "generation": self.generation,
            "tokenizer": self.tokenizer_parts,
        }
        parts: dict[str, JsonValue] = {"files": self.files, "stops": [*(self.stops or ())]}
        for group, fields in groups.items():
            if fields is None:
                parts[group] = "no such file"
            parts |= {f"{group}.{key}": value for key, value in (fields or {}).items()}
        return {name: canonical_json(value) for name, value in parts.items()}


def compute_identity(
    base: LocalBase,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    recompute_digests: bool = False,
    stops: tuple[int, ...] | None = None,
) -> Identity:
    """Compute a base's identity; digests of weights are remembered, and believed unless `recompute_digests` is set.

    Finding the stop ids runs the chat template; where it may not be run, `stops` are taken as they are.
    Raises IntegrityError if its weights are damaged, if something in its folder makes other files be loaded, or if a
    file has changed since the base was found.
    """
    opened = find_weight_files(base.folder, read_config(base))
    digests = {}
    beside = sorted(base.folder.glob("*.safetensors"))
    for path in sorted({*opened, *beside}):
        check_regular_file(base.folder, path)
        if path.suffix == ".safetensors":
            check_safetensors_file(path)
        digests[path] = cached_file_digest(path, recompute=recompute_digests)
        check_digest(path, digests[path])
    words: JsonValue = [sorted(tokenizer.get_vocab().items()), tokenizer(TOKENIZER_SAMPLE_TEXT)["input_ids"]]
    template: Any = tokenizer.chat_template
    found = Identity(
        base=base.name,
        revision=base.revision,
        weights=_digest_lines({path.name: digests[path] for path in beside}),
        tokenizer=digest_text(json.dumps(words)),
        chat_template=digest_text(canonical_json(template) if isinstance(template, dict) else str(template)),
        version=2,
        files=_digest_lines({path.relative_to(base.folder).as_posix(): digests[path] for path in sorted(opened)}),
        config=read_compared_fields(base.folder, "config.json") or {},
        generation=read_compared_fields(base.folder, "generation_config.json"),
        tokenizer_parts=read_tokenizer_parts(base.folder, tokenizer),
        stops=read_stop_ids(base, tokenizer) if stops is None else stops,
    )
    base.check_unchanged()
    return found


_PART_LABELS = {"weights": "weights of the base", "tokenizer": "tokenizer", "chat_template": "chat template"}
_GROUP_LABELS = {
    "config": "config",
    "generation": "generation settings",
    "tokenizer": "tokenizer",
    "files": "files of weights",
    "stops": "stop ids",
}
_MAX_SHOWN_FIELDS = 4
"""Number of changed fields that a message names per group."""


def list_identity_differences(trained: Identity, found: Identity, base: LocalBase | None = None) -> list[str]:
    """Return what is not the same, each part with both values or digests.

    With the `base` that was found, a default that only one side names is no difference.
    """
    changed = {
        key: [f"{getattr(trained, key)[:16]}..., found {getattr(found, key)[:16]}..."]
        for key in _PART_LABELS
        if getattr(trained, key) != getattr(found, key)
    }
    before, now = trained.version_2_parts(), found.version_2_parts()
    differing = {name for name in before.keys() | now.keys() if before and now and before.get(name) != now.get(name)}
    if differing and base is not None:
        differing -= _find_equivalent_parts(trained, found, base)
    for name in sorted(differing):
        group, _, field = name.partition(".")
        if group == "files" and "weights" in changed:  # says the same again
            continue
        values = f"{_format_part(before, name)}, found {_format_part(now, name)}"
        changed.setdefault(group, []).append(f"{field}: {values}" if field else values)
    return [f"{(_PART_LABELS | _GROUP_LABELS)[group]} ({_join_fields(fields)})" for group, fields in changed.items()]


def _find_equivalent_parts(trained: Identity, found: Identity, base: LocalBase) -> set[str]:
    """Return the names of parts that differ as they are written and load the same here."""
    mine, yours = trained.config or {}, found.config or {}
    same = {f"config.{name}" for name in find_equivalent_config_fields(base.folder, read_config(base), mine, yours)}
    others = {name for name in mine.keys() | yours.keys() if mine.get(name) != yours.get(name)}
    if {f"config.{name}" for name in others} <= same and is_equivalent_generation(
        base.folder, trained.generation, found.generation
    ):
        names = (trained.generation or {}).keys() | (found.generation or {}).keys()
        same |= {"generation", *(f"generation.{name}" for name in names)}
    tokenizer = find_equivalent_tokenizer_fields(trained.tokenizer_parts or {}, found.tokenizer_parts or {})
    return same | {f"tokenizer.{name}" for name in tokenizer}


def _format_part(parts: Mapping[str, str], name: str) -> str:
    text = parts.get(name, "nothing")
    digest = text.strip('"').removeprefix("sha256:")
    return f"{digest[:16]}..." if len(digest) == 64 and digest.isalnum() else sanitize_line(text, 60)


def _join_fields(fields: list[str]) -> str:
    more = [f"and {len(fields) - _MAX_SHOWN_FIELDS} more"] if len(fields) > _MAX_SHOWN_FIELDS else []
    return "; ".join([*(sanitize_line(field, 200) for field in fields[:_MAX_SHOWN_FIELDS]), *more])


def check_identity(trained: Identity, found: Identity, where: str, base: LocalBase | None = None) -> None:
    """Raise IntegrityError if an adapter was trained with something other than the `base` that was found."""
    if changed := list_identity_differences(trained, found, base):
        raise IntegrityError(
            f"The adapter {where} belongs to another base: other {' and '.join(changed)}.\n"
            f"It was trained on {trained.base}"
            + (f" at revision {trained.revision}" if trained.revision else "")
            + f"; found was {found.base}. Name the base it was trained on with --base."
        )


def _digest_lines(digests: Mapping[str, str]) -> str:
    return digest_text("".join(f"{name}:{digest}\n" for name, digest in digests.items()))
