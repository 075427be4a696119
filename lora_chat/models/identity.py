"""Digests and settings that bind an adapter to the base, tokenizer and template it was trained with."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator
from typing_extensions import Self

from lora_chat.config.base import MAX_NAMED_TOKENS, StrictModel, TokenText, UniqueTokens
from lora_chat.data.encoding.ordinary_tokens import LAST_RULE
from lora_chat.data.encoding.thinking_switch import ThinkingMode, ThinkingValue, read_switch
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
"""Fields that an identity of version 1 does not have."""
_OPTIONAL_FIELDS = ("kept_tokens", "new_tokens", "token_rule", "thinking")
"""Fields that are only written if they have a value, because earlier versions do not know them."""
UNCOVERED_BY_VERSION_1 = (
    "the config's fields, the index and subfolders of weights, the whole tokenizer (only its vocabulary and a sample "
    "text), the stop ids and the generation settings"
)
"""Parts of a base that an identity of version 1 does not cover."""


class ThinkingIdentity(StrictModel):
    """The switch of the chat template for thoughts, as training used it."""

    variable: Annotated[str, Field(max_length=64)]
    """Variable of the template."""
    mode: ThinkingMode
    default: ThinkingValue | None
    """Position for chats; None if both were trained, so that the template's own default applies."""

    @model_validator(mode="after")
    def _check_variable(self) -> Self:
        """Raise ValueError for a variable that is not a known switch."""
        if read_switch(self.variable) is None:
            raise ValueError("unknown switch for thoughts")
        return self


