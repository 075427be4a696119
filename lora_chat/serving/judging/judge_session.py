"""The pairs of one judge: the order of their replies, the votes, and the result.

Nothing that a client gets before its vote depends on which reply is on the left, except for the replies themselves.
"""

import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_chat.evaluation.judgement_text import format_notes, format_result
from lora_chat.evaluation.judgements import JudgementResult, summarize_comparison
from lora_chat.runs.judgement_log import append_judgement, read_judgements
from lora_chat.runs.judgement_record import (
    Choice,
    EqualReplies,
    JudgementRecord,
    Retraction,
    Side,
    Vote,
    digest_pair,
    find_winner,
    format_time,
)
from lora_chat.serving.judging.reply_pairs import ReplyPair, ReplyPairs

if TYPE_CHECKING:
    from lora_chat.pipeline.judge_plan import JudgePlan
    from lora_chat.pipeline.judge_prompts import JudgePrompt
    from lora_chat.pipeline.served_models import ServedModels

_ID_BYTES = 16


class VoteRefusedError(Exception):
    """A vote that cannot be stored, such as on a pair that was not shown."""


@dataclass(frozen=True)
class ShownPair:
    """A pair that a client got, and its secret."""

    id: str
    """Random name of the pair, which says nothing about it."""
    pair: ReplyPair
    left: Side
    number: int

    def as_dict(self) -> dict[str, object]:
        """Return everything that a client may know before its vote."""
        replies = {"a": self.pair.a, "b": self.pair.b}
        right: Side = "b" if self.left == "a" else "a"
        return {
            "pair": self.id,
            "number": self.number,
            "context": [{"role": message.role, "text": message.text} for message in self.pair.prompt.context],
            "left": {"text": replies[self.left].text, "cut": replies[self.left].is_cut},
            "right": {"text": replies[right].text, "cut": replies[right].is_cut},
        }


