"""A forecast as a table that a tired person understands."""

from lora_chat.config.plan import TrainingPlan
from lora_chat.planning.estimate import Forecast
from lora_chat.planning.phase_memory import Phase
from lora_chat.planning.phase_time import Seconds
from lora_chat.system.console import megabytes

_GIB = 2**30


def whole_forecast(found: Forecast) -> str:
    """What `lora-chat plan` prints."""
    lines = [f"Base      {_base(found)}", f"Device    {_device(found)}", _verdict(found), "", *_table(found), ""]
    lines += _work(found)
    lines += [*_times(found), *_merging(found), f"Disk      {_disk(found)}", *_change(found)]
    lines += [f"Note      {note}" for note in found.notes]
    return "\n".join(lines)


def short_forecast(found: Forecast) -> list[str]:
    """The lines that `sft` prints before weights load."""
    return [_verdict(found), *_times(found), *_change(found)]


def gib(size: float) -> str:
    """Bytes, as memory is sold."""
    return f"{size / _GIB:.2f}"


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{0 if seconds > 597 else 1}f} min"
    return f"{seconds / 3600:.1f} h"


def _base(found: Forecast) -> str:
    mode = found.plan.precision.mode
    held = {"none": found.plan.precision.dtype}.get(mode, mode)
    known = "" if found.origin == "this machine" else f" (known from {found.origin})"
    return (
        f"{found.base}, {found.parameters / 1e9:.2f} billion weights in {held}, "
        f"{found.trained / 1e6:.1f} million trained in LoRA of rank {found.plan.adapter.rank}{known}"
    )


def _device(found: Forecast) -> str:
    target = found.target
    free = "" if target.free == target.memory else f", {gib(target.free)} GiB of it for this run"
    return f"{target.name}, {gib(target.memory)} GiB{free}{'' if target.at_hand else ' (imagined)'}"


def _verdict(found: Forecast) -> str:
    worst, spare = found.worst, found.target.free - found.peak
    room = f"{gib(spare)} GiB to spare" if spare >= 0 else f"{gib(-spare)} GiB too much"
    return (
        f"Memory    {found.verdict}: {gib(found.peak)} of {gib(found.target.free)} GiB, {room}; "
        f"most in `{worst.name}`, by its {worst.largest_part}"
    )


def _table(found: Forecast) -> list[str]:
    names = list(found.phases[0].parts)
    lines = [f"{'GiB':<10}" + "".join(f"{name:>13}" for name in [*names, "total"])]
    aside = False
    for phase in found.phases:
        aside = aside or phase.in_main_memory
        lines.append(_row(phase))
    if aside:
        lines.append("* in main memory, not on the GPU")
    return lines


def _row(phase: Phase) -> str:
    figures = [gib(size) if size else "-" for size in phase.parts.values()]
    name = phase.name + (" *" if phase.in_main_memory else "")
    return f"{name:<10}" + "".join(f"{figure:>13}" for figure in [*figures, gib(phase.total)])


def _work(found: Forecast) -> list[str]:
    work, training = found.work, found.plan.training
    return [
        f"Training  {work.steps:,} steps of {min(training.effective_batch_size, work.rows)} dialogues "
        f"({work.step_tokens:,.0f} tokens), {pieces(training)}; the largest holds {work.largest.tokens:,} tokens",
        f"Layers    {_checkpointing(found)}; {training.optimizer.replace('_', ' in ').replace('8bit', '8 bits')}; "
        f"{'fast path' if training.fast_path else 'stock path'}",
        f"Loss      on {work.supervised_tokens:,} tokens in all, {work.supervised_share:.0%} of those computed",
    ]


def pieces(training: TrainingPlan) -> str:
    """How a step is cut up."""
    if training.fast_path and training.micro_batch_tokens:
        return f"in micro-batches of about {training.micro_batch_tokens:,} tokens"
    count = training.gradient_accumulation_steps
    return f"in {count} micro-batch{'es' if count > 1 else ''} of {training.micro_batch_size}"


def _checkpointing(found: Forecast) -> str:
    checkpointed = found.plan.training.gradient_checkpointing
    if checkpointed is True:
        return "all checkpointed (their activations are computed twice)"
    return f"{int(checkpointed)} checkpointed" if checkpointed else "none checkpointed"


def _times(found: Forecast) -> list[str]:
    total = found.total_seconds
    if total is None or found.durations is None:
        return []
    parts = ", ".join(f"{name} {duration(seconds.likely)}" for name, seconds in found.durations.items())
    return [f"Time      about {_interval(total)}: {parts}"]


def _merging(found: Forecast) -> list[str]:
    if found.merging is None:
        return []
    return [f"Later     merging {_interval(found.merging)}; exporting that, and what llama.cpp takes"]


def _interval(seconds: Seconds) -> str:
    return f"{duration(seconds.likely)} ({duration(seconds.low)} to {duration(seconds.high)})"


def _disk(found: Forecast) -> str:
    names = {"run": "the run", "merge": "merged", "export": "as a GGUF"}
    text = ", ".join(f"{names[name]} {megabytes(size)}" for name, size in found.disk.items())
    if found.download is None:
        return text + "; the size of the download is not known"
    return text + (f"; {megabytes(found.download)} to download" if found.download else "; nothing to download")


def _change(found: Forecast) -> list[str]:
    change = found.change
    if change is None:
        if found.verdict != "does not fit":
            return []
        return [
            "Change    nothing helps with these dialogues and this base: leave long ones out "
            "(--set data.max_length=N --set data.over_long=drop), or take a smaller base."
        ]
    flags = " ".join(f"--set {setting}" for setting in change.settings)
    pace = f"{change.slower:.2f} times the time of a step"
    why = "Fits with" if found.peak > found.target.limit else "Faster with"
    return [f"Change    {why} {flags}: {gib(change.peak)} GiB, {pace}"]


def refusal(found: Forecast) -> str:
    """Why `sft` does not begin."""
    lines = [
        f"This run does not fit: it would need {gib(found.peak)} GiB in `{found.worst.name}`, most of it for "
        f"{found.worst.largest_part}; {gib(found.target.free)} GiB are free on {found.target.name}.",
        *(line.replace("Change    ", "") for line in _change(found)),
        "See the whole plan: lora-chat plan RECIPE. Try it nevertheless: --set training.memory=unlimited",
    ]
    return "\n".join(lines)
