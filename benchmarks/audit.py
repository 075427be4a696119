"""Measure the speed of the audit and count its findings.

    python benchmarks/audit.py FILE.jsonl [FILE.jsonl ...] [--rounds 5] [--times 1]

Prints MB of text per second on one core for each file and for all files, then the findings by kind. Times are CPU
times and still vary on a busy machine, so the range over the rounds is printed. `--times 50` repeats the dialogues 50
times with other words, to measure memory and speed on large data. Files with other column names are read with
`--columns user=QUESTION assistant=ANSWER`; files without dialogues are left out.
"""

import argparse
import resource
import time
from dataclasses import replace

from lora_chat.audit.auditor import Auditor
from lora_chat.audit.report import AuditReport
from lora_chat.config.audit import AuditSection
from lora_chat.data.dialogue import Dialogue
from lora_chat.data.parsing.rows import ReadingOptions, read_dialogues
from lora_chat.errors import DataError


def size(dialogues: list[Dialogue]) -> float:
    """Return the size of the text in UTF-8, in MB."""
    return sum(len(m.content.encode()) for d in dialogues for m in d.messages) / 1e6


def multiply(dialogues: list[Dialogue], times: int) -> list[Dialogue]:
    """Return copies of the dialogues. A number after every word of further copies makes them different."""
    result = list(dialogues)
    for n in range(1, times):
        for dialogue in dialogues:
            messages = (
                replace(m, content=m.content.replace(" ", f"{n} ").replace("，", f"{n}，")) for m in dialogue.messages
            )
            result.append(replace(dialogue, messages=tuple(messages)))
    return result


def audit(dialogues: list[Dialogue]) -> tuple[AuditReport, float]:
    """Return the report and the CPU seconds of an audit."""
    start = time.process_time()
    auditor = Auditor(AuditSection(), ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    for dialogue in dialogues:
        auditor.add(dialogue, "train")
    report = auditor.report()
    return report, time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--columns", nargs="*", default=[], metavar="ROLE=COLUMN")
    options = parser.parse_args()
    reading = ReadingOptions(columns=dict(column.split("=", 1) for column in options.columns))
    parts = {}
    for file in options.files:
        try:
            dialogues = read_dialogues(file, options=reading)[0]
        except DataError as error:
            print(f"{file} is left out: {str(error).splitlines()[0]}")
            continue
        if dialogues:
            parts[file] = multiply(dialogues, options.times)
        else:
            print(f"{file} is left out: it contains no dialogues.")
    if not parts:
        raise SystemExit("None of the files contains dialogues.")
    parts["all"] = [dialogue for part in parts.values() for dialogue in part]
    audit(parts["all"][:50])  # loads libraries
    print(f"{'':24}{'dialogues':>10}{'MB':>8}{'MB/s':>14}{'us/dialogue':>13}")
    for file, dialogues in parts.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        results = [audit(dialogues) for _ in range(options.rounds)]
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
        seconds = sorted(s for _, s in results)
        mb = size(dialogues)
        speed = f"{mb / seconds[-1]:.1f}-{mb / seconds[0]:.1f}"
        per = seconds[0] / len(dialogues) * 1e6
        print(f"{file.rsplit('/')[-1][-23:]:24}{len(dialogues):>10}{mb:>8.2f}{speed:>14}{per:>13.0f}   +{grown:.0f} MB")
        print("    " + ", ".join(f"{kind} {n}" for kind, n in results[0][0].counts.items()))


if __name__ == "__main__":
    main()
