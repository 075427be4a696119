"""The search for settings that fit a device: values for `auto`, and changes to a plan that does not fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product

from lora_chat.config.lora_variants import find_initialization
from lora_chat.config.plan import BYTES_BY_DTYPE, Plan
from lora_chat.data.lengths import DataLengths
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import DeviceSpeed, TargetDevice
from lora_chat.planning.measured_shape import MeasuredShape
from lora_chat.planning.overrides import Overrides, apply_overrides, training_differences, with_training
from lora_chat.planning.phase_memory import PhaseMemory, estimate_phases, estimate_train_phase
from lora_chat.planning.phase_time import step_seconds
from lora_chat.planning.process_layout import ONE_PROCESS, TRAINING_PASSES, ProcessLayout, gather_seconds
from lora_chat.planning.step_shares import StepShares, divide_steps
from lora_chat.planning.trained_parts import measure_trained_parts
from lora_chat.planning.weight_cache import count_cached_layers
from lora_chat.planning.weight_memory import MemoryConfig, cached_weight_bytes
from lora_chat.planning.workload import Workload, compute_workload, largest_micro_batch

_TOKEN_BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384)
_MAX_CPU_MICRO_BATCH_TOKENS = 2048
"""Largest micro-batch to try on a CPU, in tokens; larger ones bring no speed there (benchmarks/LOG.md)."""
_NUM_CHECKPOINTING_STEPS = 4
_REFERENCE_SPEED = DeviceSpeed(
    flops=1e12, bandwidth=5e10, launch=0, low=1, high=1, source="only to compare candidates on an unknown device"
)
_WORTHWHILE_TIME_RATIO = 0.97
"""Largest ratio of step times at which a faster candidate is worth more memory."""
SFT_PHASES = ("load", "train", "validate", "evaluate", "generate", "save")
"""Phases of `sft`; merging and exporting come later, and may run on another machine."""


@dataclass(frozen=True)
class PlanningProblem:
    """The base, the dialogues and the device that a plan must fit."""

    shape: ModelShape
    data: DataLengths
    target: TargetDevice
    trained_parameters: int | None = None
    """Exact number of trained weights, counted on the model without weights; None if the shape tells it."""
    layout: ProcessLayout = ONE_PROCESS

    @property
    def of_one_process(self) -> "PlanningProblem":
        """Return the same problem for one process with the whole base."""
        return replace(self, layout=ONE_PROCESS)

    @cached_property
    def step_shares(self) -> dict[tuple[bool, int, bool], StepShares]:
        """Return the divided steps of the plans tried so far, by the settings on which they depend."""
        return {}


@dataclass(frozen=True)
class Candidate:
    """A plan with the memory and time that it would need."""

    plan: Plan
    problem: PlanningProblem

    @cached_property
    def memory_config(self) -> MemoryConfig:
        """Return the settings on which memory depends."""
        config = memory_config_from_plan(self.plan, self.problem.shape)
        layout = self.problem.layout
        return replace(
            config,
            trained_parameters=self.problem.trained_parameters,
            processes=layout.count,
            sharded=layout.sharded,
        )

    @cached_property
    def workload(self) -> Workload:
        """Return the steps and micro-batches.

        Whether a base without formulas keeps packed dialogues apart is checked on the loaded model, so the largest
        micro-batch is the larger one of packed and padded rows.
        """
        training = self.plan.training
        processes = self.problem.layout.count
        workload = compute_workload(self.problem.data, training, processes)
        if not (training.fast_path and isinstance(self.problem.shape, MeasuredShape)):
            return workload
        padded = largest_micro_batch(self.problem.data, training.model_copy(update={"fast_path": False}), processes)
        return replace(workload, largest=max(workload.largest, padded, key=lambda batch: batch.tokens))

    @cached_property
    def own_workload(self) -> Workload:
        """Return the workload of the process that has the most to do; one process does everything."""
        layout, training = self.problem.layout, self.plan.training
        if layout.count == 1:
            return self.workload
        key = (training.fast_path, training.effective_batch_size, bool(training.neftune_alpha))
        shares = self.problem.step_shares
        if key not in shares:
            shares[key] = divide_steps(self.problem.data, training, layout.count)
        return shares[key].apply_to(self.workload, training)

    @cached_property
    def phases(self) -> tuple[PhaseMemory, ...]:
        """Return the memory of all phases."""
        return estimate_phases(
            self.problem.shape, self.memory_config, self.workload, self.problem.data, self.problem.target
        )

    @cached_property
    def peak(self) -> int:
        """Return the peak bytes of `sft`."""
        return max(phase.total for phase in self.phases if phase.name in SFT_PHASES)

    @cached_property
    def training_peak(self) -> int:
        """Return the peak bytes of training, without computing the other phases."""
        workload, target = self.workload, self.problem.target
        return estimate_train_phase(
            self.problem.shape, self.memory_config, workload.largest, target, padded=workload.mask_needed
        ).total

    @cached_property
    def seconds_per_step(self) -> float:
        """Return the seconds of one optimizer step at the device's peak; only ratios are meaningful."""
        speed = self.problem.target.speed or _REFERENCE_SPEED
        workload = self.own_workload
        seconds = step_seconds(self.problem.shape, self.memory_config, self.plan.training, workload, speed)
        gathers = TRAINING_PASSES * workload.micro_batches
        return seconds + gathers * gather_seconds(self.problem.shape, self.memory_config, self.problem.layout)

    def fits(self, limit: int) -> bool:
        """Return whether `sft` would stay within `limit` bytes."""
        return self.training_peak <= limit and self.peak <= limit


