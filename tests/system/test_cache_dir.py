import os
import stat

import pytest

from lora_chat.errors import IntegrityError
from lora_chat.system.cache_dir import cache_dir, config_dir


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize("folder", [cache_dir, config_dir])
def test_creates_folders_that_only_their_user_can_enter(folder):
    made = folder("dialogues", "inner")
    for place in (made, made.parent, made.parent.parent):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_refuses_a_cache_that_others_can_write_to(mode):
    cache_dir("bases").parent.chmod(mode)
    with pytest.raises(IntegrityError, match="chmod go-w"):
        cache_dir("bases")


def test_refuses_an_inner_folder_that_others_can_write_to():
    cache_dir("bases").chmod(0o777)
    cache_dir("dialogues")
    with pytest.raises(IntegrityError, match="bases"):
        cache_dir("bases")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_refuses_a_cache_of_another_user():
    os.chown(cache_dir("bases"), 12345, -1)
    with pytest.raises(IntegrityError, match="another user"):
        cache_dir("bases")


def test_checks_the_target_of_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o777)
    (tmp_path / "elsewhere").chmod(0o777)
    cache_dir().rmdir()
    (tmp_path / "cache" / "lora-chat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="Other users"):
        cache_dir()
