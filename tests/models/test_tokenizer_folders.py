"""Tokenizers are read from the files that people have, or one sentence refuses them before data is read."""

import importlib.util
import io
import json
import shutil

import pytest

from lora_chat.data.encoding.chat_template import install_template
from lora_chat.errors import DataError, MissingPackageError, UnavailableError
from lora_chat.models.base_model import LocalBase, load_tokenizer
from lora_chat.models.tokenizer_limits import fit_tokenizer
from tests.export.test_merged_folder import edit

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@pytest.fixture
def folder(random_base, tmp_path):
    """Return a base without its weights."""
    base = random_base("llama")
    (tmp_path / "base").mkdir()
    for name in ("config.json", *TOKENIZER_FILES):
        if (base / name).exists():
            shutil.copy(base / name, tmp_path / "base")
    return tmp_path / "base"


def read(folder):
    tokenizer = load_tokenizer(LocalBase("the base", folder))
    install_template(tokenizer)
    return tokenizer


def remove_tokenizer(folder):
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def sentencepiece_model():
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "which",
        "day",
        "comes",
        "after",
        "that",
        "name",
        "fruit",
        "of",
        "snow",
    ]
    lines = (" ".join(words[(n * k) % len(words)] for k in range(9)) for n in range(300))
    options = {"vocab_size": 290, "model_type": "bpe", "byte_fallback": True, "pad_id": -1, "minloglevel": 2}
    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **options, **ids)
    return model.getvalue()


def test_reads_a_sentencepiece_model_as_sentencepiece_does(folder, sentencepiece_model, monkeypatch):
    from sentencepiece import SentencePieceProcessor

    remove_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model)
    edit(folder / "config.json", vocab_size=290)
    with pytest.raises(UnavailableError, match=r"differently from SentencePiece.*tokenizer_class"):
        read(folder)  # Transformers leaves out the space before the first word
    edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", legacy=False)
    text = "the cat sat on that mat"
    expected = SentencePieceProcessor(model_proto=sentencepiece_model).encode(text)
    assert read(folder)(text, add_special_tokens=False)["input_ids"] == expected
    stock = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else stock(name))
    with pytest.raises(MissingPackageError, match="pip install sentencepiece"):
        read(folder)


def test_refuses_folders_without_a_readable_tokenizer(folder):
    remove_tokenizer(folder)
    with pytest.raises(UnavailableError, match="no tokenizer files"):
        read(folder)
    (folder / "tekken.json").write_text("{}")
    with pytest.raises(UnavailableError, match=r"only a tekken\.json.*Fix"):
        read(folder)
    (folder / "tekken.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UnavailableError, match=r"cannot be read: .*Fix: add tokenizer\.json"):
        read(folder)


def test_reads_vocabulary_and_merges(folder):
    backend = json.loads((folder / "tokenizer.json").read_text())
    expected = read(folder)("the cat, 7")["input_ids"]
    remove_tokenizer(folder)
    vocabulary = backend["model"]["vocab"] | {token["content"]: token["id"] for token in backend["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    edit(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>")
    assert read(folder)("the cat, 7")["input_ids"] == expected


def rendered(tokenizer, tools=None):
    chat = [{"role": "user", "content": "q"}]
    return tokenizer.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=True)


def test_uses_the_default_template_wherever_it_is(folder):
    template = (folder / "chat_template.jinja").read_text()
    rendered_alone = rendered(read(folder))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'tools' }}")
    assert template in read(folder).chat_template
    assert rendered(read(folder)) == rendered_alone
    assert rendered(read(folder), tools=[{"name": "f"}]) == "tools"
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "chat_template.jinja").unlink()
    edit(folder / "chat_template.json", chat_template=template)  # of a processor
    assert read(folder).chat_template == template
    (folder / "chat_template.json").unlink()
    named = [{"name": "tool_use", "template": "{{ 'tools' }}"}, {"name": "default", "template": template}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    assert rendered(read(folder)) == rendered_alone
    assert rendered(read(folder), tools=[{"name": "f"}]) == "tools"
    edit(folder / "tokenizer_config.json", chat_template=named[:1])
    with pytest.raises(DataError, match="none is called default"):
        read(folder)


def test_refuses_a_template_that_writes_a_token_without_embedding(folder):
    from lora_chat.data.encoding.chat_template import render_ids

    tokenizer = read(folder)
    tokenizer.add_tokens(["<far>"], special_tokens=True)
    config = type("Config", (), {"get_text_config": lambda self: self, "vocab_size": 259})()
    fit_tokenizer(tokenizer, config, "the base", "text")
    chat = [{"role": "user", "content": "say <far>"}]
    assert max(render_ids(tokenizer, chat, add_generation_prompt=True)) < 259  # written as plain characters
    tokenizer.chat_template = "<far>" + tokenizer.chat_template
    with pytest.raises(DataError, match="writes the token '<far>', for which the base has no embedding"):
        render_ids(tokenizer, chat, add_generation_prompt=True)
