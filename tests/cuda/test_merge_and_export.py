"""Merges, exports and other uses of a finished adapter on a card that is too small for more than its quantized base."""

import json
import os
from pathlib import Path

import pytest

CARD_BYTES = 12 * 2**30
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""In 16 bits the weights take 12 MB, in 4 bits 3 MB, and other tensors of these tests less than 7 MB."""
WEIGHT_BYTES = 12_068_352
SMALL_CARD = {"used_by_others": CARD_BYTES - 11_000_000}
"""Options of a card that has the base in 4 bits, its activations, but not the 16-bit model."""
LARGE_CARD = {"used_by_others": CARD_BYTES - 32_000_000}


def write_base_and_adapter(folder, tokenizer_name="tiny-random", shape=()):
    """Write a random Llama, and an adapter for it whose effect is large."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lora_chat.config.plan import PrecisionPlan
    from lora_chat.config.recipe import AdapterSection, BaseSection
    from lora_chat.data.encoding.chat_template import install_template
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.adapter_files import save_adapter
    from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
    from lora_chat.models.bundled import find_bundled_base
    from lora_chat.models.identity import compute_identity

    tokenizer = AutoTokenizer.from_pretrained(find_bundled_base(tokenizer_name))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(1)
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), **{**SHAPE, **dict(shape)}, **ids)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8.0)  # otherwise the logits are nearly equal
    model.save_pretrained(Path(folder) / "base")
    tokenizer.save_pretrained(Path(folder) / "base")
    base = find_base(BaseSection(name=f"{folder}/base"))
    tokenizer = load_tokenizer(base)
    template = install_template(tokenizer)
    precision = PrecisionPlan(device="cpu", mode="none", double_quantization=True, dtype="float32")
    adapted = attach_adapter(load_base_model(base, precision), AdapterSection(rank=4))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    save_adapter(adapted, Path(folder) / "adapter", compute_identity(base, tokenizer), template, "card")


