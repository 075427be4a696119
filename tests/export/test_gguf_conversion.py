"""llama.cpp's converter gets what it needs, and its failures become one sentence."""

import io
import os

import pytest

from lora_chat.export.converter_failures import explain_failure
from lora_chat.export.exporter import ExportJob, export_and_check
from lora_chat.export.formats import EXPORT_FORMATS
from lora_chat.export.gguf_conversion import find_space_prefix
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.default_prompts import make_default_samples
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.open_adapter import resolve_adapter

BOS_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "NotImplementedError: BPE pre-tokenizer was not recognized - update",
            "does not know how this base's tokenizer",
        ),
        ("ERROR:hf-to-gguf:Model FooForCausalLM is not supported", "has no model FooForCausalLM"),
        ("ValueError: Error: Missing /tmp/x/merged/tokenizer.model", "needs the file tokenizer.model"),
        ("FileNotFoundError: File not found: /tmp/x/tokenizer.model", "needs the file tokenizer.model"),
        ("KeyError: 'rotary_pct'", "needs the field rotary_pct"),
        ("ValueError: Can not map tensor 'model.x.weight'", "no place for the weight model.x.weight"),
        ("RuntimeError: odd thing in /tmp/secret/place/file.py", "odd thing in file.py"),
    ],
)
def test_a_failed_converter_ends_in_one_sentence(stderr, reason):
    text = explain_failure("convert_hf_to_gguf.py", f"Traceback (most recent call last):\n  File x\n{stderr}\n", 1)
    assert reason in text and "Fix: " in text
    assert "\n" not in text and "Traceback" not in text and "/tmp" not in text


@pytest.fixture(scope="module")
def sentencepiece_folder(cache_home, tmp_path_factory):
    """Return a folder with a SentencePiece model, as Llama 2 and Phi-3 have it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on a mat and which day comes after monday"] * 50),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"bos_id": 1, "eos_id": 2, "unk_id": 0, "pad_id": -1},
    )
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.mark.parametrize(("legacy", "template", "prefix"), [(False, BOS_TEMPLATE, False), (False, None, True)])
def test_finds_the_space_before_texts(sentencepiece_folder, legacy, template, prefix):
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(sentencepiece_folder, legacy=legacy)
    tokenizer.chat_template = template
    assert find_space_prefix(tokenizer) is prefix


def test_finds_no_space_for_other_tokenizers(tiny_tokenizer):
    assert find_space_prefix(tiny_tokenizer) is None


SHAPES = {
    "gpt_neox": {"num_key_value_heads": None},
    "cohere2": {"sliding_window": 64},
    "qwen3_5_text": {
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}


@pytest.mark.skipif(not os.environ.get("LORA_CHAT_ALL_BASES"), reason="on demand")
@pytest.mark.usefixtures("warm_exporters")
@pytest.mark.parametrize("architecture", ["llama", "phi3", *SHAPES])
def test_llama_cpp_computes_the_same_logits(sentencepiece_folder, make_adapter, tmp_path, architecture):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer

    from lora_chat.models.bundled import find_bundled_base

    if architecture in SHAPES:
        tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("smollm2-135m-instruct"))
    else:
        tokenizer = LlamaTokenizer.from_pretrained(sentencepiece_folder, legacy=False)
        tokenizer.chat_template = BOS_TEMPLATE
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(1)
    config = AutoConfig.for_model(architecture, **{**shape, **ids, **SHAPES.get(architecture, {})})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    if architecture not in SHAPES:
        (tmp_path / "base" / "tokenizer.model").write_bytes((sentencepiece_folder / "tokenizer.model").read_bytes())
    _, precision = make_adapter(tmp_path / "base", tmp_path / "adapter")
    adapter = resolve_adapter(read_adapter(tmp_path / "adapter"))
    blend = AdapterBlend(((adapter, 1.0),), precision, read_stop_ids(adapter.base, adapter.tokenizer))
    out = tmp_path / "beside" / "out"
    out.mkdir(parents=True)
    job = ExportJob(blend, make_default_samples(blend, None), out, "model", ["f32"])
    (report,) = export_and_check(EXPORT_FORMATS["gguf"].load_exporter(), job)
    assert report.mean_kl < report.control_kl / 1000
