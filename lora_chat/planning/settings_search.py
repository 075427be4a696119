"""Which settings fit a device: those that `auto` leaves open, and what to change where nothing fits."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any

from lora_chat.config.plan import Plan
from lora_chat.data.lengths import DataLengths
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import DeviceSpeed, TargetDevice
from lora_chat.planning.phase_memory import PhaseMemory, estimate_phases, estimate_train_phase
from lora_chat.planning.phase_time import step_seconds
from lora_chat.planning.training_memory import MemoryConfig
from lora_chat.planning.workload import compute_workload

_TOKEN_BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384)
_MAX_CPU_MICRO_BATCH_TOKENS = 2048
"""Tokens; more are no faster there (benchmarks/LOG.md)."""
_NUM_CHECKPOINTING_STEPS = 4
_REFERENCE_SPEED = DeviceSpeed(
    flops=1e12, bandwidth=5e10, launch=0, low=1, high=1, source="for comparing choices alone"
)
_WORTHWHILE_TIME_RATIO = 0.97
"""A choice has to be at least so much faster to be worth more memory."""
SFT_PHASES = ("load", "train", "evaluate", "generate", "save")
"""Phases that `sft` goes through; merging and exporting come later, perhaps elsewhere."""


@dataclass(frozen=True)
class PlanningProblem:
    """What is to be fitted: a base, dialogues, a device."""

    shape: ModelShape
    data: DataLengths
    target: TargetDevice


@dataclass(frozen=True)
class Candidate:
    """A plan with what it would need."""

    plan: Plan
    problem: PlanningProblem

    @cached_property
    def memory_config(self) -> MemoryConfig:
        """What memory depends on."""
        return memory_config_from_plan(self.plan, self.problem.shape)

    @cached_property
    def workload(self) -> Any:
        """Its steps and micro-batches."""
        return compute_workload(self.problem.data, self.plan.training)

    @cached_property
    def phases(self) -> tuple[PhaseMemory, ...]:
        """All phases."""
        return estimate_phases(
            self.problem.shape, self.memory_config, self.workload, self.problem.data, self.problem.target
        )

    @cached_property
    def peak(self) -> int:
        """Bytes that `sft` needs at most."""
        return max(phase.total for phase in self.phases if phase.name in SFT_PHASES)

    @cached_property
    def training_peak(self) -> int:
        """Bytes that training needs."""
        work = self.workload
        return estimate_train_phase(
            self.problem.shape, self.memory_config, work.largest, self.problem.target, padded=work.mask_needed
        ).total

    @cached_property
    def seconds_per_step(self) -> float:
        """Of one optimizer step, to compare."""
        speed = self.problem.target.speed or _REFERENCE_SPEED
        return step_seconds(self.problem.shape, self.memory_config, self.plan.training, self.workload, speed)

    def fits(self, limit: int) -> bool:
        """Whether `sft` would stay below so many bytes."""
        return self.training_peak <= limit and self.peak <= limit


def memory_config_from_plan(plan: Plan, shape: ModelShape) -> MemoryConfig:
    """A plan's part that memory depends on."""
    targets = plan.adapter.target_modules
    checkpointed = plan.training.gradient_checkpointing
    num_checkpointed = checkpointed * shape.num_layers if isinstance(checkpointed, bool) else checkpointed
    return MemoryConfig(
        mode=plan.precision.mode,
        rank=plan.adapter.rank,
        target_modules=() if targets == "all-linear" else tuple(name.split(".")[-1] for name in targets),
        fast_path=plan.training.fast_path,
        checkpointed=min(num_checkpointed, shape.num_layers),
        double_quantization=plan.precision.double_quantization,
        moment_bytes=2 if plan.training.optimizer == "adamw_8bit" else 8,
        bytes_per_value=2 if plan.precision.dtype == "bfloat16" else 4,
        on_cpu=plan.precision.device == "cpu",
    )


def choose_plan(plan: Plan, problem: PlanningProblem, limit: int) -> Plan:
    """The fastest of what the recipe leaves open that stays within `limit` bytes; the smallest if none does."""
    sizes = _micro_batch_plans(plan, problem) if "micro_batch_size" in plan.open_settings else [plan]
    layers = "gradient_checkpointing" in plan.open_settings
    default_candidates = [
        Candidate(checkpointed, problem)
        for sized in sizes
        for checkpointed in (_checkpointing_plans(sized, problem, 0) if layers else [sized])
    ]
    for candidates in (default_candidates, [_with_8bit_optimizer(choice) for choice in default_candidates]):
        if fitting := [choice for choice in candidates if choice.fits(limit)]:
            return _select_fastest(fitting).plan
        if "optimizer" not in plan.open_settings:
            break
    return min(default_candidates, key=lambda choice: (choice.peak, choice.seconds_per_step)).plan


