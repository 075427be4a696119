"""Compare estimated with measured memory and time on a CPU, for the embedded base and larger random ones.

    python benchmarks/plan_on_cpu.py [FOLDER] [--bases NAME ...]

Random bases are written into FOLDER once (a few GB); each run is a separate process.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads
BASES = {
    "smollm2-135m-instruct": None,
    "360M": (960, 2560, 32, 15, 5),
    "800M": (1536, 6144, 20, 24, 8),
    "1.2B": (2048, 8192, 18, 32, 8),
}
MODES = ("none", "8bit", "4bit")
STEPS = 12


def main() -> None:
    """Print a table with a row for each base and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "lora-chat-bases")
    parser.add_argument("--bases", nargs="+", default=list(BASES))
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    options = parser.parse_args()
    names = {"planned GB": 11, "took GB": 9, "off": 7, "planned s": 11, "took s": 8, "off ": 7}
    print(f"{'base':<24}{'precision':<10}" + "".join(f"{name.strip():>{width}}" for name, width in names.items()))
    for name in options.bases:
        base = name if BASES[name] is None else str(random_base(options.folder / name, BASES[name]))
        for mode in options.modes:
            record = run(base, mode)
            planned, took = record["planned"], record["measured"]
            memory = planned["peak_bytes"] / 1e9, took["peak_bytes"] / 1e9
            seconds = planned["seconds"], took["seconds"]
            print(
                f"{name:<24}{mode:<10}{memory[0]:>11.2f}{memory[1]:>9.2f}{memory[0] / memory[1] - 1:>+7.1%}"
                f"{seconds[0]:>11.0f}{seconds[1]:>8.0f}{seconds[0] / seconds[1] - 1:>+7.0%}",
                flush=True,
            )


def random_base(folder: Path, widths: Any) -> Path:
    """Write a Llama of random weights with the embedded base's tokenizer; return its folder."""
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import LlamaConfig

    from lora_chat.models.bundled import find_bundled_base

    source = find_bundled_base("smollm2-135m-instruct")
    hidden, inner, layers, heads, key_heads = widths
    config = LlamaConfig.from_pretrained(source)
    config.update(
        {
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "head_dim": hidden // heads,
        }
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for path in source.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, folder)
    return folder


def run(base: str, mode: str) -> Any:
    """Run a few steps on the quickstart's dialogues; return the record of estimate and measurement."""
    with tempfile.TemporaryDirectory() as runs:
        settings = {
            "base.name": base,
            "quantization.mode": mode,
            "training.max_steps": STEPS,
            "evaluation.questions": "null",
            "evaluation.samples": 1,
            "output.directory": runs,
        }
        options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "lora_chat", "sft", "recipes/quickstart.yaml", "--json", *options],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)["forecast"]


if __name__ == "__main__":
    main()
