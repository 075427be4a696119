"""Part `run`: `lora-chat sft` on the card by the command line, once to its end, and once interrupted and resumed."""

import json
from pathlib import Path

from check_records import Records, seconds_left
from check_sizes import CheckSize
from child_command import write_base
from command_runs import (
    RUN_LINK,
    CommandResult,
    digest_adapter,
    interrupt_after,
    run_command,
    start_command,
    wait_for_end,
    write_dialogues,
)
from part_arguments import read_part_arguments


def main() -> None:
    """Run the smoke recipe, then the three trainings of a larger base."""
    size, work = read_part_arguments()
    records = Records()
    data, base = work / "dialogues.jsonl", work / "run-base"
    write_dialogues(data, size.run_dialogues)
    write_base(base, "", size.run_config, weights=True)
    smoke = [start_command(smoke_arguments(work, mode)) for mode in size.smoke_modes]
    whole = [start_command(sft_arguments(size, work, name)) for name in ("whole", "again")]
    metrics = work / "runs" / "stopped-1" / "metrics.jsonl"
    interrupted = start_command(sft_arguments(size, work, "stopped"))
    stopped = interrupt_after(interrupted, metrics, size.run_steps // 2, seconds_left())
    records.check("interrupted by a signal", stopped.code == 143, f"exit code {stopped.code}: {stopped.last_line}")
    resumed = run_command([*sft_arguments(size, work, "stopped"), "--resume"], seconds_left())
    check_sft(records, "resumed", resumed)
    for name, process in zip(size.smoke_modes, smoke, strict=True):
        check_sft(records, f"smoke {name}", wait_for_end(process, seconds_left()))
    for name, process in zip(("whole", "again"), whole, strict=True):
        check_sft(records, name, wait_for_end(process, seconds_left()))
    compare_bytes(records, work)
    run = work / "runs" / "whole-1"
    if (run / "result.json").is_file():
        (work / RUN_LINK).write_text(json.dumps({"run": str(run)}), encoding="utf-8")


def smoke_arguments(work: Path, mode: str) -> list[str]:
    """Return the arguments of the smoke recipe."""
    settings = {"output.directory": str(work / "runs"), "output.name": f"smoke-{mode}", "quantization.mode": mode}
    return ["sft", "recipes/smoke.yaml", "--json", *set_options(settings)]


def sft_arguments(size: CheckSize, work: Path, name: str) -> list[str]:
    """Return the arguments of one training of the random base in 4 bits."""
    recipe = work / f"{name}.yaml"
    recipe.write_text("data:\n  train: dialogues.jsonl\n  validation_share: 0.1\n", encoding="utf-8")
    settings = {
        "base.name": str(work / "run-base"),
        "quantization.mode": "4bit",
        "training.max_steps": str(size.run_steps),
        "training.epochs": "100",
        "training.effective_batch_size": "8",
        "training.learning_rate": "1e-3",
        "checkpoint.every_steps": str(max(2, size.run_steps // 4)),
        "evaluation.samples": "1",
        "evaluation.max_new_tokens": "8",
        "output.directory": str(work / "runs"),
        "output.name": name,
    }
    return ["sft", str(recipe), "--json", *set_options(settings)]


def set_options(settings: dict[str, str]) -> list[str]:
    """Return `--set` options."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def check_sft(records: Records, name: str, result: CommandResult) -> None:
    """Check that a run ended well, and record its device, path and speed."""
    if not records.check(f"sft, {name}", result.code == 0, f"exit code {result.code}: {result.last_line}"):
        return
    values = result.read_json()
    plan = json.loads((Path(str(values["run"])) / "plan.json").read_text(encoding="utf-8"))
    records.check(f"on the card, {name}", plan["precision"]["device"] == "cuda", str(plan["precision"]))
    notes = [line for line in result.stderr.splitlines() if "fast path" in line or "slower" in line]
    records.add_figures(
        f"sft, {name}",
        seconds=values["seconds"],
        steps=values["steps"],
        fast_path=plan["training"]["fast_path"],
        peak_gib=values["peak_memory_bytes"] / 2**30,
        notes=notes,
    )


def compare_bytes(records: Records, work: Path) -> None:
    """Check that the resumed run has the bytes of the uninterrupted one, if two uninterrupted runs have equal bytes."""
    try:
        whole, again, resumed = (digest_adapter(work / "runs" / f"{name}-1") for name in ("whole", "again", "stopped"))
    except OSError as error:
        records.check("equal bytes", False, f"no adapter: {error}")
        return
    records.add_figures("bytes", repeatable=whole == again, resumed_equal=resumed == whole)
    if whole == again:
        records.check("equal bytes", resumed == whole, "the resumed run differs, and two whole runs are equal")
    else:
        records.skip("equal bytes", "two uninterrupted runs differ on this card, so its kernels are not repeatable")


if __name__ == "__main__":
    main()
