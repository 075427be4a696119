"""Digests that bind an adapter to the base, tokenizer and template it was trained with."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.digests import digest_file
from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.models.base_model import FoundBase
from lora_chat.models.damage import check_digest, check_structure
from lora_chat.planning.section import Section
from lora_chat.system.cache_dir import cache_dir
from lora_chat.writing import write_text_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Identity(Section):
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


def identify(base: FoundBase, tokenizer: "PreTrainedTokenizerBase") -> Identity:
    """Compute a base's identity; weight digests are remembered by path, size and time of change.

    Raises IntegrityError if its weights are damaged.
    """
    weights = hashlib.sha256()
    for path in sorted(base.folder.glob("*.safetensors")):
        check_structure(path)
        digest = _file_digest(path)
        check_digest(path, digest)
        weights.update(f"{path.name}:{digest}\n".encode())
    probe = "It's 7:30 pm.\n\n Ça va? 你好 \U0001f642 def f(x):\n\treturn x"
    words = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer(probe)["input_ids"]])
    return Identity(
        base=base.name,
        revision=base.revision,
        weights=weights.hexdigest(),
        tokenizer=hashlib.sha256(words.encode()).hexdigest(),
        chat_template=hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
    )


_PARTS = {"weights": "weights of the base", "tokenizer": "tokenizer", "chat_template": "chat template"}


def differences(trained: Identity, found: Identity) -> list[str]:
    """What is not the same, each with both digests."""
    return [
        f"{text} ({getattr(trained, key)[:16]}..., found {getattr(found, key)[:16]}...)"
        for key, text in _PARTS.items()
        if getattr(trained, key) != getattr(found, key)
    ]


def check_identity(trained: Identity, found: Identity, where: str) -> None:
    """Raise IntegrityError if an adapter was trained with something other than what was found."""
    if changed := differences(trained, found):
        raise IntegrityError(
            f"The adapter {where} belongs to another base: other {' and '.join(changed)}.\n"
            f"It was trained on {trained.base}"
            + (f" at revision {trained.revision}" if trained.revision else "")
            + f"; found was {found.base}. Name the base it was trained on with --base."
        )


def _file_digest(path: Path) -> str:
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    try:
        notes = cache_dir() / "digests.json"
        known = json.loads(notes.read_text())
    except (OSError, ValueError):
        known = {}
    if isinstance(known, dict) and isinstance(known.get(key), str):
        return str(known[key])
    digest = digest_file(path)
    with suppress(OSError, LoraChatError):  # only a note: without it the file is read again next time
        write_text_whole(cache_dir() / "digests.json", json.dumps({**known, key: digest}), "a note")
    return digest
