"""The `audit` section of a recipe, which is also the table of the kinds of findings."""

from typing import Annotated, Literal, get_args

from pydantic import Field

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
DroppableAction = Literal["ignore", "warn", "refuse", "drop"]
RedactableAction = Literal["ignore", "warn", "refuse", "drop", "redact"]


class AuditSection(StrictModel):
    """The action for each kind of finding: `ignore` it, `warn`, `refuse` to train, `drop` the dialogue, or `redact` it.

    A dropped dialogue or block of plain text is left out of training, validation and test. Redaction puts marks into a
    copy. Each field is a kind of finding. Its title names the findings in reports, and its type shows whether they can
    be dropped and redacted.
    """

    secret: Annotated[RedactableAction, Field(title="secrets")] = "refuse"  # noqa: S105
    """Private keys, keys and tokens in the format of a vendor, and passwords in URLs. A model can be made to recite
    them."""
    possible_secret: Annotated[RedactableAction, Field(title="possible secrets")] = "warn"  # noqa: S105
    """Values that the words before them call a password, key or token. Some are invented or publicly known."""
    personal_data: Annotated[RedactableAction, Field(title="personal data")] = "warn"
    """E-mail addresses, phone, card and bank account numbers, and national ids. The public address of a help desk is
    found too."""
    leak: Annotated[DroppableAction, Field(title="held-out dialogues that are in another set too")] = "refuse"
    """Validation dialogues that are also training dialogues, and test dialogues that are also in training or
    validation. The loss would prove nothing about them. `drop` leaves out the validation or test dialogue."""
    near_leak: Annotated[DroppableAction, Field(title="held-out dialogues that are nearly in another set")] = "warn"
    """Validation dialogues that are nearly equal to a training dialogue, and test dialogues that are nearly equal to
    one in training or validation. `drop` leaves out the validation or test dialogue."""
    exact_duplicate: Annotated[DroppableAction, Field(title="duplicates")] = "warn"
    """Dialogues that repeat an earlier one exactly. `drop` keeps the first."""
    near_duplicate: Annotated[DroppableAction, Field(title="near duplicates")] = "warn"
    """Dialogues that nearly repeat an earlier one, whatever their system message. `drop` keeps the earlier one."""
    abusive_language: Annotated[DroppableAction, Field(title="abusive language")] = "warn"
    """Slurs, insults, threats and strong profanity, found with a short word list."""
    control_token: Annotated[DroppableAction, Field(title="control tokens in messages")] = "warn"  # noqa: S105
    """Control tokens of the base, or chat markup of another model family, in the text of a message. They are encoded
    as plain text."""
    template_code: Annotated[DroppableAction, Field(title="template code in messages")] = "warn"
    """Jinja expressions, such as a placeholder that was never filled in."""
    empty_reply: Annotated[DroppableAction, Field(title="empty replies")] = "warn"
    """Replies that contain only dots, TODO, null or another placeholder."""
    repetitive_reply: Annotated[DroppableAction, Field(title="replies that repeat themselves")] = "warn"
    """Replies that repeat the same words many times."""
    repeated_reply: Annotated[Action, Field(title="replies that many dialogues share")] = "warn"
    """One reply that makes up a large share of all replies."""
    imbalance: Annotated[Action, Field(title="files that outweigh all others")] = "warn"
    """One of several files that contains nearly all the text with loss."""

    def action(self, kind: FindingKind) -> RedactableAction:
        """Return the action for this kind of finding."""
        value: RedactableAction = getattr(self, kind)
        return value

    @property
    def redacted(self) -> frozenset[FindingKind]:
        """Return the kinds that are replaced by marks in a cleaned copy."""
        return frozenset(kind for kind in FINDING_KINDS if self.action(kind) == "redact")

    @property
    def dropped(self) -> frozenset[FindingKind]:
        """Return the kinds whose dialogues are left out."""
        return frozenset(kind for kind in FINDING_KINDS if self.action(kind) == "drop")


def finding_title(kind: FindingKind) -> str:
    """Return the name of a kind's findings in reports, in the plural."""
    return AuditSection.model_fields[kind].title or kind


def possible_actions(kind: FindingKind) -> tuple[str, ...]:
    """Return the actions that a recipe can set for findings of this kind."""
    actions: tuple[str, ...] = get_args(AuditSection.model_fields[kind].annotation)
    return actions


def is_redactable(kind: FindingKind) -> bool:
    """Return whether findings of this kind can be replaced by marks."""
    return "redact" in possible_actions(kind)
