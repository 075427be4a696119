"""What can be done with a finished run, a parcel or an adapter: measure it again, merge it."""

from dataclasses import dataclass

from lora_chat.pipeline.open_adapter import Opened
from lora_chat.pipeline.prepare import Prepared, prepare_held_out, prepare_own
from lora_chat.system.console import say


@dataclass(frozen=True)
class Own:
    """Dialogues and questions of one's own to measure with."""

    data: str | None = None
    questions: str | None = None


def find_held_out(opened: Opened, own: Own) -> Prepared:
    """A run's held-out dialogues, or those of one's own. Raises DataError for what is wrong with them."""
    if opened.run is not None and own.data is None:
        return prepare_held_out(opened.found, opened.run.read_plan(), opened.run, say)
    return prepare_own(opened.found, [own.data] if own.data else [], own.questions, say)
