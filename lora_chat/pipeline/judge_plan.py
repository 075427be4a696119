"""The prompts and models of a blind judgement, found and checked before weights load."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GenerationSection
from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.evaluation.judgements import JudgementResult, summarize_judgements
from lora_chat.models.adapter_files import WEIGHTS_NAME
from lora_chat.models.base_model import load_tokenizer, read_max_positions
from lora_chat.models.identity import compute_identity
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.admitted_model import BARE_BASE
from lora_chat.pipeline.held_out import EvaluationFiles, prepare_evaluation
from lora_chat.pipeline.judge_prompts import JudgePrompt, select_prompts
from lora_chat.pipeline.open_adapter import OpenAdapter, TrustOptions, open_adapter
from lora_chat.runs.judgement_log import read_judgements
from lora_chat.runs.judgement_record import (
    MAX_JUDGE_CHARACTERS,
    MAX_NAME_CHARACTERS,
    JudgedComparison,
    JudgedModel,
    JudgedSettings,
)
from lora_chat.runs.run_folder import RunFolder, is_run_folder
from lora_chat.sharing.parcel import is_parcel, open_parcel
from lora_chat.system.hashing import digest_file
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_PROMPTS, MAX_PROMPTS = 50, 1000


@dataclass(frozen=True)
class JudgeSettings:
    """The user's choices for a judgement."""

    prompts: int = DEFAULT_PROMPTS
    max_new_tokens: int | None = None
    """Largest number of tokens of a reply; None repeats the comparison of the run."""
    mode: str | None = None
    """Quantization mode; None repeats that of training."""


@dataclass(frozen=True)
class JudgedSide:
    """One of the two models before weights load."""

    source: str | None
    """Run, parcel or folder; None for the bare base."""
    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class JudgePlan:
    """Everything of a judgement except the models in memory."""

    run: RunFolder
    run_source: str
    comparison: JudgedComparison
    a: JudgedSide
    b: JudgedSide
    prompts: tuple[JudgePrompt, ...]
    """Prompts in the order in which they are judged."""

    @property
    def sources(self) -> list[str]:
        """Return the things to load as NAME=THING, the run first because it decides base and precision.

        The names are made here, because two runs may have folders of the same name.
        """
        sources = dict.fromkeys([self.run_source, *(s.source for s in (self.a, self.b) if s.source is not None)])
        return [f"judged-{number}={source}" for number, source in enumerate(sources, 1)]

    def with_precision(self, precision: PrecisionPlan) -> "JudgePlan":
        """Return the plan with the precision of the base that is in memory, which other adapters may have decided."""
        settings = self.comparison.settings.model_copy(update={"precision": describe_precision(precision)})
        return replace(self, comparison=self.comparison.model_copy(update={"settings": settings}))

    def check_weights_unchanged(self) -> None:
        """Raise IntegrityError if an adapter was replaced since the plan was made, because votes name its digest."""
        for side, model in ((self.a, self.comparison.a), (self.b, self.comparison.b)):
            if side.source is not None and _digest_adapter(side.source) != model.adapter:
                raise IntegrityError(
                    f"{side.source} was changed while it was being loaded. Fix: run the command again."
                )

    @property
    def summary(self) -> str:
        """Return the plan as lines of text. It names the models, whose order of replies stays secret."""
        settings, models = self.comparison.settings, f"{self.comparison.a.name} and {self.comparison.b.name}"
        replies = "greedy replies" if settings.generation.is_greedy else "sampled replies"
        return (
            f"Judging {models} on {len(self.prompts)} held-out prompts of {self.run.path.name}: {replies} of at most "
            f"{settings.max_new_tokens} tokens"
        )


def check_judge_options(
    run_source: str, models: Sequence[str], settings: JudgeSettings, judge: str | None
) -> tuple[str, str]:
    """Return the models A and B that the user named. Raise UsageError for options that cannot be used."""
    if len(models) > 2:
        raise UsageError(f"{len(models)} models are named; two are compared. Fix: lora-chat judge RUN A B")
    if settings.prompts > MAX_PROMPTS:
        raise UsageError(f"--prompts {settings.prompts}: at most {MAX_PROMPTS} prompts are judged. Fix: give fewer.")
    if judge is not None and not (judge.strip() and judge.isprintable() and len(judge) <= MAX_JUDGE_CHARACTERS):
        raise UsageError(
            f"--judge needs 1 to {MAX_JUDGE_CHARACTERS} printable characters. Fix: give another name, or leave it out."
        )
    if len(models) == 2:
        return models[0], models[1]
    return run_source, models[0] if models else BARE_BASE


