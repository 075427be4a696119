"""An estimate as text for the terminal."""

from lora_chat.config.plan import DTYPE_TITLES, Plan, TrainingPlan
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.merge_plan import MergePlan
from lora_chat.planning.phase_memory import PhaseMemory
from lora_chat.planning.phase_time import TimeEstimate
from lora_chat.system.console import format_bytes

_BYTES_PER_GIB = 2**30


def format_estimate(estimate: RunEstimate) -> str:
    """Format the output of `lora-chat plan`."""
    lines = [
        f"Base      {_format_base(estimate)}",
        f"Device    {_format_device(estimate)}",
        *_format_kernel_refusal(estimate),
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
    """Format the lines that `sft` prints before weights load."""
    return [
        _format_verdict(estimate),
        *_format_processes(estimate),
        *_format_times(estimate),
        *_format_suggestion(estimate),
    ]


def format_gib(size: float) -> str:
    """Format bytes as a number of GiB."""
    return f"{size / _BYTES_PER_GIB:.2f}"


def format_duration(seconds: float) -> str:
    """Format seconds in the largest fitting unit."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{0 if seconds > 597 else 1}f} min"
    return f"{seconds / 3600:.1f} h"


def _format_base(estimate: RunEstimate) -> str:
    """Format the base, its weights and the LoRA weights."""
    mode = estimate.plan.precision.mode
    weight_format: str = {"none": estimate.plan.precision.dtype}.get(mode, mode)
    if stored := estimate.plan.precision.stored:
        weight_format += f" (its files are quantized by {stored.title})"
    config_origin = "" if estimate.origin == "this machine" else f" (known from {estimate.origin})"
    return (
        f"{estimate.base}, {estimate.parameters / 1e9:.2f} billion weights in {weight_format}, "
        f"{estimate.trainable_parameters / 1e6:.1f} million trained in LoRA of rank "
        f"{estimate.plan.adapter.rank}{config_origin}"
    )


def _format_device(estimate: RunEstimate) -> str:
    """Format the device and its memory."""
    target = estimate.target
    free = "" if target.free == target.memory else f", {format_gib(target.free)} GiB of it for this run"
    if target.device == "cuda" and target.at_hand:
        # This process's own CUDA context is a part of it.
        free += f", of which the driver and other programs use {format_gib(target.context)} GiB"
    return f"{target.name}, {format_gib(target.memory)} GiB{free}{'' if target.at_hand else ' (not this machine)'}"


def _format_kernel_refusal(estimate: RunEstimate) -> list[str]:
    """Format why `sft` would stop on this GPU, and the build of PyTorch that runs there."""
    refusal = estimate.refusal
    if refusal is None:
        return []
    return [
        f"PyTorch   cannot run: {refusal.reason}, so `sft` would stop with exit code {refusal.exit_code}",
        f"          Fix: {refusal.fix}",
        "          All figures are for a build that has the kernels.",
    ]


def _format_verdict(estimate: RunEstimate) -> str:
    """Format whether the run fits."""
    worst, spare = estimate.worst_phase, estimate.target.free - estimate.peak
    margin = f"{format_gib(spare)} GiB to spare" if spare >= 0 else f"{format_gib(-spare)} GiB missing"
    return (
        f"Memory    {estimate.verdict}: {format_gib(estimate.peak)} of {format_gib(estimate.target.free)} GiB, "
        f"{margin}; peak in `{worst.name}`, mostly {worst.largest_part}"
    )


def _format_processes(estimate: RunEstimate) -> list[str]:
    """Format the processes, and the largest share that one of them has of a step."""
    count, total = estimate.layout.count, estimate.workload.step_tokens
    if count == 1:
        return []
    where = "and a part of this machine's memory" if estimate.target.device == "cpu" else "on its own card"
    base = "its part of the base" if estimate.layout.sharded else "the whole base"
    return [
        f"Processes {count}, each with {base} {where}; of a step's {total:,.0f} tokens, the largest share has "
        f"{estimate.own_step_tokens:,.0f}"
    ]


def _format_phase_table(estimate: RunEstimate) -> list[str]:
    """Format the memory of each phase, in GiB."""
    names = list(estimate.phases[0].parts)
    lines = [f"{'GiB':<10}" + "".join(f"{name:>13}" for name in [*names, "total"])]
    any_in_main_memory = False
    for phase in estimate.phases:
        any_in_main_memory = any_in_main_memory or phase.in_main_memory
        lines.append(_format_phase_row(phase))
    if any_in_main_memory:
        lines.append("* in main memory, not on the GPU")
    return lines


def _format_phase_row(phase: PhaseMemory) -> str:
    """Format one row of the phase table."""
    figures = [format_gib(size) if size else "-" for size in phase.parts.values()]
    name = phase.name + (" *" if phase.in_main_memory else "")
    return f"{name:<10}" + "".join(f"{figure:>13}" for figure in [*figures, format_gib(phase.total)])


def _format_workload(estimate: RunEstimate) -> list[str]:
    """Format steps, layers and supervised tokens."""
    workload, training = estimate.workload, estimate.plan.training
    return [
        f"Training  {workload.steps:,} steps of {min(training.effective_batch_size, workload.rows)} dialogues "
        f"({workload.step_tokens:,.0f} tokens), {format_micro_batches(training)}; the largest has "
        f"{workload.largest.tokens:,} tokens",
        f"Layers    {_format_checkpointing(estimate)}; "
        f"{training.optimizer.replace('_', ' in ').replace('8bit', '8 bits')}; "
        f"{'fast path' if training.fast_path else 'stock path'}; {DTYPE_TITLES[estimate.plan.precision.dtype]}"
        + (f"; dequantized weights of {training.cached_layers} cached" if training.cached_layers else ""),
        f"Loss      on {workload.supervised_tokens:,} supervised tokens in total, "
        f"{workload.supervised_share:.0%} of the computed ones",
        f"Measured  {format_measurements(estimate.plan, estimate.measurements, estimate.validation_share)}",
    ]


def format_measurements(plan: Plan, measurements: int, time_share: float) -> str:
    """Format when the validation set is measured during training, its cost, and which step is kept."""
    if not measurements:
        return "no validation set during training; the last step is kept"
    evaluation, training = plan.evaluation, plan.training
    when = ["after each epoch"] if evaluation.each_epoch is True else []
    when += [f"every {evaluation.every_steps} steps"] if evaluation.every_steps is not None else []
    target = "the last step" if training.keep == "last" else f"the best step by {training.keep_by.replace('_', ' ')}"
    stopping = f", stops after {training.early_stopping} without an improvement" if training.early_stopping else ""
    return (
        f"validation set {' and '.join(when)}, {measurements} time{'s' if measurements > 1 else ''}, about "
        f"{time_share:.1%} of the training time; keeps {target}{stopping}"
    )


def format_micro_batches(training: TrainingPlan) -> str:
    """Format the size or number of the micro-batches of a step."""
    if training.fast_path and training.micro_batch_tokens:
        return f"in micro-batches of about {training.micro_batch_tokens:,} tokens"
    count = training.gradient_accumulation_steps
    return f"in {count} micro-batch{'es' if count > 1 else ''} of {training.micro_batch_size}"


def _format_checkpointing(estimate: RunEstimate) -> str:
    """Format the number of checkpointed layers."""
    checkpointed = estimate.plan.training.gradient_checkpointing
    if checkpointed is True:
        return "all checkpointed (their activations are computed twice)"
    return f"{int(checkpointed)} checkpointed" if checkpointed else "none checkpointed"


def _format_times(estimate: RunEstimate) -> list[str]:
    """Format the time of `sft` and of its phases."""
    total = estimate.total_time
    if total is None or estimate.durations is None:
        return []
    parts = ", ".join(f"{name} {format_duration(seconds.likely)}" for name, seconds in estimate.durations.items())
    return [f"Time      about {_format_time_range(total)}: {parts}"]


def _format_merge_time(estimate: RunEstimate) -> list[str]:
    """Format the time of a later merge, or the memory that it needs after a GPU run."""
    if estimate.merge_plan is not None:
        return [_format_merge_memory(estimate, estimate.merge_plan)]
    if estimate.merge_time is None:
        return []
    return [f"Later     merging {_format_time_range(estimate.merge_time)}; exporting adds llama.cpp's time"]


def _format_merge_memory(estimate: RunEstimate, merge: MergePlan) -> str:
    """Format the main memory of a later merge, and the device of its parity check."""
    main_memory = next(phase.total for phase in estimate.phases if phase.name == "merge")
    device = "GPU" if merge.device == "cuda" else "CPU"
    return (
        f"Later     merging takes {format_gib(main_memory)} GiB of main memory; its parity check takes "
        f"{format_gib(merge.needed)} GiB and runs on the {device}: the GPU has {format_gib(merge.free)} GiB free"
    )


def _format_time_range(seconds: TimeEstimate) -> str:
    """Format likely seconds and their range."""
    return f"{format_duration(seconds.likely)} ({format_duration(seconds.low)} to {format_duration(seconds.high)})"


def _format_disk(estimate: RunEstimate) -> str:
    """Format the disk space and the download."""
    names = {"run": "the run", "merge": "merged model", "export": "GGUF export"}
    parts = ", ".join(f"{names[name]} {format_bytes(size)}" for name, size in estimate.disk_bytes.items())
    if estimate.download_bytes is None:
        return parts + "; the size of the download is unknown"
    return parts + (
        f"; {format_bytes(estimate.download_bytes)} to download" if estimate.download_bytes else "; nothing to download"
    )


def _format_suggestion(estimate: RunEstimate) -> list[str]:
    """Format the suggested change."""
    change = estimate.suggestion
    if change is None:
        if estimate.verdict != "does not fit":
            return []
        return [
            "Change    no setting makes this base and these dialogues fit. Drop long dialogues "
            "(--set data.max_length=N --set data.over_long=drop), or choose a smaller base."
        ]
    flags = " ".join(f"--set {setting}" for setting in change.settings)
    effect = "Fits with" if estimate.peak > estimate.target.limit else "Faster with"
    return [f"Change    {effect} {flags}: {format_gib(change.peak)} GiB, {change.slower:.2f} times the time of a step"]


def format_refusal(estimate: RunEstimate) -> str:
    """Format the reason why `sft` refuses a run, with a change that makes it fit."""
    lines = [
        f"The run does not fit: `{estimate.worst_phase.name}` needs {format_gib(estimate.peak)} GiB, mostly for "
        f"{estimate.worst_phase.largest_part}, and {format_gib(estimate.target.free)} GiB are free on "
        f"{estimate.target.name}.",
        *(line.replace("Change    ", "") for line in _format_suggestion(estimate)),
        *_advise_fewer_processes(estimate),
        "Whole estimate: lora-chat plan RECIPE. Train without this check: --set training.memory=unlimited",
    ]
    return "\n".join(lines)


def _advise_fewer_processes(estimate: RunEstimate) -> list[str]:
    """Format the advice for processes that share the memory of a machine."""
    count = estimate.layout.count
    if count == 1 or estimate.target.device != "cpu":
        return []
    return [f"Or with fewer than {count} processes, which share this machine's memory; a run may be continued so, too."]
