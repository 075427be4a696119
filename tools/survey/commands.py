"""The commands that are run for one architecture, and the result that follows from them."""

import json
import shutil
from pathlib import Path

from survey.case import Case
from survey.processes import Ended, run_command, run_forked
from survey.reader import check_results
from survey.small_bases import write_small_base

RECIPE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
OFF = "The fast path is off"
COMPARISONS = ("Parity check failed", "stock path ")
"""Parts of the messages of comparisons that rounding can fail."""
MAX_LOSS_DIFFERENCE = 0.01
"""Largest difference of the validation losses after training on the fast and on the stock path, in nats."""


def survey(model_type: str, folder: Path, mode: str) -> Case:
    """Build, fine-tune, evaluate, merge, pack and reopen one architecture.

    Replies of random models, and the experts that they choose, differ by rounding, so a comparison that fails in bf16
    is repeated in fp32.
    """
    case, base = Case(model_type), folder / "base"
    built = run_forked(lambda: {"weights": write_small_base(model_type, base)}, folder, "build")
    if built.code:
        return case.end("no base", built.last_line.replace(str(folder), "."))
    case.weights = json.loads(built.stdout)["weights"]
    _survey_base(case, base, folder, {"quantization.mode": mode})
    if case.result == "FAULT" and any(text in case.detail for text in COMPARISONS):
        in_bfloat16 = case.detail
        shutil.rmtree(folder / "merged", ignore_errors=True)
        (folder / "parcel.lorachat").unlink(missing_ok=True)
        _survey_base(case, base, folder, {"quantization.mode": mode, "quantization.dtype": "float32"})
        case.figures["in_bfloat16"] = in_bfloat16
        if case.result == "FAULT" and "Parity check failed" in case.detail:
            case.result = "limited"
    return case


def _survey_base(case: Case, base: Path, folder: Path, precision: dict[str, str]) -> Case:
    """Run every command on a base with these settings, and set the result of the case."""
    settings = {
        "base.name": base,
        "base.device": "cpu",
        "training.max_steps": 3,
        "training.learning_rate": "2e-3",
        "output.directory": folder / "runs",
        **precision,
    }
    arguments = ["sft", RECIPE, *(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))]
    trained = run_command([*arguments, "--json"], folder, "sft")
    if trained.code:
        began = "step 1/" in trained.stderr
        reason = trained.message.replace(f"The base {base} ({case.model_type})", "The base").replace(str(folder), ".")
        return case.end("FAULT" if trained.has_traceback or began else "refused", reason)
    result = json.loads(trained.stdout)
    run, loss = Path(result["run"]), result["validation_loss"]["adapted"]
    case.figures |= {"is_planned": "forecast" in result, "loss": loss}
    reason = next((line for line in trained.stderr.splitlines() if line.startswith(OFF)), "")
    if not reason:
        stock = run_command([*arguments, "--set", "training.fast_path=false", "--json"], folder, "stock")
        if stock.code:
            return case.end("FAULT", f"stock path: {stock.message}")
        case.figures["stock_loss"] = json.loads(stock.stdout)["validation_loss"]["adapted"]
        if abs(case.figures["stock_loss"] - loss) > MAX_LOSS_DIFFERENCE:
            return case.end("FAULT", f"fast path {loss:.4f}, stock path {case.figures['stock_loss']:.4f}")
    if failed := _use_run(run, base, folder):
        return case.end("FAULT", failed)
    checked = run_forked(lambda: check_results(base, run / "adapter", folder / "merged"), folder, "check")
    if checked.code:
        return case.end("FAULT", f"reopened with Transformers and PEFT: {checked.message}")
    case.figures |= json.loads(checked.stdout)
    if case.figures["problems"]:
        return case.end("FAULT", "; ".join(case.figures["problems"]))
    notes = [note for note in (reason, *case.figures["notes"]) if note]
    return case.end("works" if reason else "fast", " ".join(notes))


def _use_run(run: Path, base: Path, folder: Path) -> str | None:
    """Run the other commands on a finished run. Return the message of the first that fails."""
    parcel = folder / "parcel.lorachat"
    for arguments in (
        ["eval", run, "--json"],
        ["chat", run, "--max-new-tokens", 8],
        ["merge", run, "--to", folder / "merged", "--json"],
        ["pack", run, "--out", parcel],
        ["verify", parcel, "--base", base],
    ):
        ended: Ended = run_command(arguments, folder, str(arguments[0]))
        if ended.code:
            return f"{arguments[0]}: {ended.message}"
    return None
