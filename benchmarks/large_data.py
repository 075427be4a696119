"""Measure the start of a run on a large data set: `python benchmarks/large_data.py --dialogues 100000 --copies 100`.

Short dialogues of random words, about 40 tokens each, are written to a file. One process encodes and audits them; a
second one starts a new run from the caches and stops after its first optimizer step. Each stage is shown with its
seconds, the processor time of the process, and the private memory at its end (RssAnon; memory-mapped files are not
counted, because the system can drop them and all processes of a machine share them).

With `--copies`, the file and the encoded store have this many copies of each dialogue, each with another digest, but
only the first copy is encoded and audited, because that takes hours for 10 million dialogues. The kept digests of
training dialogues then have random values and their largest size. The second process reads everything in full.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

STAGES = (
    ("lora_chat.data.storage.cache", "_cache_key", "digest of the files"),
    ("lora_chat.data.sources", "open_store", "store: found or encoded"),
    ("lora_chat.pipeline.load_data", "split_data", "split"),
    ("lora_chat.pipeline.load_data", "compute_statistics", "statistics"),
    ("lora_chat.pipeline.audit_run", "audit_sets", "audit"),
    ("lora_chat.pipeline.audit_run", "audit_run", "audit with dropped dialogues"),
    ("lora_chat.pipeline.fine_tune", "resolve_plan", "planning"),
    ("lora_chat.pipeline.run_identity", "digest_rows", "digest of the rows"),
    ("lora_chat.pipeline.prepare", "PreparedRun.write", "held-out data written"),
    ("lora_chat.pipeline.fine_tune", "keep_training_digests", "digests of training dialogues"),
    ("lora_chat.pipeline.fine_tune", "load_adapted_model", "base and adapter loaded"),
    ("lora_chat.pipeline.fine_tune", "check_longest_dialogue_fits", "longest held-out dialogue"),
    ("lora_chat.training.sft", "_prepare_training", "fast path checked"),
    ("lora_chat.training.sft", "_make_trainer", "trainer made"),
)
"""Module, function and title of each measured stage, in the order of a run."""
RECIPE = """
base: {name: tiny-random}
quantization: {mode: none}
adapter: {rank: 4}
data: {train: dialogues.jsonl, max_length: 128}
audit: {leak: warn}
training: {max_steps: 1, effective_batch_size: 8}
evaluation: {samples: 0, general: off}
output: {directory: runs}
"""
ONE_COPY = "one-copy.jsonl"
CONSONANTS, VOWELS = "bdfgklmnprstvwz", "aeiou"


def main() -> None:
    """Write the data, run both processes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dialogues", type=int, default=200_000)
    parser.add_argument("--copies", type=int, default=1, help="copies of each dialogue, of which one is encoded")
    parser.add_argument("--folder", type=Path, help="folder for data and caches that is kept; default: a temporary one")
    parser.add_argument("--child", choices=("first", "again"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if options.child == "first" and options.copies > 1:
            encode_one_copy(options.dialogues, options.copies)
        run_until_first_step(options.folder)
        return
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="large-data-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config")}
    try:
        write_dialogues(folder / "dialogues.jsonl", options.dialogues, options.copies)
        (folder / "recipe.yaml").write_text(RECIPE)
        for child in ("first", "again"):
            command = [sys.executable, __file__, "--folder", str(folder), "--child", child]
            command += ["--dialogues", str(options.dialogues), "--copies", str(options.copies)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - this file
            print_table(child, options.dialogues * options.copies, json.loads(done.stdout.splitlines()[-1]))
        stored = {path.name: path.stat().st_size for path in (folder / "cache/lora-chat/dialogues").glob("*/*")}
        per_dialogue = sum(stored.values()) / options.dialogues / options.copies
        print(f"\nBytes of the store per dialogue: {per_dialogue:.0f} ({stored})")
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def write_dialogues(path: Path, count: int, copies: int) -> None:
    """Write dialogues of random words to one file, and copies of all of them to another one."""
    source = random.Random(0)
    lines = []
    for _ in range(count):
        question, reply = (make_word(source, source.randint(2, 7)) for _ in range(2))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    text = "".join(lines)
    path.with_name(ONE_COPY).write_text(text, encoding="utf-8")
    with path.open("w", encoding="utf-8") as file:
        for _ in range(copies):
            file.write(text)


def make_word(source: random.Random, syllables: int) -> str:
    """Return a random word."""
    return "".join(source.choice(CONSONANTS) + source.choice(VOWELS) for _ in range(syllables))


def encode_one_copy(dialogues: int, copies: int) -> None:
    """Encode and audit only the first copy of the dialogues, and write a store with all copies."""
    import numpy as np

    from lora_chat.audit.overlap.digest_set import MAX_DIGESTS, DigestSet
    from lora_chat.audit.overlap.training_digests import MAX_SIGNATURES, SIGNATURE_BYTES, TrainingDigests
    from lora_chat.data.storage import ledger
    from lora_chat.data.storage.store import COLUMNS, STORED_FILES, DialogueStore
    from lora_chat.data.storage.store_writer import StoreWriter

    names = ("data.storage.cache", "pipeline.audit_data", "pipeline.training_overlap")
    modules: list[Any] = [importlib.import_module(f"lora_chat.{name}") for name in names]
    cache, audit_data, training_overlap = modules
    generator = np.random.default_rng(0)
    build_store, iter_dialogues = cache.build_store, audit_data._iter_dialogues

    def build_copies(folder: Path, paths: Any, *args: Any) -> Any:
        one = folder / "one-copy"
        one.mkdir()
        counts = build_store(one, [Path(paths[0]).with_name(ONE_COPY)], *args)
        writer, store = StoreWriter(folder), DialogueStore(one)
        for _ in range(copies):
            digests = generator.integers(-(2**63), 2**63 - 1, store.unit_count)
            store.__dict__["digests"] = digests.astype(COLUMNS["digests"])
            writer.append(store)
        for name in ("lines", "accepted", *ledger._SUMMED_FIELDS):
            setattr(counts, name, getattr(counts, name) * copies)
        counts.roles = {role: [number * copies for number in both] for role, both in counts.roles.items()}
        writer.close(counts)
        shutil.rmtree(one)
        assert {path.name for path in folder.iterdir()} >= set(STORED_FILES)
        return counts

    def make_digests(*args: Any) -> TrainingDigests:
        shift = 3
        values = (np.sort(generator.integers(0, 2**63, MAX_DIGESTS, np.uint64)) for _ in range(4))
        sets = [DigestSet(np.unique(each >> np.uint64(shift)), shift) for each in values]
        signatures = generator.integers(0, 256, (MAX_SIGNATURES, SIGNATURE_BYTES), np.uint8)
        return TrainingDigests(sets[0], sets[1], sets[2], sets[3], signatures)

    cache.build_store = build_copies
    audit_data._iter_dialogues = lambda *args: islice(iter_dialogues(*args), dialogues)
    training_overlap._collect_digests = make_digests


def run_until_first_step(folder: Path) -> None:
    """Train one step, print the measurements as JSON, and end the process."""
    started = time.perf_counter(), time.process_time()
    measured: list[dict[str, Any]] = []

    def measure(title: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured_call(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter(), time.process_time()
            try:
                return function(*args, **options)
            finally:
                add(title, begin)

        return measured_call

    def add(title: str, begin: tuple[float, float]) -> None:
        seconds, processor = time.perf_counter() - begin[0], time.process_time() - begin[1]
        measured.append({"title": title, "seconds": seconds, "processor": processor, **read_memory()})

    from lora_chat.commands import sft  # noqa: F401 - the time of imports counts as a stage

    for module_name, name, title in STAGES:
        owner: Any = importlib.import_module(module_name)
        owner, name = (getattr(owner, name.split(".")[0]), name.split(".")[1]) if "." in name else (owner, name)
        setattr(owner, name, measure(title, getattr(owner, name)))
    from lora_chat.training.callbacks.metrics import MetricsCallback

    add("imports", started)

    def stop(self: MetricsCallback, *args: Any, **options: Any) -> None:
        add("start of the process to the first step", started)
        sys.stdout.write(json.dumps(measured) + "\n")
        sys.stdout.flush()
        os._exit(0)

    MetricsCallback.on_step_end = stop  # type: ignore[method-assign]
    from lora_chat.cli import main as run_command

    os.chdir(folder)
    sys.exit(run_command(["sft", "recipe.yaml"]))


def read_memory() -> dict[str, float]:
    """Return the private and the largest resident memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "VmHWM"))}
    return {"private": int(values["RssAnon"]) / 1e3, "peak": int(values["VmHWM"]) / 1e3}


def print_table(child: str, dialogues: int, measured: list[dict[str, Any]]) -> None:
    """Print the stages of one process."""
    print(f"\n{'First run' if child == 'first' else 'Start from the caches'}, {dialogues:,} dialogues\n")
    print("| stage | seconds | processor s | private MB at its end | peak resident MB |\n|---|---|---|---|---|")
    for row in measured:
        print(
            f"| {row['title']} | {row['seconds']:.2f} | {row['processor']:.2f} | {row['private']:,.0f} "
            f"| {row['peak']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
