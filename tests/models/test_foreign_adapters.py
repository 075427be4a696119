"""Adapters of other tools compute what plain PEFT computes, or are refused with the reason and the remedy."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import load_adapter
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.models.foreign.fit import fit_foreign_adapter
from lora_chat.system.hardware import Hardware

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(3, 40)[None]
LAYER = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def save(random_base, tmp_path_factory):
    """Return a function that saves an adapter with PEFT, of settings and on an architecture, and returns its folder."""
    bases = {}

    def save(architecture="llama", **settings):
        folder = tmp_path_factory.mktemp("adapter")
        if architecture not in bases:
            bases[architecture] = AutoModelForCausalLM.from_pretrained(random_base(architecture), dtype=torch.float32)
        model = get_peft_model(
            bases[architecture],
            LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM", **settings}),
        )
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
            if parameter.requires_grad and ("modules_to_save" in name or "trainable_tokens" in name):
                parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
            if parameter.requires_grad and name.endswith(".bias"):
                parameter.data = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.data *= 1.1
        model.save_pretrained(folder, save_embedding_layers=False)
        model.unload()
        if settings.get("bias"):
            del bases[architecture]  # its biases were changed
            return folder
        for module in bases[architecture].modules():
            getattr(module, "peft_config", {}).clear()
        return folder

    return save


@pytest.fixture
def fit(random_base):
    """Return a function that opens an adapter's folder on a base."""

    def fit(folder, architecture="llama"):
        return fit_foreign_adapter(read_adapter(folder), find_base(BaseSection(name=str(random_base(architecture)))))

    return fit


@pytest.fixture
def logits(random_base, fit):
    """Return a function that computes the logits of an adapter's folder, as lora_chat opens it."""

    def logits(folder, architecture="llama"):
        stored = fit(folder, architecture)
        precision = plan_precision(QuantizationSection(mode="none", dtype="float32"), Hardware("cpu", "", 0, False, 2))
        base = find_base(BaseSection(name=str(random_base(architecture))))
        with torch.no_grad():
            return load_adapter(load_base_model(base, precision), stored)(IDS).logits

    return logits


def peft_logits(folder, base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        plain = model(IDS).logits
        adapted = PeftModel.from_pretrained(model, folder).eval()(IDS).logits
    assert (adapted - plain).abs().max() > 0.01  # the adapter does something
    return adapted


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "DELETE"}))


def rename(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({change(name): tensor for name, tensor in weights.items()}, folder / "adapter_model.safetensors")


VISION_REGEX = (
    r"(?:.*?(?:vision|visual|vision_model).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|mlp)\.(?:(?:q_proj|k_proj|gate_proj)))"
)
KINDS = {
    "plain": {},
    "dora and rslora": {"use_dora": True, "use_rslora": True},
    "last layer": {"layers_to_transform": [1]},
    "one layer": {"layers_to_transform": 1, "layers_pattern": "layers"},
    "regular expression": {"target_modules": VISION_REGEX},
    "all-linear without some": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "layers.0.mlp.up_proj"]},
    "excluded by expression": {"target_modules": ALL, "exclude_modules": r".*layers\.0.*"},
    "ranks and alphas": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.(up|down)_proj": 6},
        "alpha_pattern": {"model.layers.0.self_attn.v_proj": 3, "^model.*gate_proj": 1.5},
    },
    "ranks of rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 4}},
    "eva": {"init_lora_weights": "eva"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_peft(save, logits, random_base, kind):
    folder = save(**KINDS[kind])
    torch.testing.assert_close(logits(folder), peft_logits(folder, random_base("llama")), rtol=1e-5, atol=1e-5)


def test_transposed_layers_equal_plain_peft(save, logits, random_base):
    folder = save("gpt2", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    expected = peft_logits(folder, random_base("gpt2"))
    torch.testing.assert_close(logits(folder, "gpt2"), expected, rtol=1e-5, atol=1e-5)


def test_settings_that_do_not_matter_are_ignored(save, fit):
    folder = save()
    edit(
        folder,
        auto_mapping={"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
        megatron_config={"a": 1}, megatron_core="os", loftq_config={"loftq_bits": 4}, fan_in_fan_out=True,
        layers_pattern=[], init_lora_weights="gaussian", base_model_name_or_path=None, peft_version="0.3",
    )  # fmt: skip
    assert fit(folder).config["target_modules"] == sorted(ALL)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_a_base_without_biases_do_not_matter(save, logits, random_base, bias):
    folder = save(bias=bias)
    torch.testing.assert_close(logits(folder), peft_logits(folder, random_base("llama")), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_equal_plain_peft(save, logits, random_base, bias):
    folder = save("qwen2", bias=bias)
    expected = peft_logits(folder, random_base("qwen2"))
    torch.testing.assert_close(logits(folder, "qwen2"), expected, rtol=1e-5, atol=1e-5)


def test_refuses_biases_of_layers_without_lora(save, fit):
    with pytest.raises(IntegrityError, match=r"biases of 4 layers without LoRA.*\n.*merge_and_unload"):
        fit(save("qwen2", bias="all", target_modules=["q_proj"]), "qwen2")


def test_config_of_2023_opens(save, fit):
    folder = save(target_modules=["q_proj", "v_proj"])
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
                    "bias": "none", "enable_lora": None, "merge_weights": False, "lora_dropout": 0.05})
    )  # fmt: skip
    assert fit(folder).config["lora_dropout"] == 0.05


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("model.model.layers", "model.model.language_model.layers"),
        lambda name: name.replace("model.model.layers", "model.language_model.model.layers"),
    ],
    ids=["name of the adapter inside", "without a prefix", "new vision layout", "old vision layout"],
)
def test_other_names_of_the_same_weights(save, logits, random_base, change):
    folder = save()
    expected = peft_logits(folder, random_base("llama"))
    rename(folder, change)
    torch.testing.assert_close(logits(folder), expected, rtol=1e-5, atol=1e-5)


