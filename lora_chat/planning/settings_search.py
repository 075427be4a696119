"""Which settings fit a device: those that `auto` leaves open, and what to change where nothing fits."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any

from lora_chat.config.plan import Plan
from lora_chat.data.lengths import DataLengths
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import Speed, Target
from lora_chat.planning.phase_memory import Phase, make_phases, train_phase
from lora_chat.planning.phase_time import step_seconds
from lora_chat.planning.training_memory import Setting
from lora_chat.planning.workload import make_workload

_BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384)
_MOST_ON_A_CPU = 2048
"""Tokens; more are no faster there (benchmarks/LOG.md)."""
_QUARTERS = 4
_ANY = Speed(flops=1e12, bandwidth=5e10, launch=0, low=1, high=1, source="for comparing choices alone")
_WORTH = 0.97
"""A choice has to be at least so much faster to be worth more memory."""
IN_SFT = ("load", "train", "evaluate", "generate", "save")
"""Phases that `sft` goes through; merging and exporting come later, perhaps elsewhere."""


@dataclass(frozen=True)
class Job:
    """What is to be fitted: a base, dialogues, a device."""

    shape: ModelShape
    data: DataLengths
    target: Target


@dataclass(frozen=True)
class Choice:
    """A plan with what it would need."""

    plan: Plan
    job: Job

    @cached_property
    def setting(self) -> Setting:
        """What memory depends on."""
        return make_setting(self.plan, self.job.shape)

    @cached_property
    def work(self) -> Any:
        """Its steps and micro-batches."""
        return make_workload(self.job.data, self.plan.training)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """All phases."""
        return make_phases(self.job.shape, self.setting, self.work, self.job.data, self.job.target)

    @cached_property
    def peak(self) -> int:
        """Bytes that `sft` needs at most."""
        return max(phase.total for phase in self.phases if phase.name in IN_SFT)

    @cached_property
    def training_peak(self) -> int:
        """Bytes that training needs."""
        work = self.work
        return train_phase(self.job.shape, self.setting, work.largest, self.job.target, padded=work.mask_needed).total

    @cached_property
    def seconds(self) -> float:
        """Of one optimizer step, to compare."""
        speed = self.job.target.speed or _ANY
        return step_seconds(self.job.shape, self.setting, self.plan.training, self.work, speed)

    def fits(self, limit: int) -> bool:
        """Whether `sft` would stay below so many bytes."""
        return self.training_peak <= limit and self.peak <= limit


def make_setting(plan: Plan, shape: ModelShape) -> Setting:
    """A plan's part that memory depends on."""
    targets = plan.adapter.target_modules
    checkpointed = plan.training.gradient_checkpointing
    many = checkpointed * shape.layer_count if isinstance(checkpointed, bool) else checkpointed
    return Setting(
        mode=plan.precision.mode,
        rank=plan.adapter.rank,
        targets=() if targets == "all-linear" else tuple(name.split(".")[-1] for name in targets),
        fast=plan.training.fast_path,
        checkpointed=min(many, shape.layer_count),
        double_quantization=plan.precision.double_quantization,
        moment_bytes=2 if plan.training.optimizer == "adamw_8bit" else 8,
        width=2 if plan.precision.dtype == "bfloat16" else 4,
        on_cpu=plan.precision.device == "cpu",
    )


def choose(plan: Plan, job: Job, limit: int) -> Plan:
    """The fastest of what the recipe leaves open that stays within `limit` bytes; the smallest if none does."""
    sizes = _pieces(plan, job) if "micro_batch_size" in plan.open_settings else [plan]
    layers = "gradient_checkpointing" in plan.open_settings
    precise = [
        Choice(checkpointed, job)
        for sized in sizes
        for checkpointed in (_checkpointed(sized, job, 0) if layers else [sized])
    ]
    for found in (precise, [_with_small_moments(choice) for choice in precise]):
        if fitting := [choice for choice in found if choice.fits(limit)]:
            return _fastest(fitting).plan
        if "optimizer" not in plan.open_settings:
            break
    return min(precise, key=lambda choice: (choice.peak, choice.seconds)).plan


