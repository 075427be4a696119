"""Everything that a plan can say before weights load."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lora_chat.config.plan import Plan
from lora_chat.planning.calibration import Probe, merge_seconds, probed_durations
from lora_chat.planning.device import TIGHT, Target
from lora_chat.planning.disk_space import run_bytes
from lora_chat.planning.phase_memory import Phase
from lora_chat.planning.phase_time import Durations, Seconds, make_durations
from lora_chat.planning.settings_search import IN_SFT, Choice, Job, as_settings, changes
from lora_chat.planning.training_memory import adapter_weights
from lora_chat.planning.workload import Workload

Verdict = Literal["fits", "tight", "does not fit"]
_MUCH_FASTER = 0.9
_PROGRAM = 0.5
"""Seconds that a run takes beside its phases: its folder, its plots, its card."""
_GGUF_Q8 = 34 / 32
"""Bytes of a weight in q8_0: 32 of them and their scale."""


@dataclass(frozen=True)
class Change:
    """What to change, and what comes of it."""

    settings: tuple[str, ...]
    """As `--set` takes them."""
    peak: int
    slower: float
    """Seconds of a step by those of the step as it is."""


@dataclass(frozen=True)
class Forecast:
    """Memory, time and disk of a run on a device, and whether it fits there."""

    base: str
    origin: str
    target: Target
    plan: Plan
    parameters: int
    trained: int
    work: Workload
    phases: tuple[Phase, ...]
    durations: Durations | None
    """Of `sft`."""
    merging: Seconds | None
    """Of `merge` afterwards; None: not known."""
    disk: dict[str, int]
    download: int | None
    change: Change | None
    notes: tuple[str, ...]

    @property
    def worst(self) -> Phase:
        """The phase of `sft` that needs the most."""
        return max((phase for phase in self.phases if phase.name in IN_SFT), key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """Bytes that `sft` needs at most."""
        return self.worst.total

    @property
    def verdict(self) -> Verdict:
        """By the device's free memory."""
        return judge(self.peak, self.target.free)

    @property
    def total_seconds(self) -> Seconds | None:
        """Of `sft` as a whole."""
        return sum(self.durations.values(), Seconds(0, 0, 0)) if self.durations else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; bytes and seconds."""
        training = self.plan.training
        total = self.total_seconds
        return {
            "base": self.base,
            "base_known_from": self.origin,
            "device": asdict(self.target) | {"limit": self.target.limit},
            "verdict": self.verdict,
            "peak_bytes": self.peak,
            "spare_bytes": self.target.free - self.peak,
            "worst_phase": self.worst.name,
            "dominated_by": self.worst.largest_part,
            "phases": [
                {"name": phase.name, "total": phase.total, "in_main_memory": phase.in_main_memory} | phase.parts
                for phase in self.phases
            ],
            "seconds": {name: asdict(seconds) for name, seconds in (self.durations or {}).items()} or None,
            "total_seconds": asdict(total) if total else None,
            "merge_seconds": asdict(self.merging) if self.merging else None,
            "workload": asdict(self.work),
            "chosen": {
                "quantization": self.plan.precision.mode,
                "micro_batch_tokens": training.micro_batch_tokens if training.fast_path else None,
                "micro_batch_size": None
                if training.fast_path and training.micro_batch_tokens
                else training.micro_batch_size,
                "gradient_checkpointing": training.gradient_checkpointing,
                "optimizer": training.optimizer,
                "fast_path": training.fast_path,
            },
            "change": asdict(self.change) if self.change else None,
            "parameters": self.parameters,
            "trainable_parameters": self.trained,
            "disk_bytes": self.disk,
            "download_bytes": self.download,
            "notes": list(self.notes),
        }


def judge(peak: int, free: int) -> Verdict:
    """Whether so many bytes fit, as far as a model that errs by some percent can say."""
    if peak > free:
        return "does not fit"
    return "tight" if peak > TIGHT * free else "fits"


def make_forecast(
    plan: Plan,
    job: Job,
    *,
    base: str,
    origin: str,
    weight_bytes: int | None,
    download: int | None,
    probe: Probe | None = None,
    reading: float = 0.0,
) -> Forecast:
    """What a plan with nothing left to choose would need; a change where that does not fit, or is slow for nothing.

    `reading`: seconds that the data took.
    """
    here = Choice(plan, job)
    trained = adapter_weights(job.shape, here.setting)
    read = weight_bytes or 2 * job.shape.weights
    durations = None
    if probe:
        durations = probed_durations(probe, job.shape, here.setting, here.work, job.data, _PROGRAM + reading)
    elif speed := job.target.speed:
        durations = make_durations(job.shape, here.setting, plan.training, here.work, job.data, speed, read)
    return Forecast(
        base=base,
        origin=origin,
        target=job.target,
        plan=plan,
        parameters=job.shape.weights,
        trained=trained,
        work=here.work,
        phases=here.phases,
        durations=durations,
        merging=merge_seconds(probe, job.shape, here.setting, job.data) if probe else None,
        disk={
            "run": run_bytes(trained, plan.checkpoint.keep),
            "merge": 2 * job.shape.weights,
            "export": 2 * job.shape.weights + int(_GGUF_Q8 * job.shape.weights),
        },
        download=download,
        change=_change(here),
        notes=_notes(plan, job, probe),
    )


def _change(here: Choice) -> Change | None:
    limit = here.job.target.limit
    found = changes(here.plan, here.job, limit) if here.peak > limit else _faster(here, limit)
    if found is None:
        return None
    return Change(tuple(as_settings(here.plan, found.plan)), found.peak, found.seconds / here.seconds)


def _faster(here: Choice, limit: int) -> Choice | None:
    from lora_chat.planning.settings_search import choose

    free = ("gradient_checkpointing", "micro_batch_size", "micro_batch_tokens")
    open_plan = here.plan.model_copy(update={"open_settings": free})
    best = Choice(choose(open_plan, here.job, limit), here.job)
    return best if best.fits(limit) and best.seconds < _MUCH_FASTER * here.seconds else None


def _notes(plan: Plan, job: Job, probe: Probe | None) -> tuple[str, ...]:
    notes = []
    if job.data.estimated:
        notes.append("Tokens are counted by the embedded base's tokenizer: this base's own is not here.")
    if plan.adapter.dropout or plan.adapter.variant == "dora":
        what = "dropout" if plan.adapter.dropout else "DoRA"
        notes.append(f"What {what} adds to memory and time is not in these figures.")
    if probe:
        notes.append("Times and memory: from small models of these widths, tried on this machine.")
    elif job.target.speed:
        notes.append(f"Times: {job.target.speed.source}.")
    else:
        notes.append("How fast this device is, is not known: no times.")
    return tuple(notes)
