import pytest

from lora_chat.cli import main

DORA_8BIT = ["--set", "adapter.variant=dora", "--set", "quantization.mode=8bit"]


@pytest.mark.parametrize("command", ["sft", "plan"])
def test_refuses_dora_on_an_8_bit_base_before_training(command, cache_home, tmp_path, capsys):
    assert main([command, "smoke", *DORA_8BIT, "--set", f"output.directory={tmp_path / 'runs'}"]) == 2
    assert "DoRA does not work on a base in 8 bits" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))


def test_refuses_to_open_a_dora_adapter_in_8_bits(make_adapter, random_base, tmp_path, capsys):
    base = random_base("llama")
    make_adapter(base, tmp_path / "adapter", variant="dora")
    thing = [str(tmp_path / "adapter"), "--base", str(base), "--accept-template", "hi", "--max-new-tokens", "2"]
    assert main(["generate", *thing, "--quantization", "8bit"]) == 2
    assert "Fix: --quantization 4bit" in capsys.readouterr().err
    assert main(["generate", *thing, "--quantization", "4bit"]) == 0