def plan_judgement(
    run_source: str, a: str, b: str, trust: TrustOptions, settings: JudgeSettings = JudgeSettings()
) -> JudgePlan:
    """Find the held-out prompts of a run and the models A and B, which are adapters or `base`.

    Raises UsageError if there is nothing to judge, IntegrityError for an adapter of another base, and the errors of
    the run and the adapters.
    """
    opened = open_adapter(run_source, trust, settings.mode)
    if opened.run is None:
        raise UsageError(f"{run_source} is not a run: only a run has held-out prompts. Fix: name a run first.")
    prepared = prepare_evaluation(opened, EvaluationFiles())
    evaluation = opened.run.read_plan().evaluation
    run_side = JudgedSide(run_source, opened.adapter.tokenizer, prepared.stop_ids)
    sides, models = [], []
    names = (b, a) if _is_same_path(b, run_source) else (a, b)  # a run is A, so that all its results have one order
    for name in names:
        side, model = _find_side(name, run_side, opened, trust, settings)
        sides.append(side)
        models.append(model)
    if models[0].adapter == models[1].adapter:
        raise UsageError(f"{a} and {b} have the same weights, so there is nothing to compare. Fix: name two models.")
    tokenizers = [side.tokenizer for side in (run_side, *sides)]
    prompts = select_prompts(prepared.compared, tokenizers, settings.prompts)
    if not prompts:
        raise UsageError(
            f"{run_source} has no held-out prompts (data.validation_share: 0, or dialogues without replies). "
            "Fix: train with data.validation_share or data.test."
        )
    max_new_tokens = settings.max_new_tokens or evaluation.max_new_tokens
    positions = read_max_positions(opened.adapter.base)
    shortest = min(max(len(prompt.ids_a), len(prompt.ids_b)) for prompt in prompts)
    if positions is not None and shortest + max_new_tokens > positions:
        raise UsageError(
            f"No prompt of {run_source} fits the {positions:,} positions of its base with {max_new_tokens:,} new "
            f"tokens. Fix: --max-new-tokens {max(1, positions - shortest)} or fewer."
        )
    comparison = JudgedComparison(
        base=_digest_base(opened),
        a=models[0],
        b=models[1],
        settings=JudgedSettings(
            max_new_tokens=max_new_tokens,
            generation=GenerationSection.model_validate(evaluation.generation.model_dump()),
            precision=describe_precision(opened.precision),
        ),
    )
    return JudgePlan(opened.run, run_source, comparison, sides[0], sides[1], tuple(prompts))


def collect_named_results(run: RunFolder, a: str, b: str) -> list[JudgementResult]:
    """Return the results of the votes in a run on the models A and B, one for each choice of settings.

    Raises UsageError for a model that is not an adapter in a folder or parcel.
    """
    names = (b, a) if _is_same_path(b, str(run.path)) else (a, b)
    wanted = [None if name == BARE_BASE else _digest_adapter(name) for name in names]
    records = [
        record
        for record in read_judgements(run.judgements).records
        if {record.comparison.a.adapter, record.comparison.b.adapter} == set(wanted)
    ]
    return [
        result if result.comparison.a.adapter == wanted[0] else result.reversed(records)
        for result in summarize_judgements(records)
    ]


def describe_precision(precision: PrecisionPlan) -> str:
    """Return the mode and dtype of the base in the form of a record."""
    return f"{precision.mode}, {precision.dtype}"


def _find_side(
    name: str, run_side: JudgedSide, opened_run: OpenAdapter, trust: TrustOptions, settings: JudgeSettings
) -> tuple[JudgedSide, JudgedModel]:
    """Return a model by the name that the user gave, with the digest of its weights."""
    if name == BARE_BASE:
        return JudgedSide(None, run_side.tokenizer, run_side.stop_ids), JudgedModel(name=BARE_BASE, adapter=None)
    is_run = _is_same_path(name, run_side.source or "")
    opened = opened_run if is_run else open_adapter(name, trust, settings.mode)
    if opened.adapter.base.folder != opened_run.adapter.base.folder:
        raise IntegrityError(
            f"{name} was trained on {opened.adapter.base.name}, not on {opened_run.adapter.base.name} as the run, so "
            "both cannot be judged together. Fix: compare adapters of one base."
        )
    side = run_side if is_run else JudgedSide(name, opened.adapter.tokenizer, _read_stop_ids(opened))
    label = sanitize_line(expand_user_path(name).resolve().name or name, MAX_NAME_CHARACTERS)
    return side, JudgedModel(name=label, adapter=_digest_adapter(name))


def _is_same_path(name: str, run_source: str) -> bool:
    """Return whether a name of the user is the run."""
    return name != BARE_BASE and expand_user_path(name).resolve() == expand_user_path(run_source).resolve()


def _read_stop_ids(opened: OpenAdapter) -> tuple[int, ...]:
    """Return the ids at which a reply of an adapter ends."""
    return tuple(read_stop_ids(opened.adapter.base, opened.adapter.tokenizer))


def _digest_adapter(source: str) -> str:
    """Return the SHA-256 of an adapter's weights. Raise UsageError for an adapter that is not in a folder or parcel."""
    path = expand_user_path(source)
    if is_parcel(path):
        return open_parcel(path).receipt.members[WEIGHTS_NAME].sha256
    weights = (RunFolder(path).adapter if is_run_folder(path) else path) / WEIGHTS_NAME
    if not weights.is_file():
        raise UsageError(f"{source} has no {WEIGHTS_NAME}. Fix: name a run, a parcel or the folder of an adapter.")
    return digest_file(weights)


def _digest_base(opened: OpenAdapter) -> str:
    """Return the digest of the weights of the base, as an adapter's identity has it."""
    base = opened.adapter.base
    return compute_identity(base, load_tokenizer(base), stops=()).weights
