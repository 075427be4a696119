"""The allocator's segments grow where the driver can do it, unless the user configured the allocator."""

import pytest

from lora_chat.system import operating_system
from lora_chat.system.operating_system import is_wsl, let_segments_grow


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Return a function that pretends to be on a system with this content of /proc/version."""

    def pretend(platform, version="Linux version 6.8.0-generic"):
        (tmp_path / "version").write_text(version)
        monkeypatch.setattr("sys.platform", platform)
        monkeypatch.setattr(operating_system, "_PROC_VERSION", tmp_path / "version")

    return pretend


def test_segments_grow_on_linux(system):
    system("linux")
    environment = {}
    let_segments_grow(environment)
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
@pytest.mark.parametrize("value", ["max_split_size_mb:64", ""])
def test_a_configuration_of_the_user_is_kept(system, name, value):
    system("linux")
    environment = {name: value}
    let_segments_grow(environment)
    assert environment == {name: value}


@pytest.mark.parametrize(
    ("platform", "version"),
    [("linux", "Linux version 5.15.90.1-microsoft-standard-WSL2"), ("win32", ""), ("darwin", "")],
)
def test_segments_stay_fixed_elsewhere(system, platform, version):
    system(platform, version)
    environment = {}
    let_segments_grow(environment)
    assert environment == {}
    assert is_wsl() == (platform == "linux")


def test_a_machine_without_proc_is_not_wsl(system, monkeypatch, tmp_path):
    system("linux")
    monkeypatch.setattr(operating_system, "_PROC_VERSION", tmp_path / "missing")
    assert not is_wsl()