def _select_fastest(choices: Sequence[Candidate]) -> Candidate:
    if choices[0].problem.target.device == "cpu":
        # There the largest products are the fastest up to the most that is tried (benchmarks/LOG.md).
        return min(
            choices, key=lambda one: (one.memory_config.checkpointed, -(one.plan.training.micro_batch_tokens or 0))
        )
    best = min(choices, key=lambda choice: choice.seconds_per_step)
    near = [choice for choice in choices if choice.seconds_per_step * _WORTHWHILE_TIME_RATIO <= best.seconds_per_step]
    return min(near, key=lambda choice: (choice.training_peak, choice.seconds_per_step))


def find_fitting_candidate(plan: Plan, problem: PlanningProblem, limit: int) -> Candidate | None:
    """The shortest list of changes with which a plan fits: first what costs speed alone, and of that the least."""
    current = Candidate(plan, problem)
    options_by_kind: list[list[dict[str, Any]]] = [
        [
            _training_differences(plan, smaller)
            for smaller in _micro_batch_plans(plan, problem)
            if Candidate(smaller, problem).workload.largest.tokens < current.workload.largest.tokens
        ],
        [
            _training_differences(plan, more)
            for more in _checkpointing_plans(plan, problem, current.memory_config.checkpointed + 1)
        ],
        [{"training": {"optimizer": "adamw_8bit"}}] if plan.training.optimizer == "adamw" else [],
        *([{"precision": {"mode": mode}}] for mode in _lower_precisions(plan.precision.mode)),
    ]
    for length in range(1, len(options_by_kind) + 1):
        for kinds_to_change in combinations([kind for kind in options_by_kind if kind], length):
            candidates = [Candidate(_apply_differences(plan, parts), problem) for parts in product(*kinds_to_change)]
            if fitting := [choice for choice in candidates if choice.fits(limit)]:
                return min(fitting, key=lambda choice: choice.seconds_per_step)
    return None


def _lower_precisions(mode: str) -> list[str]:
    return {"none": ["8bit", "4bit"], "8bit": ["4bit"]}.get(mode, [])


def _micro_batch_plans(plan: Plan, problem: PlanningProblem) -> list[Plan]:
    """Plans with micro-batches of every size that makes sense."""
    training = plan.training
    if not training.fast_path:
        effective_batch_size = training.effective_batch_size
        sizes = [size for size in range(1, min(effective_batch_size, 64) + 1) if effective_batch_size % size == 0]
        return [
            _with_training(plan, micro_batch_size=size, gradient_accumulation_steps=effective_batch_size // size)
            for size in sizes
        ]
    if training.micro_batch_tokens is None:
        return [plan]
    longest = int(problem.data.train.trained.max())
    max_tokens = _MAX_CPU_MICRO_BATCH_TOKENS if problem.target.device == "cpu" else _TOKEN_BUDGETS[-1]
    budgets = [budget for budget in _TOKEN_BUDGETS if budget <= max_tokens]
    # Smaller than the longest dialogue is no smaller: that one goes alone.
    useful = [budget for budget in budgets if budget >= longest] or budgets[-1:]
    below = [budget for budget in budgets if budget < longest][-1:]
    return [_with_training(plan, micro_batch_tokens=budget) for budget in (*below, *useful)]


def _checkpointing_plans(plan: Plan, problem: PlanningProblem, min_layers: int) -> Iterator[Plan]:
    layers = problem.shape.num_layers
    for quarter in range(_NUM_CHECKPOINTING_STEPS + 1):
        num_checkpointed = -(-layers * quarter // _NUM_CHECKPOINTING_STEPS)
        if num_checkpointed >= min_layers:
            yield _with_training(
                plan,
                gradient_checkpointing=num_checkpointed == layers or (num_checkpointed if num_checkpointed else False),
            )


def _with_8bit_optimizer(choice: Candidate) -> Candidate:
    return Candidate(_with_training(choice.plan, optimizer="adamw_8bit"), choice.problem)


def _with_training(plan: Plan, **training: Any) -> Plan:
    return plan.model_copy(update={"training": plan.training.model_copy(update=training)})


def _training_differences(plan: Plan, other: Plan) -> dict[str, Any]:
    before, after = plan.training.model_dump(), other.training.model_dump()
    return {"training": {key: value for key, value in after.items() if before[key] != value}}


def _apply_differences(plan: Plan, parts: Iterable[dict[str, Any]]) -> Plan:
    for part in parts:
        for section, values in part.items():
            plan = plan.model_copy(update={section: getattr(plan, section).model_copy(update=values)})
    return plan


def format_overrides(before: Plan, after: Plan) -> list[str]:
    """What was changed, as `--set` takes it."""
    names = {"precision": "quantization"}
    overrides = []
    for section in ("training", "precision"):
        old, new = (getattr(one, section).model_dump() for one in (before, after))
        for key, value in new.items():
            if old[key] != value and key != "gradient_accumulation_steps":
                text = str(value).lower() if isinstance(value, bool) else str(value)
                overrides.append(f"{names.get(section, section)}.{key}={text}")
    return overrides
