"""The estimate of a run: memory, time, disk, verdict and suggestion, before weights load."""

from dataclasses import asdict, dataclass, replace
from typing import Literal

from lora_chat.config.plan import Plan
from lora_chat.data.lengths import DataLengths
from lora_chat.planning.calibration import MachineBenchmark, durations_from_benchmark, estimate_merge_time
from lora_chat.planning.device import TIGHT_MEMORY_FRACTION, TargetDevice
from lora_chat.planning.disk_space import run_bytes
from lora_chat.planning.evaluation_budget import choose_reply_count
from lora_chat.planning.general_time import add_general_items, add_general_time
from lora_chat.planning.gpu_kernels import Refusal, find_kernel_refusal
from lora_chat.planning.measured_shape import MemorySource, find_memory_source
from lora_chat.planning.merge_plan import MergePlan, plan_merge
from lora_chat.planning.notes import list_notes
from lora_chat.planning.overrides import format_overrides
from lora_chat.planning.phase_memory import PhaseMemory
from lora_chat.planning.phase_time import PhaseDurations, TimeEstimate, estimate_durations
from lora_chat.planning.process_layout import ONE_PROCESS, ProcessLayout
from lora_chat.planning.process_time import Communication, add_communication, estimate_communication
from lora_chat.planning.settings_search import (
    SFT_PHASES,
    Candidate,
    PlanningProblem,
    choose_plan,
    find_fitting_candidate,
)
from lora_chat.planning.step_shares import largest_data_share
from lora_chat.planning.validation import count_measurements, count_step_copies, validation_time_share
from lora_chat.planning.weight_memory import count_adapter_parameters
from lora_chat.planning.workload import Workload

Verdict = Literal["fits", "tight", "does not fit"]
_SUGGESTION_TIME_RATIO = 0.9
"""Largest ratio of step times at which a faster plan is suggested."""
_OVERHEAD_SECONDS = 0.5
"""Seconds of a run outside its phases: its folder, its plot, its model card."""
_Q8_0_BYTES_PER_WEIGHT = 34 / 32
"""Bytes of a weight in q8_0: a block has 32 one-byte weights and a two-byte scale."""


@dataclass(frozen=True)
class Suggestion:
    """A suggested change of settings, and its effect."""

    settings: tuple[str, ...]
    """Changed settings in the form of `--set`."""
    peak: int
    """Peak bytes with the change."""
    slower: float
    """Ratio of the step times with and without the change."""


