"""Trainer uses one card even if PyTorch sees several."""

import torch

from lora_chat.training.single_card import SingleCardConfig


def test_several_visible_cards_count_as_one(monkeypatch, tmp_path):
    """Start CUDA before the choice, so that all cards stay visible, as in a program that imports lora_chat."""
    config = SingleCardConfig(output_dir=str(tmp_path), bf16=False, report_to=[])
    monkeypatch.setitem(vars(config), "_n_gpu", 2)
    assert super(SingleCardConfig, config).n_gpu == 2
    assert config.n_gpu == 1
    assert config.train_batch_size == config.per_device_train_batch_size
    assert config.parallel_mode.name == "NOT_PARALLEL"


def test_a_cpu_has_no_card(tmp_path):
    config = SingleCardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    assert (config.n_gpu, config.device) == (0, torch.device("cpu"))
