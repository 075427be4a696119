"""GPU recipes name bases of the published size and state the bytes of their weights."""

import json
import re
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.config.recipe import BaseSection
from lora_chat.models.base_config import find_base_config, read_known_configs
from lora_chat.models.shape import read_shape
from lora_chat.system.hub_client import HubFailureError

pytestmark = pytest.mark.slow

RECIPES = sorted(Path("recipes").glob("gpu-*.yaml"))
# Billions of parameters, as the model cards say.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-360M-Instruct": 0.362,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.71,
    "Qwen/Qwen2.5-0.5B-Instruct": 0.494,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.54,
    "Qwen/Qwen2.5-3B-Instruct": 3.09,
    "Qwen/Qwen2.5-7B-Instruct": 7.61,
    "Qwen/Qwen2.5-14B-Instruct": 14.77,
    "Qwen/Qwen3-0.6B": 0.596,
    "Qwen/Qwen3-1.7B": 1.72,
    "Qwen/Qwen3-4B": 4.02,
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen3-14B": 14.77,
    "meta-llama/Llama-3.2-1B-Instruct": 1.236,
    "meta-llama/Llama-3.2-3B-Instruct": 3.21,
    "meta-llama/Llama-3.1-8B-Instruct": 8.03,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.25,
    "microsoft/Phi-3.5-mini-instruct": 3.82,
    "google/gemma-2-2b-it": 2.61,
    "google/gemma-2-9b-it": 9.24,
}


def is_unreachable(base):
    raise HubFailureError("unreachable", "ConnectionError")


@pytest.mark.parametrize("name", sorted(read_known_configs()))
def test_known_bases_have_the_published_number_of_weights(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("lora_chat.models.base_config._find_config_on_hub", is_unreachable)
    found = find_base_config(BaseSection(name=name))
    assert read_shape(found.config, name).weights / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_states_its_weight_bytes_and_leaves_half_of_the_gpu(path, cache_home, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stated = float(re.search(r"[Ww]eights\s+take\s+about ([\d.]+) GB", path.read_text()).group(1))
    gigabytes = int(re.match(r"gpu-(\d+)gb", path.stem).group(1))
    assert main(["plan", str(path), "--memory", f"{gigabytes}GB", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    weights = estimate["phases"][0]["weights"]
    assert weights / 1e9 == pytest.approx(stated, abs=0.1)
    assert weights < gigabytes * 1e9 / 2
    assert estimate["verdict"] == "fits"
