"""The human votes on the adapter that a run has now."""

from dataclasses import dataclass

from lora_chat.evaluation.judgement_text import format_notes, format_result
from lora_chat.evaluation.judgements import JudgementResult, summarize_judgements
from lora_chat.runs.judgement_log import JudgementLog, read_judgements
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.bounded_files import read_json_object
from lora_chat.system.hashing import digest_file

_WEIGHTS_NAME, _IDENTITY_NAME = "adapter_model.safetensors", "lora_chat.json"
"""Files of an adapter, which are named here because `models` would import torch."""


@dataclass(frozen=True)
class RunJudgements:
    """The results of all comparisons of the run's present adapter, the latest first."""

    results: tuple[JudgementResult, ...]
    """Results in which the adapter of the run is A."""
    other_weights: int = 0
    """Number of records on other weights, such as those before the run was trained again."""
    ignored_lines: str = ""
    """Sentence on lines of the log that are left out; empty if all are read."""

    @property
    def best_known(self) -> JudgementResult | None:
        """Return the result against the bare base, or else the one with the most votes; None without votes."""
        return max(self.results, key=lambda r: (r.comparison.b.adapter is None, r.votes), default=None)

    @property
    def notes(self) -> list[str]:
        """Return sentences on records that are not counted."""
        count = self.other_weights
        verb = "is" if count == 1 else "are"
        return [
            *([self.ignored_lines] if self.ignored_lines else []),
            *(
                [f"{count:,} {'record' if count == 1 else 'records'} on other adapter weights {verb} not counted here."]
                if count
                else []
            ),
        ]

    @property
    def lines(self) -> list[str]:
        """Return the results as lines of text."""
        lines = [line for result in self.results for line in (format_result(result), *format_notes(result))]
        return [*lines, *self.notes]

    def as_dict(self) -> dict[str, object]:
        """Return the results for JSON."""
        return {
            "results": [{**result.as_dict(), "text": format_result(result)} for result in self.results],
            "other_weights": self.other_weights,
            "notes": self.notes,
        }


def collect_run_judgements(run: RunFolder) -> RunJudgements:
    """Read the votes on the present adapter of a run. Raise IntegrityError for a log that cannot be read."""
    log = read_judgements(run.judgements)
    if not log.records:
        return RunJudgements((), ignored_lines=log.ignored)
    weights, identity = run.adapter / _WEIGHTS_NAME, run.adapter / _IDENTITY_NAME
    if not (weights.is_file() and identity.is_file()):
        return RunJudgements((), len(log.records), log.ignored)
    return judge_run(log, digest_file(weights), str(read_json_object(identity).get("weights")))


def judge_run(log: JudgementLog, adapter: str, base: str) -> RunJudgements:
    """Return the results of a log for the adapter and the base with these digests."""
    own = [record for record in log.records if record.comparison.has_adapter(adapter, base)]
    results = [
        result if result.comparison.a.adapter == adapter else result.reversed(own)
        for result in summarize_judgements(own)
    ]
    voted = [result for result in results if result.votes or result.equal_replies]
    return RunJudgements(tuple(reversed(voted)), len(log.records) - len(own), log.ignored)
