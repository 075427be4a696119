"""Plan beside measurement, environment and recipe of a run."""

from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Child, Markup, element, join
from lora_chat.report.section import Section, build_folded, build_note
from lora_chat.report.show import (
    NOTHING,
    build_facts,
    build_table,
    cut_text,
    show_bytes,
    show_number,
    show_seconds,
    show_share,
    show_value,
)
from lora_chat.report.values import as_list, as_number, as_object, as_text, find_value

_MAX_ROWS = 100
_MAX_RECIPE = 60_000


def build_summary(record: RunRecord) -> Markup:
    """Return the facts of a run in a few words: base, device, steps, time, memory, size."""
    result, plan = record.read("result"), record.read("plan")
    steps, planned = as_number(result.get("steps")), as_number(result.get("planned_steps"))
    facts: dict[str, Child] = {
        "base": show_value(find_value(plan, "base", "name")),
        "device": show_value(find_device(record)),
        "quantization": show_value(find_value(plan, "precision", "mode")),
        "adapter": _describe_adapter(record),
        "steps": f"{show_number(steps)} of {show_number(planned)}"
        if planned not in (None, steps)
        else show_number(steps),
        "time": show_seconds(as_number(find_value(result, "seconds", "total"))),
        "peak memory": show_bytes(as_number(result.get("peak_memory_bytes"))),
        "adapter file": show_bytes(as_number(result.get("adapter_bytes"))),
    }
    return build_facts({name: value for name, value in facts.items() if value != NOTHING}, "The run")


def find_device(record: RunRecord) -> str | None:
    """Return the name of the device of a run, if it is known."""
    names = (
        find_value(record.read("result"), "forecast", "device"),
        find_value(record.read("estimate"), "device", "name"),
        find_value(record.read("plan"), "precision", "device"),
    )
    return next((name for name in map(as_text, names) if name), None)


def build_planned(record: RunRecord) -> Section | None:
    """Return estimated beside measured memory and time, or None for a run without an estimate."""
    accuracy = as_object(record.read("result").get("forecast"))
    estimate = record.read("estimate")
    planned, measured = as_object(accuracy.get("planned")), as_object(accuracy.get("measured"))
    if not planned and not estimate:
        return None
    rows: list[list[Child]] = []
    for key, title, show in (
        ("peak_bytes", "peak memory", show_bytes),
        ("train_seconds", "training", show_seconds),
        ("seconds", "whole run", show_seconds),
    ):
        before, after = as_number(planned.get(key)), as_number(measured.get(key))
        if before is None and after is None:
            continue
        change = (after - before) / before if before and after is not None else None
        rows.append([title, show(before), show(after), NOTHING if change is None else f"{change:+.0%}"])
    parts: list[Markup] = []
    if rows:
        parts.append(build_table(["", "Planned", "Measured", "Off by"], rows, caption="Planned against measured"))
    else:
        parts.append(build_note("There is no measurement yet; the phases below are the estimate."))
    phases = [
        [
            cut_text(str(phase.get("name")), 60),
            show_bytes(as_number(phase.get("total"))),
            *(show_bytes(as_number(phase.get(part))) for part in ("weights", "adapter", "optimizer", "activations")),
        ]
        for phase in map(as_object, as_list(estimate.get("phases"))[:_MAX_ROWS])
        if phase
    ]
    if phases:
        head = ["Phase", "Total", "Weights", "Adapter", "Optimizer", "Activations"]
        parts.append(build_folded("Estimated memory by phase", build_table(head, phases, caption="Estimated memory")))
    notes = [cut_text(note, 500) for note in map(as_text, as_list(estimate.get("notes"))[:20]) if note]
    parts += [build_note(note) for note in notes]
    return Section("planned", "Planned against measured", join(parts))


def build_environment(record: RunRecord) -> Section | None:
    """Return the versions of the libraries and the device."""
    versions = list(record.read("versions").items())[:_MAX_ROWS]
    if not versions:
        return None
    facts: dict[str, Child] = {cut_text(name, 60): cut_text(show_value(version), 100) for name, version in versions}
    return Section(
        "environment", "Environment", build_facts({**facts, "device": show_value(find_device(record))}, "Versions")
    )


def build_recipe(record: RunRecord) -> Section | None:
    """Return the recipe with all its settings."""
    if not record.recipe:
        return None
    text = element("pre", element("code", cut_text(record.recipe, _MAX_RECIPE)), dir="auto", tabindex=0)
    return Section("recipe", "Recipe", build_folded("The recipe with every setting", text))


def _describe_adapter(record: RunRecord) -> str:
    """Return variant, rank and number of trained parameters of the adapter."""
    plan = as_object(record.read("plan").get("adapter"))
    parameters = as_number(record.read("result").get("trainable_parameters"))
    words = [cut_text(as_text(plan.get("variant")) or "", 60)]
    if (rank := as_number(plan.get("rank"))) is not None:
        words.append(f"rank {show_number(rank)}")
    if parameters is not None:
        words.append(f"{show_number(parameters)} parameters")
    return ", ".join(word for word in words if word) or NOTHING


def describe_finish(record: RunRecord) -> str | None:
    """Return a sentence on a run that has not finished, or None for a finished one."""
    result = record.read("result")
    if not result:
        return "The run has not finished: it has no result. Fix: lora-chat sft RECIPE --resume"
    steps, planned = as_number(result.get("steps")), as_number(result.get("planned_steps"))
    if steps is not None and planned is not None and steps < planned:
        return (
            f"The run ended after {show_number(steps)} of {show_number(planned)} steps ({show_share(steps / planned)})."
        )
    return None
