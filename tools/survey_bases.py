"""Fine-tune, evaluate, merge and reopen a small random base of every causal architecture of the installed Transformers.

    python tools/survey_bases.py [MODEL_TYPE ...] [--json FILE] [--table docs/bases.md] [--keep FOLDER] [--mode none]

Each command runs in its own process, forked from one that has imported the large libraries. Afterwards a process that
uses only Transformers and PEFT checks what was written. The exit code is 1 if there is a fault.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # threads of OpenMP do not survive a fork
os.environ["HF_HUB_OFFLINE"] = "1"

from survey.case import Case, count_results
from survey.commands import survey
from survey.table import format_table

MULTIMODAL = (
    "internvl",
    "lfm2_vl",
    "llava",
    "mistral3",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
)
"""Bases for text and pictures that have no class for text only."""


def main() -> None:
    """Survey the architectures named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*")
    parser.add_argument("--json", type=Path, action="append", help="file of results; several files with --only-table")
    parser.add_argument("--table", type=Path, help="Markdown file whose table is replaced")
    parser.add_argument("--only-table", action="store_true", help="write the table from earlier results")
    parser.add_argument("--keep", type=Path, help="folder for what the commands write, instead of a temporary one")
    parser.add_argument("--mode", default="none", choices=("none", "8bit", "4bit"), help="quantization of the bases")
    options = parser.parse_args()
    if options.only_table:
        rows = [row for path in options.json for row in json.loads(path.read_text(encoding="utf-8"))]
        cases = list({row["model_type"]: Case(**row) for row in rows}.values())  # the last result of each
    else:
        cases = _survey_all(options.model_types, options.keep, options.mode, options.json and options.json[0])
    if options.table:
        options.table.write_text(format_table(cases, options.table.read_text(encoding="utf-8")), encoding="utf-8")
    print(", ".join(f"{result}: {count}" for result, count in count_results(cases).items()))
    sys.exit(any(case.result == "FAULT" for case in cases))


def _survey_all(model_types: list[str], keep: Path | None, mode: str, results: Path | None) -> list[Case]:
    """Survey one architecture after the other. Print a line for each, and write the results so far."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers
    import trl.trainer.sft_trainer  # noqa: F401
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    root = keep or Path(tempfile.mkdtemp())
    cases = []
    for model_type in model_types or sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MULTIMODAL}):
        folder = root / model_type
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        begin = time.monotonic()
        case = survey(model_type, folder, mode)
        case.seconds = round(time.monotonic() - begin, 1)
        print(f"{model_type:28} {case.result:8} {case.seconds:6.1f} s  {case.detail[:300]}", flush=True)
        cases.append(case)
        if results:
            results.write_text(json.dumps([asdict(case) for case in cases], indent=1), encoding="utf-8")
        if not keep:
            shutil.rmtree(folder)
    return cases


if __name__ == "__main__":
    main()