@dataclass(frozen=True)
class RunEstimate:
    """Memory, time and disk of a run on a device, and whether it fits there."""

    base: str
    origin: str
    """Source of the base's config."""
    target: TargetDevice
    plan: Plan
    parameters: int
    trainable_parameters: int
    workload: Workload
    phases: tuple[PhaseMemory, ...]
    durations: PhaseDurations | None
    """Seconds of the phases of `sft`; None if unknown."""
    merge_plan: MergePlan | None
    """Parity check of a later `merge`; None for a CPU run."""
    merge_time: TimeEstimate | None
    """Seconds of a later `merge`; None if unknown."""
    disk_bytes: dict[str, int]
    download_bytes: int | None
    """Bytes to download; None if unknown."""
    suggestion: Suggestion | None
    notes: tuple[str, ...]
    memory_source: MemorySource = "formulas"
    """Source of the bytes of decoder layers."""
    measurements: int = 0
    """How often the validation set is measured during training."""
    validation_share: float = 0.0
    """Planned time of these measurements as a share of the training time."""
    refusal: Refusal | None = None
    """Reason why `sft` would stop on this GPU with PyPI's build of PyTorch; None if it would run."""
    general_items: int = 0
    """Number of general items that both models are asked after training."""
    layout: ProcessLayout = ONE_PROCESS
    communication: Communication | None = None
    """Communication of a step; None for one process."""
    own_step_tokens: float = 0.0
    """Mean tokens of a step of the process that has the most to do."""

    @property
    def worst_phase(self) -> PhaseMemory:
        """Return the phase of `sft` that needs the most memory, with the merge of a parent on a CPU."""
        merges = self.plan.adapter.stack is not None
        phases = [
            phase
            for phase in self.phases
            if phase.name in SFT_PHASES or (merges and phase.name == "merge" and not phase.in_main_memory)
        ]
        return max(phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """Return the peak bytes of `sft`."""
        return self.worst_phase.total

    @property
    def verdict(self) -> Verdict:
        """Return whether the peak fits the device's free memory."""
        return judge_fit(self.peak, self.target.free)

    @property
    def total_time(self) -> TimeEstimate | None:
        """Return the seconds of all phases of `sft`; None if unknown."""
        return sum(self.durations.values(), TimeEstimate(0, 0, 0)) if self.durations else None

    def as_dict(self) -> dict[str, object]:
        """Return the estimate for JSON, in bytes and seconds."""
        training = self.plan.training
        stored, coverage = self.plan.precision.stored, self.plan.precision.coverage
        total = self.total_time
        return {
            "base": self.base,
            "base_known_from": self.origin,
            "memory_from": self.memory_source,
            "device": asdict(self.target) | {"limit": self.target.limit},
            "verdict": self.verdict,
            "peak_bytes": self.peak,
            "spare_bytes": self.target.free - self.peak,
            "worst_phase": self.worst_phase.name,
            "dominated_by": self.worst_phase.largest_part,
            "phases": [
                {"name": phase.name, "total": phase.total, "in_main_memory": phase.in_main_memory} | phase.parts
                for phase in self.phases
            ],
            "seconds": {name: asdict(seconds) for name, seconds in (self.durations or {}).items()} or None,
            "total_seconds": asdict(total) if total else None,
            "merge_check": asdict(self.merge_plan) if self.merge_plan else None,
            "merge_seconds": asdict(self.merge_time) if self.merge_time else None,
            "workload": asdict(self.workload),
            "chosen": {
                "quantization": self.plan.precision.mode,
                "stored_quantization": stored.model_dump(mode="json") if stored else None,
                "coverage": coverage.model_dump(mode="json") if coverage else None,
                "dtype": self.plan.precision.dtype,
                "micro_batch_tokens": training.micro_batch_tokens if training.fast_path else None,
                "micro_batch_size": None
                if training.fast_path and training.micro_batch_tokens
                else training.micro_batch_size,
                "gradient_checkpointing": training.gradient_checkpointing,
                "optimizer": training.optimizer,
                "cached_layers": training.cached_layers,
                "fast_path": training.fast_path,
                "each_epoch": self.plan.evaluation.each_epoch is True,
                "every_steps": self.plan.evaluation.every_steps,
                "keep": training.keep,
                "keep_by": training.keep_by,
                "early_stopping": training.early_stopping,
            },
            "validation": {"measurements": self.measurements, "time_share": self.validation_share},
            "change": asdict(self.suggestion) if self.suggestion else None,
            "parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters,
            "disk_bytes": self.disk_bytes,
            "download_bytes": self.download_bytes,
            "notes": list(self.notes),
            "general_items": self.general_items,
            "refusal": asdict(self.refusal) if self.refusal else None,
            **({"processes": self._describe_processes()} if self.layout.count > 1 else {}),
        }

    def _describe_processes(self) -> dict[str, object]:
        """Return the processes of the run and their communication for JSON."""
        return {
            "count": self.layout.count,
            "sharded": self.layout.sharded,
            "link": asdict(self.layout.link),
            "step": asdict(self.communication) if self.communication else None,
            "step_tokens": self.own_step_tokens,
        }


def judge_fit(peak: int, free: int) -> Verdict:
    """Return whether `peak` bytes fit; within the error of the estimate, a few percent, the answer is `tight`."""
    if peak > free:
        return "does not fit"
    return "tight" if peak > TIGHT_MEMORY_FRACTION * free else "fits"


def make_estimate(
    plan: Plan,
    problem: PlanningProblem,
    *,
    base: str,
    origin: str,
    weight_bytes: int | None,
    download_bytes: int | None,
    benchmark: MachineBenchmark | None = None,
    reading_seconds: float = 0.0,
    suggest: bool = True,
) -> RunEstimate:
    """Estimate a plan whose settings are all chosen.

    With `suggest`, the estimate suggests a change if the plan does not fit, or if a faster plan fits. `reading_seconds`
    is the measured time of reading the data.
    """
    bytes_to_read = weight_bytes or 2 * problem.shape.weights
    # What is measured after training must not depend on the number of processes.
    alone = problem.of_one_process

    def predict(data: DataLengths) -> PhaseDurations | None:
        return _predict_durations(Candidate(plan, alone), data, benchmark, bytes_to_read, reading_seconds)

    plan, data = choose_reply_count(plan, problem.data, predict)
    trained_dialogues = Candidate(plan, problem).workload.steps * plan.training.effective_batch_size
    recital_replies = plan.evaluation.count_recital_replies(problem.shape.weights, trained_dialogues)
    data = replace(data, recital_replies=recital_replies)
    problem, alone = replace(problem, data=data), replace(alone, data=data)
    candidate = Candidate(plan, problem)
    trainable_parameters = count_adapter_parameters(problem.shape, candidate.memory_config)
    durations, general_items = add_general_items(predict(data), Candidate(plan, alone), benchmark)
    communication = None
    if problem.layout.count > 1:
        durations = _predict_shared_durations(candidate, benchmark, bytes_to_read, reading_seconds, general_items)
        communication = estimate_communication(candidate)
    return RunEstimate(
        base=base,
        origin=origin,
        target=problem.target,
        plan=plan,
        parameters=problem.shape.weights,
        trainable_parameters=trainable_parameters,
        workload=candidate.workload,
        phases=candidate.phases,
        durations=durations,
        merge_plan=plan_merge(problem.shape, candidate.memory_config, problem.data, problem.target),
        merge_time=estimate_merge_time(benchmark, problem.shape, candidate.memory_config, problem.data)
        if benchmark
        else None,
        disk_bytes={
            "run": run_bytes(
                trainable_parameters,
                plan.checkpoint.keep,
                count_step_copies(plan, candidate.workload.rows, len(problem.data.validation.tokens)),
            )
            + (2 * problem.shape.weights if plan.adapter.stack else 0),
            "merge": 2 * problem.shape.weights,
            "export": 2 * problem.shape.weights + int(_Q8_0_BYTES_PER_WEIGHT * problem.shape.weights),
        },
        download_bytes=download_bytes,
        suggestion=_suggest_change(candidate) if suggest else None,
        notes=list_notes(candidate, benchmark),
        memory_source=find_memory_source(problem.shape),
        measurements=count_measurements(plan, candidate.workload.rows),
        validation_share=validation_time_share(plan, problem.data.train, problem.data.validation),
        refusal=find_kernel_refusal(problem.target),
        general_items=general_items,
        layout=problem.layout,
        communication=communication,
        own_step_tokens=candidate.own_workload.step_tokens,
    )


def _predict_shared_durations(
    candidate: Candidate,
    benchmark: MachineBenchmark | None,
    bytes_to_read: int,
    reading_seconds: float,
    general_items: int,
) -> PhaseDurations | None:
    """Return the seconds of each phase of the process that has the most to do, or None if the speed is unknown."""
    # Only the first of processes with a sharded base measures; the others take part in its passes.
    count = 1 if candidate.problem.layout.sharded else candidate.problem.layout.count
    data, items = largest_data_share(candidate.problem.data, count), -(-general_items // count)
    durations = _predict_durations(candidate, data, benchmark, bytes_to_read, reading_seconds)
    if durations is None:
        return None
    durations = add_general_time(durations, candidate, benchmark, items)
    measurements = count_measurements(candidate.plan, candidate.workload.rows)
    return add_communication(durations, candidate, data, items, measurements)


def _predict_durations(
    candidate: Candidate,
    data: DataLengths,
    benchmark: MachineBenchmark | None,
    bytes_to_read: int,
    reading_seconds: float,
) -> PhaseDurations | None:
    """Return the seconds of each phase, or None if the speed of the device is unknown."""
    shape, config, workload = candidate.problem.shape, candidate.memory_config, candidate.own_workload
    measurements = count_measurements(candidate.plan, workload.rows)
    if benchmark:
        overhead = _OVERHEAD_SECONDS + reading_seconds
        return durations_from_benchmark(benchmark, shape, config, workload, data, overhead, measurements)
    speed = candidate.problem.target.speed
    if speed is None:
        return None
    training = candidate.plan.training
    return estimate_durations(shape, config, training, workload, data, speed, bytes_to_read, measurements)


def _suggest_change(current: Candidate) -> Suggestion | None:
    """Return the smallest change that makes the plan fit, or clearly faster; None without such a change."""
    limit = current.problem.target.limit
    better = (
        find_fitting_candidate(current.plan, current.problem, limit)
        if current.peak > limit
        else _find_faster_candidate(current, limit)
    )
    if better is None:
        return None
    return Suggestion(
        tuple(format_overrides(current.plan, better.plan)),
        better.peak,
        better.seconds_per_step / current.seconds_per_step,
    )


def _find_faster_candidate(current: Candidate, limit: int) -> Candidate | None:
    """Return the fastest plan that fits if it is clearly faster than the current one."""
    open_settings = ("gradient_checkpointing", "micro_batch_size", "micro_batch_tokens")
    open_plan = current.plan.model_copy(update={"open_settings": open_settings})
    best = Candidate(choose_plan(open_plan, current.problem, limit), current.problem)
    return (
        best if best.fits(limit) and best.seconds_per_step < _SUGGESTION_TIME_RATIO * current.seconds_per_step else None
    )
