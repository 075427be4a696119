"""A base whose files change while it is read is refused, so the checked files are the loaded ones."""

import os
import shutil

import pytest

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.errors import IntegrityError
from lora_chat.models import base_model, identity
from lora_chat.models.base_model import LocalBase, find_base, load_base_model, load_tokenizer
from lora_chat.models.bundled import find_bundled_base
from lora_chat.system.hardware import Hardware


@pytest.fixture
def folder(cache_home, tmp_path):
    return shutil.copytree(find_bundled_base("tiny-random"), tmp_path / "base")


def rewrite(path):
    """Write other content in place, with the old size and modification time."""
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(path):
    """Replace the file by a copy for a moment, then restore it."""
    path.rename(path.with_suffix(".true"))
    shutil.copy(path.with_suffix(".true"), path)
    path.unlink()
    path.with_suffix(".true").rename(path)


def replace(path):
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


CHANGES = (rewrite, swap, replace, os.remove, lambda path: path.with_name("adapter_config.json").write_text("{}"))


def _load(base):
    return load_base_model(base, plan_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, False, 2)))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("change", CHANGES, ids=["rewrite", "swap", "replace", "remove", "add"])
def test_refuses_a_file_changed_after_the_base_was_found(change, name, folder):
    base = find_base(BaseSection(name=str(folder)))
    base.check_unchanged()
    change(folder / name)
    with pytest.raises(IntegrityError, match="changed while the base was read"):
        base.check_unchanged()


@pytest.mark.parametrize("step", ["tokenizer", "digest", "weights"])
def test_refuses_a_file_changed_while_it_is_read(step, folder, monkeypatch):
    import transformers

    base = find_base(BaseSection(name=str(folder)))
    tokenizer = load_tokenizer(base)
    identity.compute_identity(base, tokenizer)
    _load(base)

    def swapping_afterwards(function):
        def wrapper(*arguments, **options):
            result = function(*arguments, **options)
            swap(folder / "model.safetensors")
            return result

        return wrapper

    module, name, work = {
        "tokenizer": (transformers.AutoTokenizer, "from_pretrained", lambda: load_tokenizer(base)),
        "digest": (identity, "cached_file_digest", lambda: identity.compute_identity(base, tokenizer)),
        "weights": (transformers.AutoModelForCausalLM, "from_pretrained", lambda: _load(base)),
    }[step]
    monkeypatch.setattr(module, name, swapping_afterwards(getattr(module, name)))
    with pytest.raises(IntegrityError, match="changed while the base was read"):
        work()


def test_watches_shards_in_subfolders_and_ignores_other_files(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.safetensors").write_bytes(b"x")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "sub/a.safetensors"}}')
    base = LocalBase("base", folder, file_stats=base_model.read_file_stats(folder))
    for other in ("run.log", "README.md", "sub/b.safetensors"):
        (folder / other).write_text("x")
    base.check_unchanged()
    swap(folder / "sub" / "a.safetensors")
    with pytest.raises(IntegrityError, match=r"sub/a\.safetensors"):
        base.check_unchanged()
