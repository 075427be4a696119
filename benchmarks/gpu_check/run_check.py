"""Check lora_chat on a GPU and compare it with TRL there: `make gpu-check`.

    python benchmarks/gpu_check/run_check.py [--kit FOLDER] [--parts NAME ...] [--json gpu-check.json]
    python benchmarks/gpu_check/run_check.py --rehearse        the same with tiny models on an emulated card

Every part is a process with a time limit, and the others run also if it fails. The exit code is 1 if a part failed.
README.md beside this file describes a run on a remote host without a network.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from check_parts import TOTAL_SECONDS, select_parts
from check_report import format_table, format_verdict
from child_command import FAKE_CARD_VARIABLE, ROOT, card_command
from kit_environment import make_environment
from part_process import PartResult, run_stage

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "USE_HUB_KERNELS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
"""Environment of every part: no network, and no code from a hub."""
_MAX_LOG_CHARACTERS = 100_000


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="gpu-check", description="check lora_chat on a GPU")
    parser.add_argument("--size", choices=["full", "tiny"], help="shapes of the models (full; tiny in a rehearsal)")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="run only these parts")
    parser.add_argument("--kit", type=Path, help="folder of wheels from `make gpu-kit`, unpacked first")
    parser.add_argument("--seconds", type=float, help=f"time limit of everything ({TOTAL_SECONDS}; none if tiny)")
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="file of the results")
    parser.add_argument("--work", type=Path, help="keep the files of the parts and their logs here")
    parser.add_argument("--rehearse", action="store_true", help="use an emulated card on a machine without a GPU")
    parser.add_argument("--fake-card", type=Path, default=ROOT / "tests" / "cuda", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.size = options.size or ("tiny" if options.rehearse else "full")
    if options.seconds is None:
        options.seconds = TOTAL_SECONDS if options.size == "full" else float("inf")
    return options


def prepare_process_environment(options: argparse.Namespace, work: Path) -> None:
    """Set the variables that every part inherits. Caches and keys are in the work folder."""
    os.environ.update(_SETTINGS)
    os.environ["XDG_CACHE_HOME"], os.environ["XDG_CONFIG_HOME"] = str(work / "cache"), str(work / "config")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    os.environ.pop(FAKE_CARD_VARIABLE, None)
    if options.rehearse:
        os.environ[FAKE_CARD_VARIABLE] = str(options.fake_card.resolve())
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@contextmanager
def open_work_folder(folder: Path | None) -> Iterator[Path]:
    """Create the work folder, which is temporary unless the user names one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def check_card(interpreter: str) -> None:
    """Exit with 2 if there is no card, because every part would fail then."""
    program = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 3)"
    done = subprocess.run(  # noqa: S603 - the interpreter of the parts
        card_command(["-c", program], interpreter), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["torch.cuda.is_available() is false"])[-1]
        print(f"Problem: no CUDA device ({last}). Fix: use a machine with a GPU, or add --rehearse.", file=sys.stderr)
        sys.exit(2)


def write_logs(names: list[str], work: Path, target: Path) -> None:
    """Write the ends of the logs of all parts into one file beside the results."""
    logs = [(name, work / f"{name}.log") for name in names]
    texts = [
        f"===== {name}\n" + log.read_text(encoding="utf-8", errors="replace")[-_MAX_LOG_CHARACTERS:]
        for name, log in logs
        if log.is_file()
    ]
    target.write_text("\n".join(texts), encoding="utf-8")


def main() -> int:
    """Run the parts, print the table and write the results."""
    options, started = read_arguments(), time.monotonic()
    parts = select_parts(options.parts)
    results: list[PartResult] = []
    with open_work_folder(options.work) as work:
        prepare_process_environment(options, work)
        interpreter = make_environment(options.kit, work / "environment") if options.kit else sys.executable
        if not options.rehearse:
            check_card(interpreter)
        for _, group in groupby(parts, key=lambda part: part.stage):
            stage = list(group)
            print(f"{time.monotonic() - started:4.0f} s: {', '.join(part.name for part in stage)} ...", flush=True)
            left = options.seconds - (time.monotonic() - started)
            results += (
                run_stage(stage, interpreter, work, options.size, left)
                if left > 0
                else [
                    PartResult(part.name, part.title, "skipped", "the time of the whole check is over", 0)
                    for part in stage
                ]
            )
            report = {
                "size": options.size,
                "emulated_card": options.rehearse,
                "seconds": time.monotonic() - started,
                "device": next((r.figures.get("device", {}) for r in results if r.name == "environment"), {}),
                "parts": [asdict(result) for result in results],
            }
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            write_logs([result.name for result in results], work, options.json.with_suffix(".log"))
    print(format_table(results))
    print(format_verdict(results, time.monotonic() - started, emulated=options.rehearse))
    return 1 if any(result.status == "failed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
