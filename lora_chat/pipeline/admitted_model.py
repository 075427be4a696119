"""A model that passed its checks and answers requests."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BARE_BASE = "base"
"""Name under which the base without an adapter answers."""


@dataclass(frozen=True)
class AdmissionCheck:
    """One check before a model answers."""

    name: str
    passed: bool | None
    """None if it could not be checked."""
    detail: str


@dataclass(frozen=True)
class AdmittedModel:
    """A model in memory, and everything that its prompts need."""

    name: str
    """Name by which a request chooses it."""
    adapter: str | None
    """Name of the adapter in the generator; None for the bare base."""
    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: tuple[int, ...]
    system: str | None
    """System message of training, used if a request has none."""
    positions: int | None
    """Largest number of tokens of a prompt with its reply; None if unknown."""
    checks: tuple[AdmissionCheck, ...]
    source: str
    """What the user named: a run, a parcel, a folder or a base."""
    created: int
    """Time of admission, in seconds since 1970."""
    run: RunFolder | None = None