class Identity(StrictModel):
    """Base, tokenizer and template that an adapter was trained with, stored as `lora_chat.json` in its folder."""

    base: str
    revision: str | None
    weights: str
    """sha256 over the base's safetensors files."""
    tokenizer: str
    """sha256 of the vocabulary and the ids of a sample text."""
    chat_template: str
    """sha256 of the template's text."""
    system: str | None = None
    """System message at the beginning of every training dialogue; None if they differ."""
    version: Literal[1, 2] = 1
    """1: only the fields above. 2: all of them."""
    files: str | None = None
    """sha256 over all files of weights that are opened, with the index of shards."""
    config: dict[str, JsonValue] | None = None
    """Compared fields of config.json."""
    generation: dict[str, JsonValue] | None = None
    """Compared fields of generation_config.json; None if there is no such file."""
    tokenizer_parts: dict[str, JsonValue] | None = None
    """Digests and attributes of the loaded tokenizer."""
    stops: tuple[int, ...] | None = None
    """Ids at which a reply ends."""

    kept_tokens: UniqueTokens | None = None
    """Tokens that stay tokens in message text, or None. A run without them does not write the field."""

    new_tokens: Annotated[dict[TokenText, Annotated[int, Field(ge=0)]], Field(max_length=MAX_NAMED_TOKENS)] | None = (
        None
    )
    """Ids of the tokens that training added to the tokenizer; written like `kept_tokens`."""

    token_rule: Annotated[int, Field(ge=2, le=LAST_RULE)] | None = None
    """Rule by which added tokens in message text are read; None for rule 1, or if all rules read them the same."""

    thinking: ThinkingIdentity | None = None
    """Switch for thoughts in training; None if the template has none, and in runs of earlier versions."""

    @model_validator(mode="after")
    def _check_version_fields(self) -> Self:
        """Raise ValueError if a field of version 2 is missing in version 2, or present in version 1."""
        later = (self.files, self.config, self.tokenizer_parts, self.stops)
        if self.version == 1 and any(value is not None for value in (*later, self.generation)):
            raise ValueError("version 1 has no such fields")
        if self.version > 1 and any(value is None for value in later):
            raise ValueError(f"version {self.version} lacks a field")
        return self

    @model_serializer(mode="wrap")
    def _serialize_version_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Return the fields as version 1 or 2 writes them."""
        fields: dict[str, JsonValue] = handler(self)
        fields = {key: value for key, value in fields.items() if key not in _OPTIONAL_FIELDS or value is not None}
        if self.version > 1:
            return fields
        return {key: value for key, value in fields.items() if key not in _VERSION_2_FIELDS}

    def version_2_parts(self) -> dict[str, str]:
        """Return the parts that version 2 added, by name, as JSON; none for version 1."""
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
    """Compute a base's identity. Digests of weights are cached; `recompute_digests` ignores the cache.

    Finding the stop ids runs the chat template. If it must not run, pass `stops`, which are used instead.
    Raises IntegrityError if weights are damaged, if the folder makes Transformers load other files, or if a file has
    changed since the base was found.
    """
    weight_files = find_weight_files(base.folder, read_config(base))
    digests = {}
    safetensors = sorted(base.folder.glob("*.safetensors"))
    for path in sorted({*weight_files, *safetensors}):
        check_regular_file(base.folder, path)
        if path.suffix == ".safetensors":
            check_safetensors_file(path)
        digests[path] = cached_file_digest(path, recompute=recompute_digests)
        check_digest(path, digests[path])
    vocabulary: JsonValue = [sorted(tokenizer.get_vocab().items()), tokenizer(TOKENIZER_SAMPLE_TEXT)["input_ids"]]
    template: object = tokenizer.chat_template
    identity = Identity(
        base=base.name,
        revision=base.revision,
        weights=_digest_lines({path.name: digests[path] for path in safetensors}),
        tokenizer=digest_text(json.dumps(vocabulary)),
        chat_template=digest_text(canonical_json(template) if isinstance(template, dict) else str(template)),
        version=2,
        files=_digest_lines({path.relative_to(base.folder).as_posix(): digests[path] for path in sorted(weight_files)}),
        config=read_compared_fields(base.folder, "config.json") or {},
        generation=read_compared_fields(base.folder, "generation_config.json"),
        tokenizer_parts=read_tokenizer_parts(base.folder, tokenizer),
        stops=read_stop_ids(base, tokenizer) if stops is None else stops,
    )
    base.check_unchanged()
    return identity


_PART_LABELS = {"weights": "weights of the base", "tokenizer": "tokenizer", "chat_template": "chat template"}
_GROUP_LABELS = {
    "config": "config",
    "generation": "generation settings",
    "tokenizer": "tokenizer",
    "files": "files of weights",
    "stops": "stop ids",
}
_MAX_SHOWN_FIELDS = 4
"""Number of changed fields that a message names for each group."""


def list_identity_differences(trained: Identity, current: Identity, base: LocalBase | None = None) -> list[str]:
    """Return the parts that differ, each with both values or digests.

    If the current `base` is passed, defaults that only one side names are not counted as differences.
    """
    changed = {
        key: [f"{getattr(trained, key)[:16]}..., found {getattr(current, key)[:16]}..."]
        for key in _PART_LABELS
        if getattr(trained, key) != getattr(current, key)
    }
    before, now = trained.version_2_parts(), current.version_2_parts()
    differing = {name for name in before.keys() | now.keys() if before and now and before.get(name) != now.get(name)}
    if differing and base is not None:
        differing -= _find_equivalent_parts(trained, current, base)
    for name in sorted(differing):
        group, _, field = name.partition(".")
        if group == "files" and "weights" in changed:  # already reported
            continue
        values = f"{_format_part(before, name)}, found {_format_part(now, name)}"
        changed.setdefault(group, []).append(f"{field}: {values}" if field else values)
    return [f"{(_PART_LABELS | _GROUP_LABELS)[group]} ({_join_fields(fields)})" for group, fields in changed.items()]


def _find_equivalent_parts(trained: Identity, current: Identity, base: LocalBase) -> set[str]:
    """Return the names of parts that differ as they are written and load the same."""
    first, second = trained.config or {}, current.config or {}
    same = {f"config.{name}" for name in find_equivalent_config_fields(base.folder, read_config(base), first, second)}
    differing = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    if {f"config.{name}" for name in differing} <= same and is_equivalent_generation(
        base.folder, trained.generation, current.generation
    ):
        names = (trained.generation or {}).keys() | (current.generation or {}).keys()
        same |= {"generation", *(f"generation.{name}" for name in names)}
    tokenizer = find_equivalent_tokenizer_fields(trained.tokenizer_parts or {}, current.tokenizer_parts or {})
    return same | {f"tokenizer.{name}" for name in tokenizer}


def _format_part(parts: Mapping[str, str], name: str) -> str:
    """Return the value of a part for a message; a digest is shortened."""
    text = parts.get(name, "nothing")
    digest = text.strip('"').removeprefix("sha256:")
    return f"{digest[:16]}..." if len(digest) == 64 and digest.isalnum() else sanitize_line(text, 60)


def _join_fields(fields: list[str]) -> str:
    """Join the first changed fields of a group for a message."""
    more = [f"and {len(fields) - _MAX_SHOWN_FIELDS} more"] if len(fields) > _MAX_SHOWN_FIELDS else []
    return "; ".join([*(sanitize_line(field, 200) for field in fields[:_MAX_SHOWN_FIELDS]), *more])


def check_identity(trained: Identity, current: Identity, where: str, base: LocalBase | None = None) -> None:
    """Raise IntegrityError if an adapter was trained with other parts than those of the current `base`."""
    if changed := list_identity_differences(trained, current, base):
        raise IntegrityError(
            f"The adapter {where} belongs to another base: other {' and '.join(changed)}.\n"
            f"It was trained on {trained.base}"
            + (f" at revision {trained.revision}" if trained.revision else "")
            + f"; found was {current.base}. Fix: name the base it was trained on with --base."
        )


def _digest_lines(digests: Mapping[str, str]) -> str:
    """Return the sha256 of a list of names and digests."""
    return digest_text("".join(f"{name}:{digest}\n" for name, digest in digests.items()))