def memory_config_from_plan(plan: Plan, shape: ModelShape) -> MemoryConfig:
    """Return the settings of a plan on which memory depends."""
    targets = plan.adapter.target_modules
    initialization = find_initialization(plan.adapter.initialization)
    checkpointed = plan.training.gradient_checkpointing
    num_checkpointed = checkpointed * shape.num_layers if isinstance(checkpointed, bool) else checkpointed
    return MemoryConfig(
        mode=plan.precision.mode,
        rank=max(plan.adapter.rank, *(plan.adapter.rank_pattern or {}).values(), 0) * initialization.rank_factor,
        decomposes_weights=initialization.decomposes_weights,
        loads_original=initialization.fits_residual,
        target_modules=() if isinstance(targets, str) else tuple(name.split(".")[-1] for name in targets),
        fast_path=plan.training.fast_path,
        checkpointed=min(num_checkpointed, shape.num_layers),
        double_quantization=plan.precision.double_quantization,
        moment_bytes=2 if plan.training.optimizer == "adamw_8bit" else 8,
        bytes_per_value=BYTES_BY_DTYPE[plan.precision.dtype],
        on_cpu=plan.precision.device == "cpu",
        label_smoothing=plan.training.label_smoothing > 0,
        measures_in_training=plan.evaluation.measures_in_training,
        cached_layers=min(plan.training.cached_layers, shape.num_layers),
        unquantized_weights=_count_unquantized(plan, shape),
        parts=measure_trained_parts(plan.adapter, shape),
    )


def _count_unquantized(plan: Plan, shape: ModelShape) -> int:
    """Return the number of weights in linear layers that the base's own quantization leaves in 16 bits."""
    precision = plan.precision
    if precision.mode == "none" or precision.stored is None or precision.coverage is None:
        return 0
    return max(0, shape.num_linear_weights - precision.coverage.quantized)


def choose_plan(plan: Plan, problem: PlanningProblem, limit: int) -> Plan:
    """Choose the settings that the recipe leaves open.

    Return the fastest plan within `limit` bytes, or the smallest plan if none is within it. Several processes with
    the whole base take the settings of one, if they fit, so that a run can be continued with another number of them.
    """
    if problem.layout.count > 1 and not problem.layout.sharded:
        alone = with_training(choose_plan(plan, problem.of_one_process, limit), cached_layers=0)
        if (candidate := Candidate(alone, problem)).fits(limit):
            return _with_cached_layers(candidate, limit).plan
    plan = with_training(plan, cached_layers=0)
    sizes = _micro_batch_plans(plan, problem) if "micro_batch_size" in plan.open_settings else [plan]
    checkpointing_is_open = "gradient_checkpointing" in plan.open_settings
    default_candidates = [
        Candidate(checkpointed, problem)
        for sized in sizes
        for checkpointed in (_checkpointing_plans(sized, problem, 0) if checkpointing_is_open else [sized])
    ]
    # An 8-bit optimizer changes the arithmetic, so it is tried only if nothing else fits.
    for candidates in (default_candidates, [_with_8bit_optimizer(candidate) for candidate in default_candidates]):
        if fitting := [candidate for candidate in candidates if candidate.fits(limit)]:
            return _select_fastest([_with_cached_layers(candidate, limit) for candidate in fitting]).plan
        if "optimizer" not in plan.open_settings:
            break
    return min(default_candidates, key=lambda candidate: (candidate.peak, candidate.seconds_per_step)).plan


