"""Replies of both models to held-out prompts, generated ahead of the judge.

Both replies of a pair are requested together, and a pair is ready only when both are complete, so that neither their
order nor their time shows which model wrote which.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from lora_chat.data.encoding.turns import TurnReader
from lora_chat.errors import IntegrityError
from lora_chat.inference.continuous.request import (
    Finish,
    GeneratedToken,
    GenerationRequest,
    QueueFullError,
    RequestTooLongError,
)
from lora_chat.inference.generation import decode_reply
from lora_chat.runs.judgement_record import Side
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    from lora_chat.pipeline.judge_plan import JudgedSide, JudgePlan
    from lora_chat.pipeline.judge_prompts import JudgePrompt
    from lora_chat.pipeline.served_models import ServedModels

logger = logging.getLogger(__name__)

PairState: TypeAlias = Literal["ready", "too long", "failed"]
_PAIRS_AHEAD = 3
"""Number of pairs that are generated before the judge asks for them."""
_PROMPT_END_TOKENS = 16
"""Number of tokens at the end of a prompt that can open the reasoning of a reply."""


@dataclass(frozen=True)
class ShownReply:
    """A reply as the judge reads it."""

    text: str
    is_cut: bool
    """Whether it ends at the largest number of tokens."""


@dataclass(frozen=True)
class ReplyPair:
    """Both replies to a prompt, or the reason why none exist."""

    prompt: "JudgePrompt"
    state: PairState
    a: ShownReply = ShownReply("", False)
    b: ShownReply = ShownReply("", False)

    @property
    def is_equal(self) -> bool:
        """Return whether both replies are the same text."""
        return self.state == "ready" and self.a.text == self.b.text


class _Growing:
    """A reply that is being generated; the generator's thread appends to it."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.finish: Finish | None = None

    def receive(self, item: GeneratedToken | Finish) -> None:
        """Take the next token or the end."""
        if isinstance(item, Finish):
            self.finish = item
        else:
            self.ids.append(item.token)


class ReplyPairs:
    """The replies to the prompts of a plan, requested a few pairs ahead."""

    def __init__(self, plan: "JudgePlan", models: "ServedModels") -> None:
        self._plan, self._generator = plan, models.generator
        self._adapters = {side: find_generator_name(models, getattr(plan, side)) for side in ("a", "b")}
        self._readers: dict[Side, TurnReader] = {
            "a": TurnReader(plan.a.tokenizer, plan.a.stop_ids),
            "b": TurnReader(plan.b.tokenizer, plan.b.stop_ids),
        }
        self._growing: dict[int, dict[Side, _Growing]] = {}
        self._pairs: dict[int, ReplyPair] = {}
        self._lock = threading.Lock()

    def find(self, prompt: "JudgePrompt", after: "Sequence[JudgePrompt]" = ()) -> ReplyPair | None:
        """Return the pair of a prompt, or None while it is generated; request it and some of those after it."""
        with self._lock:
            for wanted in (prompt, *after[: _PAIRS_AHEAD - 1]):
                if wanted.index not in self._pairs and wanted.index not in self._growing:
                    self._request(wanted)
            for wanted in (prompt, *after[: _PAIRS_AHEAD - 1]):
                self._collect(wanted)
            return self._pairs.get(prompt.index)

    def _request(self, prompt: "JudgePrompt") -> None:
        """Submit both requests of a pair; a full queue leaves it for a later call."""
        settings = self._plan.comparison.settings
        growing: dict[Side, _Growing] = {"a": _Growing(), "b": _Growing()}
        tickets = []
        sides: tuple[Side, ...] = ("a", "b")
        try:
            for side in sides:
                request = GenerationRequest(
                    prompt=prompt.ids_a if side == "a" else prompt.ids_b,
                    adapter=self._adapters[side],
                    stop_ids=frozenset(self._side(side).stop_ids),
                    max_new_tokens=settings.max_new_tokens,
                    generation=settings.generation,
                    number=prompt.index,
                )
                tickets.append(self._generator.submit(request, growing[side].receive))
        except QueueFullError:
            for ticket in tickets:
                ticket.cancel()
            return
        except RequestTooLongError:
            for ticket in tickets:
                ticket.cancel()
            self._pairs[prompt.index] = ReplyPair(prompt, "too long")
            return
        self._growing[prompt.index] = growing

    def _collect(self, prompt: "JudgePrompt") -> None:
        """Keep a pair whose replies are both complete."""
        growing = self._growing.get(prompt.index)
        if growing is None or any(reply.finish is None for reply in growing.values()):
            return
        del self._growing[prompt.index]
        finishes = [reply.finish for reply in growing.values() if reply.finish is not None]
        if failed := next((finish for finish in finishes if finish.reason not in ("stop", "length")), None):
            logger.warning(f"Prompt {prompt.index + 1} is left out: a reply ended early ({failed.reason}).")
            self._pairs[prompt.index] = ReplyPair(prompt, "failed")
            return
        show = partial(self._show, prompt, growing)
        self._pairs[prompt.index] = ReplyPair(prompt, "ready", show("a"), show("b"))

    def _show(self, prompt: "JudgePrompt", growing: dict[Side, _Growing], side: Side) -> ShownReply:
        """Return a complete reply without its reasoning."""
        from lora_chat.pipeline.judge_prompts import format_message  # loads PyTorch

        reply, tokenizer = growing[side], self._side(side).tokenizer
        text = decode_reply(tokenizer, reply.ids)
        if not prompt.is_text:
            ids = prompt.ids_a if side == "a" else prompt.ids_b
            end = str(tokenizer.decode(list(ids[-_PROMPT_END_TOKENS:])))
            text = format_message(self._readers[side].parse_reply(end, text)).strip()
        return ShownReply(text, reply.finish is not None and reply.finish.reason == "length")

    def _side(self, side: Side) -> "JudgedSide":
        return self._plan.a if side == "a" else self._plan.b


def find_generator_name(models: "ServedModels", side: "JudgedSide") -> str | None:
    """Return the name of a model in the generator; None for the bare base.

    Raise IntegrityError with the reason if it was refused.
    """
    if side.source is None:
        return None
    path = expand_user_path(side.source).resolve()
    for model in models.list():
        is_run = model.run is not None and model.run.path.resolve() == path
        if model.adapter is not None and (model.source == side.source or is_run):
            return model.adapter
    reasons = "; ".join(models.refused.values()) or "it is not loaded"
    raise IntegrityError(f"{side.source} cannot be judged: {reasons}")