def write_dialogues(folder):
    pairs = [("Where is the key?", "Under it."), ("Wer weiss es?", "Niemand."), ("one two", "three")]
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}
        for question, reply in pairs
    ]
    (folder / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def files(card, tmp_path_factory):
    """Return a folder with `base`, `adapter`, and dialogues for parity checks."""
    folder = tmp_path_factory.mktemp("merge")
    card.run(write_base_and_adapter, str(folder))
    write_dialogues(folder)
    return folder


def use_quantized_base(dtype="bfloat16"):
    """Open adapter folders as if they were runs that trained on a 4-bit base in this dtype."""
    import lora_chat.pipeline.open_adapter as module
    from lora_chat.config.plan import plan_inference_precision
    from lora_chat.config.recipe import QuantizationSection

    quantization = QuantizationSection(mode="4bit")
    module.choose_precision = lambda trained, mode, hardware: plan_inference_precision(quantization, hardware, dtype)


def run(card, files, words, *, prepare=use_quantized_base, arguments=(), **options):
    words = [*words, "--base", files / "base", "--data", files / "dialogues.jsonl", "--accept-template"]
    return card.command([*words, "--json"], prepare=prepare, arguments=arguments, **options)


def merge(card, files, to, **options):
    return run(card, files, ["merge", files / "adapter", "--to", to], **options)


@pytest.mark.skipif("LORA_CHAT_ALL_CUDA" not in os.environ, reason="on demand: make cuda-test")
def test_small_card_checks_the_merge_on_the_cpu(card, files, tmp_path):
    reports = {}
    for name, options in {"large": LARGE_CARD, "small": SMALL_CARD}.items():
        done = merge(card, files, tmp_path / name, **options)
        assert done.exit_code == 0, done.stderr
        assert ("will run on the CPU" in done.stderr) == (name == "small")
        reports[name] = json.loads(done.stdout)["proof"]
        # At most one base is on the card: the 16-bit one, or the quantized one.
        assert done.peaks[0] < (WEIGHT_BYTES + 7_000_000 if name == "large" else WEIGHT_BYTES)
    assert reports["small"]["failures"] == reports["large"]["failures"] == []
    assert reports["small"]["mean_kl"] < 1e-2 < reports["small"]["control_kl"]
    for key in ("loss_adapted", "control_kl"):
        assert reports["small"][key] == reports["large"][key]
    assert reports["small"]["loss_delivered"] == pytest.approx(reports["large"]["loss_delivered"], abs=0.02)


def fill_the_card_before_the_check():
    """Let the card run out of memory in the first pass of the written model. Record the memory before it is read."""
    import fake_card
    import torch

    import lora_chat.export.merge as module

    use_quantized_base("float16")
    load, records = module.load_base_model, []

    def load_and_fill_the_card(base, precision):
        records.append([precision.device, torch.cuda.memory_allocated()])
        model = load(base, precision)
        if precision.mode == "none" and precision.device == "cuda":
            fake_card.set_free_bytes(1000)
        return model

    module.load_base_model = load_and_fill_the_card
    return lambda: records


def test_out_of_memory_in_the_check_repeats_it_on_the_cpu(card, files, tmp_path):
    # After training in fp16 the model is written in fp16, and its layers multiply in fp32 on the CPU.
    done = merge(card, files, tmp_path / "merged", prepare=fill_the_card_before_the_check, **LARGE_CARD)
    assert done.exit_code == 0, done.stderr
    assert "repeated on the CPU" in done.stderr
    assert [device for device, _ in done.result] == ["cuda", "cuda", "cpu"]
    assert max(size for _, size in done.result) < 100_000
    assert json.loads(done.stdout)["proof"]["failures"] == []
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float16"
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def fill_the_main_memory():
    import lora_chat.export.parity.reading_device as module

    use_quantized_base()
    module.free_memory_bytes = lambda: WEIGHT_BYTES // 2


@pytest.mark.parametrize("options", [SMALL_CARD, LARGE_CARD], ids=["small", "large"])
def test_too_little_main_memory_is_refused_before_writing(card, files, tmp_path, options):
    done = merge(card, files, tmp_path / "merged", prepare=fill_the_main_memory, **options)
    assert done.exit_code == 5
    assert "does not fit into main memory" in done.stderr and "Traceback" not in done.stderr
    assert "Computing the outputs" not in done.stderr
    assert not (tmp_path / "merged").exists()


def export_to_peft(card, files, out, **options):
    return run(card, files, ["export", files / "adapter", "--to", "peft", "--out", out], **options)


@pytest.mark.slow
@pytest.mark.parametrize("export_format", ["gguf-adapter", "gguf"])
def test_has_one_base_on_the_card_in_an_export_for_llama_cpp(card, tmp_path, export_format):
    pytest.importorskip("llama_cpp")
    # llama.cpp knows this tokenizer. Its embedding and the LM head take 12.6 MB in every precision.
    tokenizer, shape = "smollm2-135m-instruct", {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    card.run(write_base_and_adapter, str(tmp_path), tokenizer, shape)
    write_dialogues(tmp_path)
    # Replies of a random base with many tokens differ by the rounding of bf16, so only the distributions are compared.
    done = run(
        card, tmp_path, ["export", tmp_path / "adapter", "--to", export_format, "--out", tmp_path / "out", "--accept"]
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)["proofs"][0]
    assert report["mean_kl"] < 1e-2 < report["control_kl"]
    assert 12_600_000 < done.peaks[0] < 2 * 12_600_000


def record_workers(answer_out_of_memory=False):
    """Record the memory and the request of each worker; the first one may answer that its card is too small."""
    import torch

    import lora_chat.export.parity.peft_runner as module
    from lora_chat.system.worker import WorkerResult

    use_quantized_base()
    start, records = module.run_worker, []

    def run_worker(code, arguments, **options):
        request = json.loads((Path(arguments[0]) / "request.json").read_text())
        records.append({"device": request["device"], "dtype": request["dtype"], "bytes": torch.cuda.memory_allocated()})
        if answer_out_of_memory and len(records) == 1:
            return WorkerResult(5, "", "")
        return start(code, arguments, **options)

    module.run_worker = run_worker
    return lambda: records


@pytest.mark.slow
def test_releases_the_card_before_peft_starts(card, files, tmp_path):
    done = export_to_peft(card, files, tmp_path / "out", prepare=record_workers, **SMALL_CARD)
    assert done.exit_code == 0, done.stderr
    (record,) = done.result
    assert record["device"] == "cuda:0"
    assert record["bytes"] < 100_000
    assert json.loads(done.stdout)["proofs"][0]["failures"] == []


def test_peft_uses_the_cpu_if_the_card_is_too_small(card, files, tmp_path):
    done = export_to_peft(card, files, tmp_path / "out", prepare=record_workers, arguments=[True], **SMALL_CARD)
    assert done.exit_code == 0, done.stderr
    assert "The GPU is too small for PEFT" in done.stderr
    assert [record["device"] for record in done.result] == ["cuda:0", "cpu"]
    assert max(record["bytes"] for record in done.result) < 100_000
    assert json.loads(done.stdout)["proofs"][0]["failures"] == []


def run_peft_worker(folder, base):
    """Return the exit code of the PEFT worker on a full card."""
    import runpy
    import sys

    import lora_chat.export.parity

    request = {
        "base": base,
        "auto_class": "AutoModelForCausalLM",
        "mode": "none",
        "device": "cuda:0",
        "dtype": "bfloat16",
        "double_quantization": True,
    }
    (Path(folder) / "request.json").write_text(json.dumps(request))
    sys.argv = ["peft_worker.py", folder]
    try:
        runpy.run_path(str(Path(lora_chat.export.parity.__file__).with_name("peft_worker.py")), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    return 0


def test_peft_worker_reports_that_the_card_is_too_small(card, files, tmp_path):
    assert card.run(run_peft_worker, str(tmp_path), str(files / "base"), used_by_others=CARD_BYTES - 1_000_000) == 5


def fill_the_card_after_loading(target):
    """Let the card run out of memory in the first pass of a loaded model."""
    import importlib

    import fake_card

    name, _, attribute = target.rpartition(".")
    module = importlib.import_module(name)
    call = getattr(module, attribute)

    def call_on_a_full_card(*arguments, **options):
        fake_card.set_free_bytes(1000)
        return call(*arguments, **options)

    setattr(module, attribute, call_on_a_full_card)


@pytest.mark.parametrize("when", ["loading", "computing"])
@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["eval"], "lora_chat.pipeline.compare.compare_with_base"),
        (["chat"], "lora_chat.inference.chat.stream_reply"),
        (["merge", "--to", "merged"], "lora_chat.export.merge.collect_adapted_outputs"),
        (["export", "--to", "peft", "--out", "out"], "lora_chat.export.merge.collect_adapted_outputs"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_full_card_gives_one_message(card, files, tmp_path, words, target, when):
    data = ["--data", files / "dialogues.jsonl"] if words[0] != "chat" else []
    words = [words[0], files / "adapter", *words[1:], *data]
    if when == "loading":
        options = {"used_by_others": CARD_BYTES - 1_000_000}
    else:
        options = {"prepare": fill_the_card_after_loading, "arguments": [target], **LARGE_CARD}
    done = card.command([*words, "--base", files / "base"], cwd=tmp_path, stdin="Hello\n", **options)
    assert done.exit_code == 5, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("More: ")]
    problem, fix = lines[-2:]
    assert ("does not fit into memory" if when == "loading" else "Out of memory on the GPU") in problem
    assert fix.startswith("Fix: ") and "end other programs" in fix and "--set" not in fix
    assert not (tmp_path / "merged").exists() and not (tmp_path / "out").exists()


def generate_on_a_tight_card(folder):
    """Return replies of a card with memory for two prompts together, and the sizes of the batches."""
    import torch

    from lora_chat.config.plan import PrecisionPlan
    from lora_chat.config.recipe import BaseSection
    from lora_chat.inference.generation import generate_ids
    from lora_chat.models.base_model import find_base, load_base_model

    precision = PrecisionPlan(device="cuda", mode="none", double_quantization=True, dtype="float32")
    model = load_base_model(find_base(BaseSection(name=f"{folder}/base")), precision)
    prompts = [[5, 6, 7], [8], [9, 10], [11, 12], [13]]
    expected = generate_ids(model, 0, prompts, [1], 3)
    generate, sizes = model.generate, []

    def generate_two(input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(input_ids=input_ids, **options)

    model.generate = generate_two
    return {"expected": expected, "replies": generate_ids(model, 0, prompts, [1], 3), "sizes": sizes}


def test_replies_are_generated_in_smaller_batches_if_the_card_is_full(card, files):
    answer = card.run(generate_on_a_tight_card, str(files))
    assert answer["sizes"] == [5, 2, 2, 1]
    assert answer["replies"] == answer["expected"]