def _select_fastest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the fastest candidate, or a nearly as fast one that takes less memory."""
    if candidates[0].problem.target.device == "cpu":
        # On a CPU, larger micro-batches are faster up to the largest that is tried (benchmarks/LOG.md).
        return min(
            candidates,
            key=lambda candidate: (
                candidate.memory_config.checkpointed,
                -(candidate.plan.training.micro_batch_tokens or 0),
            ),
        )
    fastest = min(candidate.seconds_per_step for candidate in candidates)
    near = [candidate for candidate in candidates if candidate.seconds_per_step * _WORTHWHILE_TIME_RATIO <= fastest]
    return min(
        near,
        # The cache fills whatever memory is left, so it does not count.
        key=lambda candidate: (
            candidate.training_peak - cached_weight_bytes(candidate.problem.shape, candidate.memory_config),
            candidate.seconds_per_step,
        ),
    )


def _with_cached_layers(candidate: Candidate, limit: int) -> Candidate:
    """Return the candidate with as many cached layers as fit beside it."""
    count = count_cached_layers(
        candidate.plan, candidate.problem.shape, candidate.memory_config, candidate.phases, limit
    )
    return Candidate(with_training(candidate.plan, cached_layers=count), candidate.problem) if count else candidate


def find_fitting_candidate(plan: Plan, problem: PlanningProblem, limit: int) -> Candidate | None:
    """Return the plan that fits `limit` with the fewest changes, and of these the fastest; None if no plan fits.

    Changes that only cost speed are tried before a lower precision.
    """
    current = Candidate(plan, problem)
    options_by_kind: list[list[Overrides]] = [
        [
            training_differences(plan, smaller)
            for smaller in _micro_batch_plans(plan, problem)
            if Candidate(smaller, problem).workload.largest.tokens < current.workload.largest.tokens
        ],
        [
            training_differences(plan, checkpointed)
            for checkpointed in _checkpointing_plans(plan, problem, current.memory_config.checkpointed + 1)
        ],
        [{"training": {"optimizer": "adamw_8bit"}}] if plan.training.optimizer == "adamw" else [],
    ]
    options_by_kind += [[{"precision": {"mode": mode}}] for mode in _lower_precisions(plan)]
    for num_changes in range(1, len(options_by_kind) + 1):
        # Combinations come in the order of the list, so the kinds that only cost speed come first.
        for kinds_to_change in combinations([kind for kind in options_by_kind if kind], num_changes):
            candidates = [Candidate(apply_overrides(plan, parts), problem) for parts in product(*kinds_to_change)]
            if fitting := [candidate for candidate in candidates if candidate.fits(limit)]:
                fastest = min(fitting, key=lambda candidate: candidate.seconds_per_step)
                return _with_cached_layers(fastest, limit)  # as the plan with these changes would have
    return None


def _lower_precisions(plan: Plan) -> list[str]:
    """Return the quantization modes that take less memory, in order of preference."""
    if plan.precision.stored is not None:
        return []  # the base's files decide
    if plan.precision.device == "cuda":
        # LLM.int8 waits for the GPU in each product (planning/notes.py), so nobody is sent there.
        return ["4bit"] if plan.precision.mode != "4bit" else []
    return {"none": ["8bit", "4bit"], "8bit": ["4bit"]}.get(plan.precision.mode, [])


def _micro_batch_plans(plan: Plan, problem: PlanningProblem) -> list[Plan]:
    """Return plans with every useful size of a micro-batch and the same effective batch size."""
    training = plan.training
    if not training.fast_path:
        effective_batch_size = training.effective_batch_size
        sizes = [size for size in range(1, min(effective_batch_size, 64) + 1) if effective_batch_size % size == 0]
        return [
            with_training(plan, micro_batch_size=size, gradient_accumulation_steps=effective_batch_size // size)
            for size in sizes
        ]
    if training.micro_batch_tokens is None:
        return [plan]
    longest = int(problem.data.train.through_last_label.max())
    max_tokens = _MAX_CPU_MICRO_BATCH_TOKENS if problem.target.device == "cpu" else _TOKEN_BUDGETS[-1]
    budgets = [budget for budget in _TOKEN_BUDGETS if budget <= max_tokens]
    # The longest dialogue forms a micro-batch even if it exceeds the budget, so one smaller budget is enough.
    useful = [budget for budget in budgets if budget >= longest] or budgets[-1:]
    below = [budget for budget in budgets if budget < longest][-1:]
    plans = [with_training(plan, micro_batch_tokens=budget) for budget in (*below, *useful)]
    if not isinstance(problem.shape, MeasuredShape):
        return plans
    # The number of padded rows counts too (`Candidate.workload`): as many as the plan has, or fewer.
    batch_size, rows = training.effective_batch_size, training.micro_batch_size
    sizes = [size for size in range(rows, 0, -1) if batch_size % size == 0]
    return [
        with_training(each, micro_batch_size=size, gradient_accumulation_steps=batch_size // size)
        for each in plans
        for size in sizes
    ]


def _checkpointing_plans(plan: Plan, problem: PlanningProblem, min_layers: int) -> Iterator[Plan]:
    """Yield plans with 0, 1/4, 2/4, 3/4 and all layers checkpointed, from `min_layers` upward."""
    num_layers = problem.shape.num_layers
    for quarter in range(_NUM_CHECKPOINTING_STEPS + 1):
        num_checkpointed = -(-num_layers * quarter // _NUM_CHECKPOINTING_STEPS)
        if num_checkpointed >= min_layers:
            # Plans write all layers as true and none as false.
            yield with_training(
                plan,
                gradient_checkpointing=num_checkpointed == num_layers
                or (num_checkpointed if num_checkpointed else False),
            )


def _with_8bit_optimizer(candidate: Candidate) -> Candidate:
    """Return the candidate with an 8-bit optimizer."""
    return Candidate(with_training(candidate.plan, optimizer="adamw_8bit"), candidate.problem)
