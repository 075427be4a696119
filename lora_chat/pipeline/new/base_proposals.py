"""The bases that `lora-chat new` proposes: one table with the languages and the license of each."""

from collections.abc import Sequence
from dataclasses import dataclass

EMBEDDED_BASE = "smollm2-135m-instruct"


@dataclass(frozen=True)
class BaseProposal:
    """A base that may be proposed, with facts from its model card."""

    name: str
    languages: frozenset[str] | None
    """Languages that its card names; None for more than a hundred."""
    license: str

    def list_missing(self, languages: Sequence[str]) -> list[str]:
        """Return the languages that the base has read little of."""
        return [] if self.languages is None else [name for name in languages if name not in self.languages]


_ENGLISH = frozenset({"English"})
_QWEN2_5 = frozenset(
    {
        *("English", "Chinese", "French", "Spanish", "Portuguese", "German", "Italian", "Cyrillic", "Japanese"),
        *("Korean", "Vietnamese", "Thai", "Arabic"),
    }
)
BASE_PROPOSALS = (
    BaseProposal(EMBEDDED_BASE, _ENGLISH, "Apache-2.0"),
    BaseProposal("Qwen/Qwen2.5-0.5B-Instruct", _QWEN2_5, "Apache-2.0"),
    BaseProposal("Qwen/Qwen2.5-1.5B-Instruct", _QWEN2_5, "Apache-2.0"),
    BaseProposal("HuggingFaceTB/SmolLM2-1.7B-Instruct", _ENGLISH, "Apache-2.0"),
    BaseProposal("Qwen/Qwen3-4B", None, "Apache-2.0"),
    BaseProposal("Qwen/Qwen2.5-7B-Instruct", _QWEN2_5, "Apache-2.0"),
    BaseProposal("Qwen/Qwen3-8B", None, "Apache-2.0"),
    BaseProposal("Qwen/Qwen3-14B", None, "Apache-2.0"),
)
"""Every proposed base, by size. All but the first have an entry in models/known_bases.json, so that they can be planned
without the hub; none needs a login."""


def find_proposal(name: str) -> BaseProposal | None:
    """Return the entry of a base; None for a base that is not in the table."""
    return next((proposal for proposal in BASE_PROPOSALS if proposal.name == name), None)
