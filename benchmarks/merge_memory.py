"""Measure the peak memory of a merge and its parity check: `python benchmarks/merge_memory.py`.

A random Llama of about 1.5 billion parameters is written, an adapter is attached to it in 4 bits, 8 bits and 16 bits,
and each merge runs in a separate process. Private memory cannot be given back (RssAnon, sampled 20 times a second).
Resident memory is ru_maxrss, which also counts pages of the model files that the system can drop.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MODES = ("4bit", "8bit", "none")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        merge_once(Path(options.child[0]), options.child[1])
        return
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary  # no digest of the random base stays in the user's cache
        folder = Path(temporary)
        write_base(folder / "base", options.layers)
        size = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
        print(f"16-bit model: {size / 1e9:.2f} GB\n")
        print(
            "| base in training | private, GB | above the model, GB | resident, GB | seconds |\n|---|---|---|---|---|"
        )
        for mode in MODES:
            command = [sys.executable, __file__, "--child", temporary, mode]
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this file itself
            result = json.loads(done.stdout)
            print(
                f"| {mode} | {result['private'] / 1e9:.2f} | {(result['private'] - size) / 1e9:.2f} "
                f"| {result['resident'] / 1e9:.2f} | {result['seconds']:.0f} |",
                flush=True,
            )


def write_base(folder: Path, layers: int) -> None:
    """Write a random Llama of Llama-3.2-1B's width with the tokenizer of tiny-random."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lora_chat.models.bundled import find_bundled_base

    AutoTokenizer.from_pretrained(find_bundled_base("tiny-random")).save_pretrained(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="1GB")
    torch.set_default_dtype(torch.float32)


def merge_once(folder: Path, mode: str) -> None:
    """Write an adapter without a second model in memory, merge it, print peak and seconds as JSON."""
    import torch

    from lora_chat.config.plan import plan_precision
    from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
    from lora_chat.export.merge import AdapterBlend, merge_blend
    from lora_chat.export.parity.samples import make_parity_sample
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.adapter_files import read_adapter, save_adapter
    from lora_chat.models.base_model import find_base, load_meta_model, load_tokenizer
    from lora_chat.models.identity import compute_identity
    from lora_chat.pipeline.open_adapter import resolve_adapter
    from lora_chat.system.hardware import detect_hardware

    base = find_base(BaseSection(name=str(folder / "base")))
    tokenizer = load_tokenizer(base)
    model = attach_adapter(load_meta_model(base), AdapterSection(rank=16))
    torch.manual_seed(0)
    # The adapter of the meta model has no weights, so random ones are set by name.
    for name, parameter in list(model.named_parameters()):
        if parameter.requires_grad:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, torch.nn.Parameter(torch.randn(parameter.shape) * 0.05))
    save_adapter(model, folder / f"adapter-{mode}", compute_identity(base, tokenizer), str(tokenizer.chat_template), "")
    del model
    precision = plan_precision(QuantizationSection.model_validate({"mode": mode}), detect_hardware())
    adapter = resolve_adapter(read_adapter(folder / f"adapter-{mode}"))
    ids = torch.randint(3, 250, (64,)).tolist()
    samples = [make_parity_sample(ids, [-100] * 32 + ids[32:])]
    private = [0]
    threading.Thread(target=watch, args=(private,), daemon=True).start()
    started = time.monotonic()
    merge_blend(AdapterBlend(((adapter, 1.0),), precision, (2,)), samples, folder / f"merged-{mode}", accept=True)
    seconds = time.monotonic() - started
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"private": private[0], "resident": resident, "seconds": seconds}))


def watch(private: list[int]) -> None:
    """Record the largest anonymous memory of this process, in bytes."""
    status = Path("/proc/self/status")
    while True:
        line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon:"))
        private[0] = max(private[0], int(line.split()[1]) * 1024)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
