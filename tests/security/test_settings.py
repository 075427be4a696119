"""No environment variable makes the program trust files in the working directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.system import environment
from lora_chat.system.cache_dir import cache_dir, config_dir
from lora_chat.system.environment import check_path_variables
from lora_chat.system.user_key import sign

FOLDERS = environment._PATH_VARIABLES


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("value", [".", "cache", "./cache", "../cache", "~nobody-of-that-name", "\x1b[2J"])
def test_a_setting_that_depends_on_the_working_directory_is_refused_by_name(name, value):
    if name.startswith("HF_") and value.startswith("~"):
        value = "hub"
    with pytest.raises(UsageError, match=f"{name} is .*depends on the working directory") as caught:
        check_path_variables({name: value, "OTHER": "."})
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_empty_setting_counts_as_none(name):
    given = {name: "", "OTHER": ""}
    check_path_variables(given)
    assert given == {"OTHER": ""}


def test_full_paths_and_the_home_folder_of_the_hub_s_settings_stay():
    given = {"XDG_CACHE_HOME": "/x", "HF_HOME": "~/hub", "HF_HUB_CACHE": "/y", "TMPDIR": "/tmp"}
    check_path_variables(given)
    assert set(given) == {"XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TMPDIR"}


COMMANDS = [["recipe", "RECIPE"], ["sft", "RECIPE"], ["plan", "RECIPE"], ["data", "RECIPE"], ["chat", "x"]]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["XDG_CONFIG_HOME", "HF_HOME", "TMPDIR"])
def test_every_command_refuses_the_setting_before_reading(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.setattr("lora_chat.config.load.read_recipe", lambda *_: pytest.fail("it went on"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, ".")
    assert main(["recipes/smoke.yaml" if word == "RECIPE" else word for word in command]) == UsageError.exit_code
    assert f"{name} is ." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="XDG is for Linux")
@pytest.mark.parametrize(("name", "folder"), [("XDG_CACHE_HOME", cache_dir), ("XDG_CONFIG_HOME", config_dir)])
def test_planted_key_or_cache_in_the_working_directory_is_ignored(tmp_path, monkeypatch, name, folder):
    (tmp_path / "lora-chat").mkdir(mode=0o700)
    (tmp_path / "lora-chat" / "user.key").write_bytes(b"k" * 32)
    (tmp_path / "lora-chat" / "user.key").chmod(0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, ".")
    with pytest.raises(IntegrityError, match="depends on the working directory"):
        folder()
    if folder is config_dir:
        with pytest.raises(IntegrityError, match="depends on the working directory"):
            sign("run", b"x")


def test_compiled_modules_are_not_taken_from_a_relative_folder(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import lora_chat.system.import_path; print(sys.pycache_prefix)"
    command = [sys.executable, "-B", "-c", code, str(Path(environment.__file__).parents[2])]
    for prefix, expected in ((".", "None"), (str(tmp_path), str(tmp_path))):
        given = {**os.environ, "PYTHONPYCACHEPREFIX": prefix}
        done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
