"""Part `merge`: merge with its parity check, also on a card that is too small for the 16-bit model."""

import shutil
from pathlib import Path

from check_records import Records, seconds_left
from command_runs import CommandResult, file_bytes, read_run, run_command
from part_arguments import read_part_arguments


def main() -> None:
    """Merge twice: with all of the card, and with too little of it for the 16-bit model."""
    size, work = read_part_arguments()
    records = Records()
    run = read_run(work)
    if run is None:
        records.skip("merge", "part `run` has left no run")
        return
    whole = run_command(["merge", str(run), "--to", str(work / "merged"), "--json"], seconds_left())
    check_merge(records, "merge", whole, work / "merged")
    usable = int(size.merge_share * file_bytes(work / "run-base"))
    arguments = ["merge", str(run), "--to", str(work / "merged-small"), "--json"]
    small = run_command(arguments, seconds_left(), limits=["--free", str(usable)])
    check_merge(records, "merge, 16-bit model too large for the card", small, work / "merged-small")
    records.add_figures("small card", usable_mib=usable / 2**20)
    for folder in ("merged", "merged-small"):
        shutil.rmtree(work / folder, ignore_errors=True)


def check_merge(records: Records, name: str, result: CommandResult, folder: Path) -> None:
    """Check that the merge passed its parity check and wrote the model."""
    if records.check(name, result.code == 0, f"exit code {result.code}: {result.last_line}"):
        records.check(f"{name}, files", file_bytes(folder) > 0, "no weights were written")
        lines = [line.strip() for line in result.stderr.splitlines() if "CPU" in line or "KL" in line]
        records.add_figures(name, notes=lines[-3:])


if __name__ == "__main__":
    main()
