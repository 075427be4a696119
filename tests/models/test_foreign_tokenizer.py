"""A tokenizer beside another tool's adapter is compared with the base's before it is used."""

import json
import shutil
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from lora_chat.config.recipe import BaseSection
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import find_base, load_tokenizer
from lora_chat.pipeline.open_adapter import TrustOptions, open_adapter
from lora_chat.pipeline.parent_settings import check_parent_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def adapter(random_base, make_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "adapter"
    make_adapter(random_base("llama"), folder)
    (folder / "lora_chat.json").unlink()
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def folder(adapter, random_base, tmp_path):
    """Return an adapter's folder with the base's tokenizer, as most tools leave it."""
    shutil.copytree(adapter, tmp_path / "adapter")
    AutoTokenizer.from_pretrained(random_base("llama")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def open_on_base(random_base):
    def open_on_base(folder, **trust):
        return open_adapter(str(folder), TrustOptions(base=str(random_base("llama")), **trust)).adapter.tokenizer

    return open_on_base


def edit(folder, change):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def swap(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def drop(content):
    content["added_tokens"] = content["added_tokens"][:-1]
    vocabulary = content["model"]["vocab"]
    vocabulary.pop(max(vocabulary, key=vocabulary.get))


def lower(content):
    content["normalizer"] = {"type": "Lowercase"}


def test_same_tokenizer_and_added_padding_open(folder, open_on_base):
    open_on_base(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    open_on_base(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.padding_side, tokenizer.model_max_length = "left", 77
    tokenizer.save_pretrained(folder)
    assert "[PAD]" not in open_on_base(folder).get_vocab()


def test_refuses_added_tokens_unless_forced(folder, open_on_base, messages):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<order>", "</order>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(IntegrityError, match=r"2 tokens more than the base \(</order>, <order>\)") as caught:
        open_on_base(folder)
    assert "--base" in str(caught.value)
    open_on_base(folder, force_base=True)
    assert any("another tokenizer" in text for text in messages)


@pytest.mark.parametrize(
    ("change", "match"), [(swap, "2 tokens have other ids"), (drop, "lacks"), (lower, "a sample text with other ids")]
)
def test_refuses_changed_tokenizer(folder, open_on_base, change, match):
    edit(folder, change)
    with pytest.raises(IntegrityError, match=match):
        open_on_base(folder)


def test_refuses_damaged_tokenizer(folder, open_on_base):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"tokenizer beside the adapter.*cannot be read") as caught:
        open_on_base(folder)
    assert str(folder) in str(caught.value)


def test_template_writes_the_special_tokens_of_training(folder, open_on_base):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    other = next(token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token)
    tokenizer.eos_token = other
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    assert open_on_base(folder, accept_template=True).eos_token == other
    tokenizer.chat_template = TEMPLATE.replace("bos_token", "''").replace("eos_token", "'.'")
    tokenizer.save_pretrained(folder)
    assert open_on_base(folder, accept_template=True).eos_token != other


def test_training_on_refuses_another_tokenizer(folder, random_base):
    base = find_base(BaseSection(name=str(random_base("llama"))))

    def check():
        check_parent_tokenizer(SimpleNamespace(stored=read_adapter(folder), name="it"), base, load_tokenizer(base))

    check()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    other = next(token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token)
    tokenizer.eos_token, tokenizer.chat_template = other, TEMPLATE
    tokenizer.save_pretrained(folder)
    with pytest.raises(IntegrityError, match=r"other special tokens.*\n.*lora-chat merge"):
        check()
    tokenizer.add_tokens(["<order>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(IntegrityError, match=r"1 tokens more.*\n.*lora-chat merge"):
        check()
