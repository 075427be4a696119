"""An untrusted base name opens nothing, and an untrusted template is used only with consent."""

import dataclasses
import hashlib

import pytest

from lora_chat.config.recipe import BaseSection
from lora_chat.data.encoding.bundled_templates import CHATML_TEMPLATE
from lora_chat.errors import IntegrityError, UnavailableError, UsageError
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import find_base, load_tokenizer
from lora_chat.models.identity import compute_identity
from lora_chat.pipeline.open_adapter import TrustOptions, find_adapter_base, open_adapter, resolve_adapter

OWN = "{% for message in messages %}{{ message.content + eos_token }}\n{% endfor %}\x1b[31m"


@pytest.fixture
def stored(random_base, make_adapter, tmp_path):
    make_adapter(random_base("llama"), tmp_path / "adapter")
    return read_adapter(tmp_path / "adapter")


def with_template(stored, text, digested=None):
    digest = hashlib.sha256((digested or text).encode()).hexdigest()
    identity = stored.identity.model_copy(update={"chat_template": digest})
    return dataclasses.replace(stored, template=text, identity=identity)


def test_template_of_the_base_needs_no_consent(stored):
    found = resolve_adapter(stored, untrusted_name=False)
    assert str(found.tokenizer.chat_template) == stored.template


def test_untrusted_template_is_shown_and_needs_consent(stored):
    own = with_template(stored, OWN)
    with pytest.raises(IntegrityError) as caught:
        resolve_adapter(own)
    message = str(caught.value)
    assert "+{% for message in messages %}{{ message.content + eos_token }}" in message
    assert "--accept-template" in message
    assert "\x1b" not in message
    found = resolve_adapter(own, TrustOptions(accept_template=True))
    assert found.tokenizer.chat_template == OWN


def test_template_must_match_its_digest(stored):
    with pytest.raises(IntegrityError, match="chat template"):
        resolve_adapter(with_template(stored, OWN, digested="another"), TrustOptions(accept_template=True))


def test_bundled_templates_need_no_consent(stored, random_base, make_adapter, tmp_path):
    _, _ = make_adapter(random_base("gpt2"), tmp_path / "plain")  # a base without a template
    assert "### " in resolve_adapter(read_adapter(tmp_path / "plain")).tokenizer.chat_template
    base = find_base(BaseSection(name=stored.base[0]))
    if {"<|im_start|>", "<|im_end|>"} <= load_tokenizer(base).get_vocab().keys():
        found = resolve_adapter(with_template(stored, CHATML_TEMPLATE))
        assert found.tokenizer.chat_template == CHATML_TEMPLATE


def test_other_base_is_rejected_unless_forced(stored, random_base, messages):
    other = str(random_base("llama", 8.0))
    with pytest.raises(IntegrityError) as caught:
        resolve_adapter(stored, TrustOptions(base=other))
    found = compute_identity(find_base(BaseSection(name=other)), load_tokenizer(find_base(BaseSection(name=other))))
    assert stored.identity.weights[:16] in str(caught.value)
    assert found.weights[:16] in str(caught.value)
    forced = resolve_adapter(stored, TrustOptions(base=other, force_base=True))
    assert str(forced.base.folder) == other
    assert "may be worse" in messages[0] and found.weights[:16] in messages[0]


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "norm", "input_layernorm"])
def test_rejects_adapter_on_head_or_embedding(stored, target):
    bad = dataclasses.replace(stored, config={**stored.config, "target_modules": ["q_proj", target]})
    found = resolve_adapter(bad)
    with pytest.raises(IntegrityError, match=f"{target} is not one of its linear layers"):
        found.load(open_precision())


def open_precision():
    from lora_chat.config.plan import plan_precision
    from lora_chat.config.recipe import QuantizationSection
    from lora_chat.system.hardware import Hardware

    return plan_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, False, 2))


def test_signer_is_allowed_only_for_parcels(tmp_path):
    with pytest.raises(UsageError, match="belongs to parcels"):
        open_adapter(str(tmp_path), TrustOptions(signer=tmp_path / "key"))


def named(stored, name, revision=None):
    return dataclasses.replace(stored, config={**stored.config, "base_model_name_or_path": name, "revision": revision})


NAMES = [
    "stranger/base", "~", "~root", "/", "/etc", ".", "..", "./x", "../../x", "relative", "a/b/c", "\\\\host\\share",
    "//host/share", "C:\\base", "file:///etc", "https://example.org/x", "x\x1b[2J/y", "a/..", "a" * 500,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("revision", [None, "../../../x"])
def test_untrusted_base_name_is_neither_opened_nor_downloaded(stored, name, revision, monkeypatch):
    def touched(*args, **kwargs):
        raise AssertionError("opened")

    monkeypatch.setattr("lora_chat.pipeline.open_adapter.find_base", touched)
    monkeypatch.setattr("lora_chat.models.hub.find_commit", touched)
    if name != "stranger/base":
        monkeypatch.setattr("lora_chat.pipeline.open_adapter.is_base_local", touched)
    with pytest.raises(UnavailableError, match="--base FOLDER") as caught:
        find_adapter_base(named(stored, name, revision), TrustOptions(), untrusted_name=True)
    assert "\x1b" not in str(caught.value)


def test_adapter_folder_is_untrusted_unless_inside_an_own_run(stored, tmp_path, monkeypatch):
    asked = []

    def note(stored, base, *args, **kwargs):
        asked.append(base)
        raise StopIteration

    monkeypatch.setattr("lora_chat.pipeline.open_adapter.bind_adapter", note)
    with pytest.raises(UnavailableError, match="--base FOLDER"):
        open_adapter(str(tmp_path / "adapter"))
    assert asked == []
    with pytest.raises(StopIteration):
        open_adapter(str(tmp_path / "adapter"), TrustOptions(base=stored.base[0]))
    assert [str(base.folder) for base in asked] == [stored.base[0]]


def test_folder_named_like_a_hub_base_is_not_opened_for_an_untrusted_adapter(stored, tmp_path, monkeypatch):
    (tmp_path / "stranger" / "base").mkdir(parents=True)
    (tmp_path / "stranger" / "base" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnavailableError, match="--base FOLDER"):
        find_adapter_base(named(stored, "stranger/base"), TrustOptions(), untrusted_name=True)
