"""Replace secrets and personal data by marks before dialogues are encoded."""

from pathlib import Path

from lora_chat.audit.redaction import redact_dialogue, redact_text
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
"""All code that decides what an audit finds."""


class Redactor:
    """Replaces secrets and personal data by marks before anything is encoded; the files stay as they are."""

    def __init__(self, kinds: frozenset[FindingKind]) -> None:
        self._kinds = kinds

    @property
    def cache_key(self) -> str:
        """What decides the result, for the cache."""
        return f"{sorted(self._kinds)} {digest_code(*AUDIT_CODE_PATHS)}"

    def transform_dialogue(self, dialogue: Dialogue) -> tuple[Dialogue, int]:
        """A cleaned copy, and how many stretches were replaced."""
        return redact_dialogue(dialogue, self._kinds)

    def transform_text(self, text: str) -> tuple[str, int]:
        """The same of plain text."""
        return redact_text(text, self._kinds)
