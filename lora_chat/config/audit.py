"""The part of a recipe that says what is done about each kind of thing an audit finds."""

from typing import Literal, get_args

from lora_chat.config.base import StrictModel

FindingKind = Literal[
    "secret",
    "possible_secret",
    "personal_data",
    "leak",
    "near_leak",
    "exact_duplicate",
    "near_duplicate",
    "abusive_language",
    "control_token",
    "template_code",
    "empty_reply",
    "repetitive_reply",
    "repeated_reply",
    "imbalance",
]
FINDING_KINDS: tuple[FindingKind, ...] = get_args(FindingKind)
Action = Literal["ignore", "warn", "refuse"]
RedactableAction = Literal["ignore", "warn", "refuse", "redact"]


class AuditSection(StrictModel):
    """What to do about each thing an audit finds: `ignore` it, `warn`, `refuse` to train, or `redact` it in a copy."""

    secret: RedactableAction = "refuse"  # noqa: S105
    """Private keys, keys and tokens in a vendor's format, passwords in URLs: a model can be made to recite them."""
    possible_secret: RedactableAction = "warn"  # noqa: S105
    """What is called a password, key or token by the words before it; some are invented, or known to everyone."""
    personal_data: RedactableAction = "warn"
    """E-mail addresses, phone, card and account numbers, national ids. A help desk's own address is one too."""
    leak: Action = "refuse"
    """A validation dialogue that stands in the training dialogues as well: its loss would prove nothing."""
    near_leak: Action = "warn"
    """A validation dialogue that almost stands in the training dialogues."""
    exact_duplicate: Action = "warn"
    """The same dialogue again."""
    near_duplicate: Action = "warn"
    """Almost the same dialogue again, whatever its system message."""
    abusive_language: Action = "warn"
    """Slurs, insults, threats and strong profanity, by a short word list."""
    control_token: Action = "warn"  # noqa: S105
    """Control tokens of the base, or another family's chat markup, in what is said; encoded as plain text."""
    template_code: Action = "warn"
    """Jinja expressions, such as a placeholder that was never filled in."""
    empty_reply: Action = "warn"
    """A reply of nothing but dots, TODO, null and the like."""
    repetitive_reply: Action = "warn"
    """A reply that says the same over and over."""
    repeated_reply: Action = "warn"
    """One and the same reply as a large share of all replies."""
    imbalance: Action = "warn"
    """One of several files that gives nearly all the text to be learned."""

    def action(self, kind: FindingKind) -> RedactableAction:
        """What to do about this kind of finding."""
        value: RedactableAction = getattr(self, kind)
        return value

    @property
    def redactable_kinds(self) -> tuple[FindingKind, ...]:
        """The kinds that can be replaced by marks."""
        return ("secret", "possible_secret", "personal_data")

    @property
    def redacted(self) -> frozenset[FindingKind]:
        """The kinds that are replaced by marks in a cleaned copy."""
        return frozenset(kind for kind in FINDING_KINDS if self.action(kind) == "redact")