def _fastest(choices: Sequence[Choice]) -> Choice:
    if choices[0].job.target.device == "cpu":
        # There the largest products are the fastest up to the most that is tried (benchmarks/LOG.md).
        return min(choices, key=lambda one: (one.setting.checkpointed, -(one.plan.training.micro_batch_tokens or 0)))
    best = min(choices, key=lambda choice: choice.seconds)
    near = [choice for choice in choices if choice.seconds * _WORTH <= best.seconds]
    return min(near, key=lambda choice: (choice.training_peak, choice.seconds))


def changes(plan: Plan, job: Job, limit: int) -> Choice | None:
    """The shortest list of changes with which a plan fits: first what costs speed alone, and of that the least."""
    here = Choice(plan, job)
    kinds: list[list[dict[str, Any]]] = [
        [
            _difference(plan, smaller)
            for smaller in _pieces(plan, job)
            if Choice(smaller, job).work.largest.tokens < here.work.largest.tokens
        ],
        [_difference(plan, more) for more in _checkpointed(plan, job, here.setting.checkpointed + 1)],
        [{"training": {"optimizer": "adamw_8bit"}}] if plan.training.optimizer == "adamw" else [],
        *([{"precision": {"mode": mode}}] for mode in _narrower(plan.precision.mode)),
    ]
    for length in range(1, len(kinds) + 1):
        for chosen in combinations([kind for kind in kinds if kind], length):
            found = [Choice(_changed(plan, parts), job) for parts in product(*chosen)]
            if fitting := [choice for choice in found if choice.fits(limit)]:
                return min(fitting, key=lambda choice: choice.seconds)
    return None


def _narrower(mode: str) -> list[str]:
    return {"none": ["8bit", "4bit"], "8bit": ["4bit"]}.get(mode, [])


def _pieces(plan: Plan, job: Job) -> list[Plan]:
    """Plans with micro-batches of every size that makes sense."""
    training = plan.training
    if not training.fast_path:
        whole = training.effective_batch_size
        sizes = [size for size in range(1, min(whole, 64) + 1) if whole % size == 0]
        return [_with(plan, micro_batch_size=size, gradient_accumulation_steps=whole // size) for size in sizes]
    if training.micro_batch_tokens is None:
        return [plan]
    longest = int(job.data.train.trained.max())
    most = _MOST_ON_A_CPU if job.target.device == "cpu" else _BUDGETS[-1]
    budgets = [budget for budget in _BUDGETS if budget <= most]
    # Smaller than the longest dialogue is no smaller: that one goes alone.
    useful = [budget for budget in budgets if budget >= longest] or budgets[-1:]
    below = [budget for budget in budgets if budget < longest][-1:]
    return [_with(plan, micro_batch_tokens=budget) for budget in (*below, *useful)]


def _checkpointed(plan: Plan, job: Job, least: int) -> Iterator[Plan]:
    layers = job.shape.layer_count
    for quarter in range(_QUARTERS + 1):
        many = -(-layers * quarter // _QUARTERS)
        if many >= least:
            yield _with(plan, gradient_checkpointing=many == layers or (many if many else False))


def _with_small_moments(choice: Choice) -> Choice:
    return Choice(_with(choice.plan, optimizer="adamw_8bit"), choice.job)


def _with(plan: Plan, **training: Any) -> Plan:
    return plan.model_copy(update={"training": plan.training.model_copy(update=training)})


def _difference(plan: Plan, other: Plan) -> dict[str, Any]:
    before, after = plan.training.model_dump(), other.training.model_dump()
    return {"training": {key: value for key, value in after.items() if before[key] != value}}


def _changed(plan: Plan, parts: Iterable[dict[str, Any]]) -> Plan:
    for part in parts:
        for section, values in part.items():
            plan = plan.model_copy(update={section: getattr(plan, section).model_copy(update=values)})
    return plan


def as_settings(before: Plan, after: Plan) -> list[str]:
    """What was changed, as `--set` takes it."""
    names = {"precision": "quantization"}
    found = []
    for section in ("training", "precision"):
        old, new = (getattr(one, section).model_dump() for one in (before, after))
        for key, value in new.items():
            if old[key] != value and key != "gradient_accumulation_steps":
                text = str(value).lower() if isinstance(value, bool) else str(value)
                found.append(f"{names.get(section, section)}.{key}={text}")
    return found
