"""A base whose weights are damaged is refused before they are loaded."""

import shutil
from pathlib import Path

import pytest

from lora_chat.errors import IntegrityError
from lora_chat.models.base_model import LocalBase, load_tokenizer
from lora_chat.models.bundled import find_bundled_base
from lora_chat.models.identity import compute_identity
from lora_chat.system.hashing import digest_file


@pytest.fixture
def base(cache_home, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(find_bundled_base("tiny-random"), folder)
    return LocalBase("base", folder)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def refusal(base):
    with pytest.raises(IntegrityError) as caught:
        compute_identity(base, load_tokenizer(base))
    assert str(base.folder) in str(caught.value)
    return str(caught.value)


def test_refuses_a_written_base_with_one_flipped_bit(base):
    compute_identity(base, load_tokenizer(base))
    flip(base.folder / "model.safetensors", -100)
    assert "which writes it" in refusal(base)


@pytest.mark.parametrize("damage", ["cut", "empty", "header"])
def test_refuses_a_truncated_or_empty_file_or_a_damaged_header(base, damage):
    path = base.folder / "model.safetensors"
    (base.folder / "sha256.json").unlink()  # as in a folder that lora_chat did not write
    if damage == "header":
        flip(path, 3)
    else:
        path.write_bytes(path.read_bytes()[: 5000 if damage == "cut" else 0])
    assert "copy or download it again" in refusal(base)


def test_refuses_a_cached_hub_file_whose_digest_is_not_its_name(base, tmp_path):
    (base.folder / "sha256.json").unlink()
    repository = tmp_path / "models--friend--tiny"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    base = LocalBase("base", base.folder.rename(repository / "snapshots" / ("5" * 40)))
    path = base.folder / "model.safetensors"
    blob = repository / "blobs" / digest_file(path)
    path.rename(blob)
    path.symlink_to(Path("../../blobs") / blob.name)
    compute_identity(base, load_tokenizer(base))
    flip(blob, -100)
    assert f"delete {blob}" in refusal(base)
