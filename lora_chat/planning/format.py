"""A forecast as a table that a tired person understands."""

from lora_chat.config.plan import TrainingPlan
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.phase_memory import PhaseMemory
from lora_chat.planning.phase_time import TimeEstimate
from lora_chat.system.console import format_bytes

_BYTES_PER_GIB = 2**30


def format_estimate(estimate: RunEstimate) -> str:
    """What `lora-chat plan` prints."""
    lines = [
        f"Base      {_format_base(estimate)}",
        f"Device    {_format_device(estimate)}",
        _format_verdict(estimate),
        "",
        *_format_phase_table(estimate),
        "",
    ]
    lines += _format_workload(estimate)
    lines += [
        *_format_times(estimate),
        *_format_merge_time(estimate),
        f"Disk      {_format_disk(estimate)}",
        *_format_suggestion(estimate),
    ]
    lines += [f"Note      {note}" for note in estimate.notes]
    return "\n".join(lines)


def format_estimate_summary(estimate: RunEstimate) -> list[str]:
    """The lines that `sft` prints before weights load."""
    return [_format_verdict(estimate), *_format_times(estimate), *_format_suggestion(estimate)]


def format_gib(size: float) -> str:
    """Bytes, as memory is sold."""
    return f"{size / _BYTES_PER_GIB:.2f}"


def format_duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{0 if seconds > 597 else 1}f} min"
    return f"{seconds / 3600:.1f} h"


def _format_base(estimate: RunEstimate) -> str:
    mode = estimate.plan.precision.mode
    weight_format = {"none": estimate.plan.precision.dtype}.get(mode, mode)
    config_origin = "" if estimate.origin == "this machine" else f" (known from {estimate.origin})"
    return (
        f"{estimate.base}, {estimate.parameters / 1e9:.2f} billion weights in {weight_format}, "
        f"{estimate.trainable_parameters / 1e6:.1f} million trained in LoRA of rank "
        f"{estimate.plan.adapter.rank}{config_origin}"
    )


def _format_device(estimate: RunEstimate) -> str:
    target = estimate.target
    free = "" if target.free == target.memory else f", {format_gib(target.free)} GiB of it for this run"
    return f"{target.name}, {format_gib(target.memory)} GiB{free}{'' if target.at_hand else ' (imagined)'}"


def _format_verdict(estimate: RunEstimate) -> str:
    worst, spare = estimate.worst_phase, estimate.target.free - estimate.peak
    room = f"{format_gib(spare)} GiB to spare" if spare >= 0 else f"{format_gib(-spare)} GiB too much"
    return (
        f"Memory    {estimate.verdict}: {format_gib(estimate.peak)} of {format_gib(estimate.target.free)} GiB, {room}; "
        f"most in `{worst.name}`, by its {worst.largest_part}"
    )


def _format_phase_table(estimate: RunEstimate) -> list[str]:
    names = list(estimate.phases[0].parts)
    lines = [f"{'GiB':<10}" + "".join(f"{name:>13}" for name in [*names, "total"])]
    aside = False
    for phase in estimate.phases:
        aside = aside or phase.in_main_memory
        lines.append(_format_phase_row(phase))
    if aside:
        lines.append("* in main memory, not on the GPU")
    return lines


def _format_phase_row(phase: PhaseMemory) -> str:
    figures = [format_gib(size) if size else "-" for size in phase.parts.values()]
    name = phase.name + (" *" if phase.in_main_memory else "")
    return f"{name:<10}" + "".join(f"{figure:>13}" for figure in [*figures, format_gib(phase.total)])


def _format_workload(estimate: RunEstimate) -> list[str]:
    workload, training = estimate.workload, estimate.plan.training
    return [
        f"Training  {workload.steps:,} steps of {min(training.effective_batch_size, workload.rows)} dialogues "
        f"({workload.step_tokens:,.0f} tokens), {format_micro_batches(training)}; the largest holds "
        f"{workload.largest.tokens:,} tokens",
        f"Layers    {_format_checkpointing(estimate)}; "
        f"{training.optimizer.replace('_', ' in ').replace('8bit', '8 bits')}; "
        f"{'fast path' if training.fast_path else 'stock path'}",
        f"Loss      on {workload.supervised_tokens:,} tokens in all, {workload.supervised_share:.0%} of those computed",
    ]


def format_micro_batches(training: TrainingPlan) -> str:
    """How a step is cut up."""
    if training.fast_path and training.micro_batch_tokens:
        return f"in micro-batches of about {training.micro_batch_tokens:,} tokens"
    count = training.gradient_accumulation_steps
    return f"in {count} micro-batch{'es' if count > 1 else ''} of {training.micro_batch_size}"


def _format_checkpointing(estimate: RunEstimate) -> str:
    checkpointed = estimate.plan.training.gradient_checkpointing
    if checkpointed is True:
        return "all checkpointed (their activations are computed twice)"
    return f"{int(checkpointed)} checkpointed" if checkpointed else "none checkpointed"


def _format_times(estimate: RunEstimate) -> list[str]:
    total = estimate.total_time
    if total is None or estimate.durations is None:
        return []
    parts = ", ".join(f"{name} {format_duration(seconds.likely)}" for name, seconds in estimate.durations.items())
    return [f"Time      about {_format_time_range(total)}: {parts}"]


def _format_merge_time(estimate: RunEstimate) -> list[str]:
    if estimate.merge_time is None:
        return []
    return [f"Later     merging {_format_time_range(estimate.merge_time)}; exporting that, and what llama.cpp takes"]


def _format_time_range(seconds: TimeEstimate) -> str:
    return f"{format_duration(seconds.likely)} ({format_duration(seconds.low)} to {format_duration(seconds.high)})"


def _format_disk(estimate: RunEstimate) -> str:
    names = {"run": "the run", "merge": "merged", "export": "as a GGUF"}
    text = ", ".join(f"{names[name]} {format_bytes(size)}" for name, size in estimate.disk_bytes.items())
    if estimate.download_bytes is None:
        return text + "; the size of the download is not known"
    return text + (
        f"; {format_bytes(estimate.download_bytes)} to download" if estimate.download_bytes else "; nothing to download"
    )


def _format_suggestion(estimate: RunEstimate) -> list[str]:
    change = estimate.suggestion
    if change is None:
        if estimate.verdict != "does not fit":
            return []
        return [
            "Change    nothing helps with these dialogues and this base: leave long ones out "
            "(--set data.max_length=N --set data.over_long=drop), or take a smaller base."
        ]
    flags = " ".join(f"--set {setting}" for setting in change.settings)
    pace = f"{change.slower:.2f} times the time of a step"
    why = "Fits with" if estimate.peak > estimate.target.limit else "Faster with"
    return [f"Change    {why} {flags}: {format_gib(change.peak)} GiB, {pace}"]


def format_refusal(estimate: RunEstimate) -> str:
    """Why `sft` does not begin."""
    lines = [
        f"This run does not fit: it would need {format_gib(estimate.peak)} GiB in `{estimate.worst_phase.name}`, "
        f"most of it for "
        f"{estimate.worst_phase.largest_part}; {format_gib(estimate.target.free)} GiB are free on "
        f"{estimate.target.name}.",
        *(line.replace("Change    ", "") for line in _format_suggestion(estimate)),
        "See the whole plan: lora-chat plan RECIPE. Try it nevertheless: --set training.memory=unlimited",
    ]
    return "\n".join(lines)
