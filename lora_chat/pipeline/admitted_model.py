"""A model that passed its checks and answers requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import ChatMessage, ToolDescription
from lora_chat.pipeline.served_prompt import render_served_prompt
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.sanitize import sanitize_line

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

    def render_prompt(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[ToolDescription] | None = None,
        arguments: Mapping[str, object] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Return the ids of a conversation, as the check of its prompts renders them. Raises DataError."""
        return render_served_prompt(
            self.tokenizer,
            self.stop_ids,
            self.system,
            messages,
            tools,
            arguments,
            add_generation_prompt=add_generation_prompt,
        )


def format_checks(model: AdmittedModel) -> str:
    """Format a model and its checks, as shown when it begins to answer."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    lines = [
        f"  {marks[check.passed]:<6} {check.name:<10} {sanitize_line(check.detail, 600)}" for check in model.checks
    ]
    if model.system is not None:
        lines.append(f"         system     {sanitize_line(model.system, 300)}")
    return "\n".join([f"Serving {model.name}: {sanitize_line(model.source, 300)}", *lines])
