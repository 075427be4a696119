"""An adapter of ours gives the same logits in plain PEFT, in a process that has not imported lora_chat."""

import pytest
import torch

from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.default_prompts import make_default_samples
from lora_chat.export.peft import export_peft
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.open_adapter import resolve_adapter

pytestmark = pytest.mark.slow  # PEFT in a process of its own takes seconds to begin


@pytest.fixture
def mixture(random_base, make_adapter, tmp_path):
    def make(mode="none", architecture="llama", **options):
        _, precision = make_adapter(random_base(architecture, 8.0), tmp_path / "adapter", mode, **options)
        found = resolve_adapter(read_adapter(tmp_path / "adapter"))
        return AdapterBlend(((found, 1.0),), precision, read_stop_ids(found.base, found.tokenizer))

    return make


@pytest.mark.parametrize(
    ("mode", "variant", "architecture"),
    [("none", "rslora", "gpt2"), ("4bit", "dora", "llama")],
)
def test_plain_peft_finds_the_same_logits(mixture, tmp_path, mode, variant, architecture):
    made = mixture(mode, architecture, variant=variant)
    (report,) = export_peft(made, make_default_samples(made, "Be brief."), tmp_path / "out")
    assert report.reader.startswith("PEFT ")
    # In 16 or 32 bits the arithmetic is the same; bitsandbytes computes 4 bits otherwise outside of training.
    assert report.largest_logit_difference < (1e-4 if mode == "none" else 1.0)
    assert report.mean_kl < report.control_kl / 100
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
    ]


def test_what_peft_cannot_open_ends_with_its_words(mixture, tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("raise SystemExit('no such layer')")
    monkeypatch.setattr("lora_chat.export.parity.peft_runner._WORKER", tmp_path / "worker.py")
    made = mixture()
    with pytest.raises(IntegrityError, match="no such layer"):
        export_peft(made, make_default_samples(made, None), tmp_path / "out")


def test_several_adapters_are_no_folder(mixture, tmp_path):
    made = mixture()
    two = AdapterBlend(made.adapters * 2, made.precision, made.stop_ids)
    with pytest.raises(RecipeError, match="one adapter"):
        export_peft(two, [], tmp_path / "out")


def test_probes_of_the_model_s_own_carry_what_it_says(mixture):
    made = mixture()
    probes = make_default_samples(made, "Be brief.")
    assert len(probes) > 5
    assert all(probe.messages[0] == {"role": "system", "content": "Be brief."} for probe in probes)
    with torch.inference_mode():
        model = made.load_adapted_model()
        for probe in probes[:2]:
            logits = model(input_ids=torch.tensor([list(probe.ids)])).logits[0]
            assert int(logits[probe.positions[0]].argmax()) == probe.target_ids[0]
