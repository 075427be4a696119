"""An adapter for mlx-lm computes the same products by mlx-lm's formulas, and is read back as the same adapter."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_chat.errors import UsageError
from lora_chat.export.exporter import ExportJob, export_and_check
from lora_chat.export.formats import EXPORT_FORMATS
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.samples import make_parity_sample
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.open_adapter import resolve_adapter

SAMPLES = [make_parity_sample([5, 9, 20, 40], [-100, -100, 20, 40])]


@pytest.fixture
def blend(random_base, make_adapter, tmp_path):
    def make(architecture="llama", change=None, **options):
        folder = tmp_path / "adapter"
        _, precision = make_adapter(random_base(architecture, 8.0), folder, **options)
        if change:
            path = folder / "adapter_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        adapter = resolve_adapter(read_adapter(folder))
        return AdapterBlend(((adapter, 1.0),), precision, read_stop_ids(adapter.base, adapter.tokenizer))

    return make


def export(blend, folder):
    folder.mkdir()
    return export_and_check(EXPORT_FORMATS["mlx-adapter"].load_exporter(), ExportJob(blend, SAMPLES, folder))


def peft_update(blend, layer, alpha):
    weights = blend.adapters[0][0].stored.read_weights()
    a, b = (weights[f"base_model.model.{layer}.lora_{m}.weight"].float().numpy() for m in "AB")
    return b @ a * alpha / len(a)


def mlx_update(folder, layer):
    """Return what `LoRALinear.fuse` of mlx-lm adds to a weight."""
    weights = load_file(folder / "adapters.safetensors")
    scale = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    return (scale * weights[f"{layer}.lora_b"].T) @ weights[f"{layer}.lora_a"].T


QUERY = "model.layers.1.self_attn.q_proj"


def test_writes_mlx_names_transposed_with_the_scale(blend, tmp_path):
    adapters = blend()
    (report,) = export(adapters, tmp_path / "out")
    assert report.mean_kl < report.control_kl / 1000
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["fine_tune_type"], config["num_layers"]) == ("lora", 2)
    assert config["lora_parameters"]["rank"] == 4
    assert config["lora_parameters"]["keys"][0] == "mlp.down_proj"
    alpha = adapters.adapters[0][0].stored.config["lora_alpha"]
    np.testing.assert_allclose(
        mlx_update(tmp_path / "out", QUERY), peft_update(adapters, QUERY, alpha), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_writes_variants(blend, tmp_path, variant):
    (report,) = export(blend(variant=variant), tmp_path / "out")
    assert report.mean_kl < report.control_kl / 1000
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == ("dora" if variant == "dora" else "lora")


def test_folds_alphas_of_single_layers_into_b(blend, tmp_path):
    adapters = blend(change={"alpha_pattern": {QUERY: 40}})
    (report,) = export(adapters, tmp_path / "out")
    assert report.mean_kl < report.control_kl / 1000
    np.testing.assert_allclose(
        mlx_update(tmp_path / "out", QUERY), peft_update(adapters, QUERY, 40), rtol=1e-5, atol=1e-6
    )


def test_refuses_other_models_and_several_adapters(blend, tmp_path):
    with pytest.raises(UsageError, match=r"mlx_lm\.convert"):
        export(blend("gpt2"), tmp_path / "out")
    adapters = blend()
    with pytest.raises(UsageError, match="one adapter"):
        export(AdapterBlend(adapters.adapters * 2, adapters.precision, adapters.stop_ids), tmp_path / "two")