def to_mlx(folder, **settings):
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    parts = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "m"}
    renamed = {}
    for name, tensor in weights.items():
        layer, part = re.fullmatch(r"base_model\.model\.(.+?)\.(lora_.+)", name).groups()
        renamed[f"{layer}.{parts[part]}"] = tensor.T.contiguous() if tensor.dim() == 2 else tensor
    save_file(renamed, folder / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "model": "x/y", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 2.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize("kind", ["lora", "dora", "last"])
def test_mlx_equals_plain_peft(save, logits, random_base, kind):
    folder = save(use_dora=kind == "dora", layers_to_transform=[1] if kind == "last" else None)
    expected = peft_logits(folder, random_base("llama"))
    to_mlx(folder, fine_tune_type="dora" if kind == "dora" else "lora", num_layers=1 if kind == "last" else -1)
    torch.testing.assert_close(logits(folder), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"fine_tune_type": "full"}, r"trained the weights of the model themselves.*\n.*mlx_lm.fuse"),
        ({"num_layers": 2}, "7 layers are missing"),
        ({"lora_parameters": {"rank": 4}}, "rank or scale"),
        ({"lora_parameters": {"rank": 5, "scale": 2.0}}, "rank 4"),
        ({"fine_tune_type": "DELETE", "lora_parameters": {"rank": 4, "alpha": 16, "scale": 10.0}}, "ambiguous"),
        ({"lora_parameters": {"rank": 4, "scale": 1e9}}, "range"),
    ],
)
def test_refuses_mlx_adapters(save, logits, settings, match):
    folder = save(layers_to_transform=[1])
    to_mlx(folder)
    edit(folder, num_layers=1)
    edit(folder, **settings)
    with pytest.raises(IntegrityError, match=match):
        logits(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *(
            ({"init_lora_weights": init}, f"corrections to a base.*= {init}.*\n.*path_initial_model")
            for init in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga")
        ),
        *(({"peft_type": kind}, f"kind {kind}.*\n.*merge_and_unload") for kind in ("IA3", "LOHA", "VERA", "ADALORA")),
        ({"peft_type": "PREFIX_TUNING"}, "no weights to merge"),
        ({"peft_type": "DELETE"}, "not an adapter of PEFT or mlx-lm"),
        ({"task_type": "SEQ_CLS"}, "trained for SEQ_CLS"),
        ({"use_qalora": True}, r"QA-LoRA.*\(use_qalora\).*\n.*merge_and_unload"),
        ({"lora_bias": True}, "biases"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeated layers"),
        ({"alora_invocation_tokens": [1, 2]}, "only after certain tokens"),
        ({"use_newest_idea": {"x": "y"}}, "use_newest_idea = .* is unknown here"),
        ({"target_modules": ["q_proj"]}, "does not name 12 layers that have weights"),
        ({"layers_to_transform": [0]}, "does not name 7 layers"),
        ({"target_modules": [*ALL, "lm_head"], "exclude_modules": ["layers.1.mlp.up_proj"]}, "does not name 1 layers"),
        ({"r": 8}, "has rank 4, but its config says 8"),
        ({"r": "8"}, "has rank 4, but its config says 8"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank 4, but its config says 2"),
        ({"rank_pattern": {"q_proj": "2"}}, "not an object of numbers"),
        ({"alpha_pattern": [1]}, "not an object of numbers"),
        ({"alpha_pattern": {"(": 1}}, "regular expressions"),
        ({"target_modules": "("}, "regular expressions"),
        ({"target_modules": 7}, "target_modules = 7 is not valid"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform = .* is not valid"),
    ],
)
def test_refuses_settings_with_reason_and_remedy(save, fit, changes, match):
    folder = save()
    edit(folder, **changes)
    with pytest.raises(IntegrityError, match=match) as caught:
        fit(folder)
    assert str(caught.value).count("'") % 2 == 0


def test_regular_expression_without_end_is_stopped(save, fit, monkeypatch):
    monkeypatch.setattr("lora_chat.models.foreign.fit._MATCH_TIMEOUT_SECONDS", 1.0)
    folder = save()
    edit(folder, target_modules="(([a-z._0-9]+)+)+!")
    with pytest.raises(IntegrityError, match="take longer than"):
        fit(folder)


@pytest.mark.parametrize(
    ("target", "match"), [("embed_tokens", "it contains LoRA on the embedding"), ("lm_head", "LoRA on the LM head")]
)
def test_refuses_lora_on_embedding_and_head(save, fit, target, match):
    folder = save(target_modules=["q_proj", target])
    add(folder, f"base_model.model.{target}.base_layer.weight", 259, 64)  # as PEFT saves it by default
    with pytest.raises(IntegrityError, match=match):
        fit(folder)


def test_parts_that_are_trained_beside_lora_equal_plain_peft(save, logits, random_base):
    for settings in ({"modules_to_save": ["lm_head", "embed_tokens"]}, {"trainable_token_indices": [1, 5]}):
        folder = save(**settings)
        torch.testing.assert_close(logits(folder), peft_logits(folder, random_base("llama")), rtol=1e-5, atol=1e-5)


def add(folder, name, *shape):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({**weights, name: torch.ones(shape)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("base_model.model.model.embed_tokens.weight", (300, 64), "a whole embedding, as after a change"),
        ("base_model.model.lm_head.weight", (300, 64), "a whole LM head"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (4, 259), "LoRA on the embedding"),
        (f"{LAYER}.lora_B.bias", (64,), "biases of LoRA matrices"),
        (f"{LAYER}.base_layer.bias", (64,), "trained biases"),
        ("base_model.model.model.norm.weight", (64,), "weights that are not LoRA"),
        (f"{LAYER}.lora_A.other.weight", (4, 64), "two tensors for model.layers.1.self_attn.q_proj.lora_A"),
        ("base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight", (4, 64), "two matrices of one rank"),
    ],
)
def test_refuses_other_tensors(save, fit, name, shape, match):
    folder = save()
    add(folder, name, *shape)
    with pytest.raises(IntegrityError, match=match):
        fit(folder)


def test_refuses_incomplete_and_foreign_weights(save, fit, random_base):
    folder = save()
    weights = load_file(folder / "adapter_model.safetensors")
    part = {name: tensor for name, tensor in weights.items() if "layers.1" not in name}
    save_file(part, folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match=r"weights of 7 layers are missing.*\n.*--base"):
        fit(folder)
    save_file({**part, f"{LAYER}.lora_A.weight": torch.ones(4, 64)}, folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match="lora_B is missing"):
        fit(folder)
    with pytest.raises(IntegrityError, match=r"are not linear layers of the base.*\n.*--base"):
        fit(save(), "gpt2")
    wide = {name: tensor.repeat(1, 2) if "lora_A" in name else tensor for name, tensor in weights.items()}
    save_file(wide, folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match=r"has 256 inputs and 64 outputs in the adapter, and 128"):
        fit(folder)


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        ("lm_head", "LoRA on the LM head"),
        ("model.visual.blocks.0.qkv", "tower for pictures"),
        ("model.layers.0.mlp.experts.3.up_proj", "single experts"),
        ("model.layers.9.self_attn.q_proj", "are not linear layers"),
    ],
)
def test_refuses_layers_that_cannot_carry_lora(save, fit, layer, match):
    folder = save()
    add(folder, f"base_model.model.{layer}.lora_A.weight", 4, 64)
    add(folder, f"base_model.model.{layer}.lora_B.weight", 259, 4)
    with pytest.raises(IntegrityError, match=match):
        fit(folder)


def test_refuses_pickles_pointers_and_nothing(save):
    folder = save()
    weights = folder / "adapter_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(IntegrityError, match="git lfs pull"):
        read_adapter(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(IntegrityError, match=r"only as a pickle.*\n.*save_pretrained"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(IntegrityError, match="no weights"):
        read_adapter(folder)
