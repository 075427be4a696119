"""Part `chat`: answer and evaluate with the run of part `run`, by the command line."""

import json
from typing import Any

from check_records import Records, seconds_left
from command_runs import read_run, run_command, start_command, wait_for_end
from part_arguments import read_part_arguments

_MAX_LOSS_DIFFERENCE = 0.02


def main() -> None:
    """Chat, evaluate, and print the plan of the recipe of the run."""
    _, work = read_part_arguments()
    records = Records()
    run = read_run(work)
    if run is None:
        records.skip("chat", "part `run` has left no run")
        return
    evaluation = start_command(["eval", str(run), "--json"])
    chat = run_command(["chat", str(run), "--max-new-tokens", "12", "--json"], seconds_left(), stdin="What is it?\n")
    records.check("chat", chat.code == 0 and bool(chat.stdout.strip()), f"exit code {chat.code}: {chat.last_line}")
    records.add_figures("chat", reply=chat.stdout.strip()[:200])
    result = wait_for_end(evaluation, seconds_left())
    if records.check("eval", result.code == 0, f"exit code {result.code}: {result.last_line}"):
        compare_losses(
            records, read_losses(result.read_json()), read_losses(json.loads((run / "result.json").read_text()))
        )


def read_losses(values: dict[str, Any]) -> dict[str, float]:
    """Return the validation losses of a result by name."""
    losses = values.get("validation_loss")
    return dict(losses) if isinstance(losses, dict) else {}


def compare_losses(records: Records, now: dict[str, float], then: dict[str, float]) -> None:
    """Check that the losses are those that `sft` measured after training."""
    shared = now.keys() & then.keys()
    records.check("losses", bool(shared), f"no loss in {sorted(now)} and {sorted(then)}")
    for name in sorted(shared):
        passed = abs(now[name] - then[name]) <= _MAX_LOSS_DIFFERENCE
        records.check(f"eval {name}", passed, f"{now[name]:.4f}, and {then[name]:.4f} after training")
    records.add_figures("losses", **now)


if __name__ == "__main__":
    main()