class JudgeSession:
    """A judge's way through the pairs of a plan. All methods may be called from several threads."""

    def __init__(
        self, plan: "JudgePlan", models: "ServedModels", judge: str | None = None, secret: bytes | None = None
    ) -> None:
        self.plan, self._judge = plan, judge
        self._pairs = ReplyPairs(plan, models)
        self._secret = secret or secrets.token_bytes(32)
        """Key that decides the order of each pair; it never leaves the server."""
        self._lock = threading.RLock()
        self._shown: dict[int, ShownPair] = {}
        self._voted: dict[int, Vote] = {}
        self._history: list[int] = []
        """Indices of the prompts with a vote of this session, the latest last."""
        self._skipped: set[int] = set()
        self._recorded_equal: set[str] = set()
        """Digests of the pairs with equal replies that the log has."""
        self._finished = False
        self._restore()
        self._judged_before = sum(prompt.index in self._voted for prompt in plan.prompts)

    def _restore(self) -> None:
        """Take over earlier votes of this judge on this comparison, so that their pairs are not shown again."""
        for record in self._read_records():
            if isinstance(record, EqualReplies):
                self._recorded_equal.add(record.pair)
                continue
            if record.judge != self._judge:
                continue
            self._voted.pop(record.item, None)
            if isinstance(record, Vote):
                self._voted[record.item] = record

    def _read_records(self) -> list[JudgementRecord]:
        """Return all records of this comparison or its reverse."""
        log = read_judgements(self.plan.run.judgements)
        return [record for record in log.records if record.comparison.key == self.plan.comparison.key]

    def describe_progress(self) -> dict[str, object]:
        """Return counts of the pairs, which say nothing about the models."""
        with self._lock:
            indices = {prompt.index for prompt in self.plan.prompts}
            states = [pair.state for pair in self._left_out()]
            return {
                "total": len(indices),
                "judged": len(indices & self._voted.keys()),
                "equal": sum(pair.is_equal for pair in self._left_out()),
                "too_long": states.count("too long"),
                "failed": states.count("failed"),
                "can_undo": bool(self._history) and not self._finished,
                "finished": self._finished,
            }

    def _left_out(self) -> list[ReplyPair]:
        """Return the pairs that are not shown."""
        pairs = (self._pairs.find(prompt) for prompt in self.plan.prompts if prompt.index in self._skipped)
        return [pair for pair in pairs if pair is not None]

    def next_pair(self) -> ShownPair | Literal["waiting", "done"]:
        """Return the next pair without a vote, "waiting" while it is generated, or "done" after the last."""
        with self._lock:
            while not self._finished and (waiting := self._list_open()):
                pair = self._pairs.find(waiting[0], waiting[1:])
                if pair is None:
                    return "waiting"
                if pair.state == "ready" and not pair.is_equal:
                    return self._show(pair)
                self._skip(pair)
            return "done"

    def _list_open(self) -> "list[JudgePrompt]":
        """Return the prompts without a vote, in their order."""
        closed = self._voted.keys() | self._skipped
        return [prompt for prompt in self.plan.prompts if prompt.index not in closed]

    def _skip(self, pair: ReplyPair) -> None:
        """Leave out a pair that cannot be judged, and record equal replies once."""
        if pair.is_equal:
            digest = self._digest(pair)
            if digest not in self._recorded_equal:
                append_judgement(
                    self.plan.run.judgements,
                    EqualReplies(
                        pair=digest, item=pair.prompt.index, comparison=self.plan.comparison, time=format_time()
                    ),
                )
                self._recorded_equal.add(digest)
        self._skipped.add(pair.prompt.index)

    def _show(self, pair: ReplyPair) -> ShownPair:
        """Return a pair in its random order, which stays the same in this session."""
        index = pair.prompt.index
        if index not in self._shown:
            bits = hmac.new(self._secret, str(index).encode(), hashlib.sha256).digest()
            left: Side = "a" if bits[0] & 1 else "b"
            number = self._judged_before + len(self._shown) + 1
            self._shown[index] = ShownPair(secrets.token_urlsafe(_ID_BYTES), pair, left, number)
        return self._shown[index]

    def _digest(self, pair: ReplyPair) -> str:
        return digest_pair(self.plan.comparison, pair.prompt.ids, pair.a.text, pair.b.text)

    def vote(self, pair_id: str, choice: Choice, note: str = "") -> None:
        """Store a vote. The same vote twice, as after a lost answer, is one; another vote replaces the first.

        Raises VoteRefusedError, and the errors of the log.
        """
        with self._lock:
            if self._finished:
                raise VoteRefusedError("The result was shown, so this judgement is finished.")
            shown = next((shown for shown in self._shown.values() if shown.id == pair_id), None)
            if shown is None:
                raise VoteRefusedError("The server did not show this pair, or was started again. Load the next one.")
            index, before = shown.pair.prompt.index, self._voted.get(shown.pair.prompt.index)
            if before is not None and (before.choice, before.note) == (choice, note):
                return
            record = Vote(
                pair=self._digest(shown.pair),
                item=index,
                comparison=self.plan.comparison,
                time=format_time(),
                left=shown.left,
                choice=choice,
                winner=find_winner(shown.left, choice),
                note=note,
                judge=self._judge,
            )
            append_judgement(self.plan.run.judgements, record)
            self._voted[index] = record
            if index not in self._history:
                self._history.append(index)

    def undo(self) -> None:
        """Withdraw the last vote of this session, so that its pair is shown again. Raise VoteRefusedError if none."""
        with self._lock:
            if self._finished or not self._history:
                raise VoteRefusedError("There is no vote to undo.")
            vote = self._voted[self._history[-1]]
            fields = {name: getattr(vote, name) for name in ("pair", "item", "comparison", "judge")}
            append_judgement(self.plan.run.judgements, Retraction(time=format_time(), **fields))
            self._voted.pop(self._history.pop())

    def finish(self) -> dict[str, object]:
        """End the session and return the result with the names of both models."""
        with self._lock:
            self._finished = True
            result = self.summarize()
            names = {"a": self.plan.comparison.a.name, "b": self.plan.comparison.b.name}
            shown = sorted(self._shown.values(), key=lambda each: each.number)
            return {
                **result.as_dict(),
                "names": names,
                "text": format_result(result),
                "notes": format_notes(result),
                "reveal": [
                    {
                        "number": each.number,
                        "prompt": each.pair.prompt.context[-1].text[:200],
                        "left": names[each.left],
                        "right": names["b" if each.left == "a" else "a"],
                        "choice": self._voted[each.pair.prompt.index].choice,
                    }
                    for each in shown
                    if each.pair.prompt.index in self._voted
                ],
            }

    def summarize(self) -> JudgementResult:
        """Return the result of all votes on this comparison, in the order of its models."""
        return summarize_comparison(self.plan.comparison, self._read_records())
