"""Redaction of dialogues before they are encoded, with a name for the cache."""

from collections.abc import Sequence
from pathlib import Path

from lora_chat.audit.redaction import redact_dialogue, redact_texts
from lora_chat.config.audit import FindingKind
from lora_chat.data.dialogue import Dialogue
from lora_chat.system.hashing import digest_code

_PACKAGE = Path(__file__).parents[1]
AUDIT_CODE_PATHS = (
    _PACKAGE / "audit",
    _PACKAGE / "config" / "audit.py",
    _PACKAGE / "data" / "dialogue.py",
    _PACKAGE / "system" / "sanitize.py",
)
"""Code and data files that determine the findings of an audit."""


class Redactor:
    """The replacement of secrets and personal data by marks in dialogues in memory. The files do not change."""

    def __init__(self, kinds: frozenset[FindingKind]) -> None:
        self._kinds = kinds

    @property
    def cache_key(self) -> str:
        """Return the settings and the digest of the code that determine the result, as a part of a cache key."""
        return f"{sorted(self._kinds)} {digest_code(*AUDIT_CODE_PATHS)}"

    def transform_dialogue(self, dialogue: Dialogue) -> tuple[Dialogue, int]:
        """Return a cleaned copy and the number of replacements."""
        return redact_dialogue(dialogue, self._kinds)

    def transform_text(self, text: str) -> tuple[str, int]:
        """Return a cleaned copy of plain text and the number of replacements."""
        (clean,), count = redact_texts([text], self._kinds)
        return clean, count

    def transform_texts(self, texts: Sequence[str]) -> list[str]:
        """Return cleaned copies of texts that belong together."""
        return redact_texts(texts, self._kinds)[0]
