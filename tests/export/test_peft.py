"""An adapter gives the same logits in PEFT, in a process that has not imported lora_chat."""

import os

import pytest
import torch

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.export.exporter import ExportJob, export_and_check
from lora_chat.export.formats import EXPORT_FORMATS
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.default_prompts import make_default_samples
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.open_adapter import resolve_adapter

pytestmark = pytest.mark.slow  # a separate process with PEFT takes seconds to start


@pytest.fixture
def blend(random_base, make_adapter, tmp_path):
    def make(mode="none", architecture="llama", **options):
        _, precision = make_adapter(random_base(architecture, 8.0), tmp_path / "adapter", mode, **options)
        adapter = resolve_adapter(read_adapter(tmp_path / "adapter"))
        return AdapterBlend(((adapter, 1.0),), precision, read_stop_ids(adapter.base, adapter.tokenizer))

    return make


ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")


def export(blend, samples, folder):
    return export_and_check(EXPORT_FORMATS["peft"].load_exporter(), ExportJob(blend, samples, folder))


@pytest.mark.parametrize(
    ("mode", "variant", "architecture"),
    [pytest.param("none", "rslora", "gpt2", marks=ON_DEMAND), ("4bit", "dora", "llama")],
)
def test_peft_computes_the_same_logits(blend, tmp_path, mode, variant, architecture):
    adapters = blend(mode, architecture, variant=variant)
    (report,) = export(adapters, make_default_samples(adapters, "Be brief."), tmp_path / "out")
    assert report.reader.startswith(EXPORT_FORMATS["peft"].checked_by)
    # In 16 or 32 bits the arithmetic is the same; in 4 bits bitsandbytes computes differently outside of training.
    assert report.largest_logit_difference < (1e-4 if mode == "none" else 1.0)
    assert report.mean_kl < report.control_kl / 100
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
    ]


def test_shows_the_output_of_peft_if_it_fails(blend, tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("raise SystemExit('no such layer')")
    monkeypatch.setattr("lora_chat.export.parity.peft_runner._WORKER", tmp_path / "worker.py")
    adapters = blend()
    with pytest.raises(IntegrityError, match="no such layer"):
        export(adapters, make_default_samples(adapters, None), tmp_path / "out")


def test_rejects_several_adapters(blend, tmp_path):
    adapters = blend()
    two = AdapterBlend(adapters.adapters * 2, adapters.precision, adapters.stop_ids)
    with pytest.raises(UsageError, match="one adapter"):
        export(two, [], tmp_path / "out")


def test_default_samples_supervise_the_replies_of_the_model(blend):
    adapters = blend()
    samples = make_default_samples(adapters, "Be brief.")
    assert len(samples) > 5
    assert all(sample.messages[0] == {"role": "system", "content": "Be brief."} for sample in samples)
    with torch.inference_mode():
        model = adapters.load_adapted_model()
        for sample in samples[:2]:
            logits = model(input_ids=torch.tensor([list(sample.ids)])).logits[0]
            assert int(logits[sample.positions[0]].argmax()) == sample.target_ids[0]
