"""Identities distinguish tokenizers by their attributes, and without a tokenizer.json also by their files."""

import io
import json
import shutil

import pytest

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.models.base_model import LocalBase, load_tokenizer
from lora_chat.models.base_settings import TOKENIZER_ATTRIBUTES
from lora_chat.models.bundled import find_bundled_base
from lora_chat.models.identity import compute_identity, list_identity_differences

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "th", "the"]
TEXT = "the cat sat on that mat "


def _pairs(end):
    words = ["<unk>", "</s>", *LETTERS, *(f"{letter}{end}" for letter in LETTERS if end)]
    return {word: number for number, word in enumerate(words)}, f"#version: 0.2\nt h\nth e{end}\n"


def _write_pairs(folder, kind, end):
    vocabulary, merges = _pairs(end)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(merges)
    _settings(folder, tokenizer_class=kind, unk_token="<unk>")


def _write_sentences(folder, kind):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT * 20, "a quick brown fox jumps over lazy dogs"] * 20), model_writer=model,
        vocab_size=60, model_type="unigram", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    for name in ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model"):
        (folder / name).write_bytes(model.getvalue())
    _settings(folder, tokenizer_class=kind, unk_token="<unk>")


def _settings(folder, **fields):
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", **fields}))


MAKES = {
    "vocab.json and merges.txt": lambda folder: _write_pairs(folder, "GPT2Tokenizer", ""),
    "python alone": lambda folder: _write_pairs(folder, "CTRLTokenizer", "</w>"),
    "sentencepiece": lambda folder: _write_sentences(folder, "GPTSw3Tokenizer"),
    "converted sentencepiece": lambda folder: _write_sentences(folder, "T5Tokenizer"),
}
FILES = (
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)


@pytest.fixture
def folder(cache_home, tmp_path):
    folder = shutil.copytree(find_bundled_base("tiny-random"), tmp_path / "base")
    (folder / "tokenizer.json").unlink()
    return folder


def identity_of(folder):
    base = LocalBase("base", folder)
    return compute_identity(base, load_tokenizer(base))


def ids_of(folder):
    return load_tokenizer(LocalBase("base", folder))(TEXT)["input_ids"]


def other_bytes(path):
    if path.suffix == ".json":
        found = json.loads(path.read_text())
        first = next(iter(found))
        return json.dumps({**{key: value for key, value in found.items() if key != first}, first + "x": found[first]})
    if path.suffix == ".txt":
        return path.read_text() + "c a\n"
    return path.read_bytes().replace(b"\n\x01t", b"\n\x01T")  # the piece "t"


@pytest.mark.parametrize("make", MAKES)
def test_refuses_a_changed_file_of_a_slow_tokenizer_unless_harmless(make, folder, tmp_path):
    MAKES[make](folder)
    trained, ids = identity_of(folder), ids_of(folder)
    assert len(set(ids)) > 3
    assert list_identity_differences(trained, identity_of(folder)) == []
    refused = 0
    for number, name in enumerate(name for name in FILES if (folder / name).is_file()):
        changed = shutil.copytree(folder, tmp_path / f"changed-{number}")
        new = other_bytes(changed / name)
        (changed / name).write_bytes(new.encode() if isinstance(new, str) else new)
        try:
            same = not list_identity_differences(trained, identity_of(changed))
        except (UnavailableError, IntegrityError):
            same = False
        assert not same or ids_of(changed) == ids, name
        refused += not same
    assert refused >= 2
    added = shutil.copytree(folder, tmp_path / "added")
    (added / "added_tokens.json").write_text(json.dumps({"cat": 900}))
    assert list_identity_differences(trained, identity_of(added)) or ids_of(added) == ids


@pytest.mark.parametrize(
    "name",
    ["PreTrainedTokenizer", "BertTokenizer", "ByT5Tokenizer", "MistralCommonBackend", "AutoTokenizer", "os", "../x"],
)
def test_refuses_another_tokenizer_class_unless_harmless(name, cache_home, tmp_path):
    source = find_bundled_base("tiny-random")
    folder = shutil.copytree(source, tmp_path / "base")
    found = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(found | {"tokenizer_class": name}))
    try:
        changed = list_identity_differences(identity_of(source), identity_of(folder))
    except (UnavailableError, IntegrityError):
        return
    assert changed or ids_of(folder) == ids_of(source)


@pytest.mark.parametrize("change", [{"model_max_length": "x"}, {"tokenizer_class": "BertTokenizer"}], ids=str)
def test_refuses_a_tokenizer_that_cannot_encode(change, cache_home, tmp_path):
    folder = shutil.copytree(find_bundled_base("tiny-random"), tmp_path / "base")
    found = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(found | change))
    with pytest.raises(UnavailableError, match="tokenizer"):
        load_tokenizer(LocalBase("base", folder))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_never_runs_code_of_a_tokenizer(file, cache_home, tmp_path):
    folder = shutil.copytree(find_bundled_base("tiny-random"), tmp_path / "base")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tokenizer: pass\n")
    found = json.loads((folder / file).read_text())
    for reference in (["evil.Tokenizer", "evil.Tokenizer"], {"AutoTokenizer": ["evil.Tokenizer", None]}):
        (folder / file).write_text(json.dumps(found | {"auto_map": reference, "tokenizer_class": "Tokenizer"}))
        try:
            assert list_identity_differences(identity_of(find_bundled_base("tiny-random")), identity_of(folder))
        except (UnavailableError, IntegrityError) as error:
            assert "Traceback" not in str(error)
    assert not (tmp_path / "ran").exists()


BOUND = {
    "_extra_special_tokens": ["<|im_end|>"],
    "_special_tokens_map": {"eos_token": "<|im_start|>", "pad_token": "<|im_end|>"},
    "_add_bos_token": True,
    "_add_eos_token": True,
    "chat_template": "{{ messages }}",
    **{name: True for name in TOKENIZER_ATTRIBUTES if name not in ("add_bos_token", "add_eos_token")},
    "padding_side": "left",
    "truncation_side": "left",
    "model_input_names": ["input_ids"],
    "model_max_length": 1025,
}
"""Attributes that identities cover, each with another value; the backend is tested elsewhere."""
NO_PART = {
    "_in_target_context_manager": "set while labels of sequence-to-sequence models are encoded; starts as false",
    "_pad_token_type_id": "number of the kind of padding, which causal models do not get",
    "_processor_class": "name that is written into files",
    "_should_update_post_processor": "used while loading; the post-processor is part of the backend",
    "add_prefix_space": "used while loading; the pre-tokenizer is part of the backend",
    "backend": "name that is written into files",
    "chat_control_tokens": "used by apply_chat_template, which is not used; its field in the file is compared",
    "deprecation_warnings": "warnings that were printed",
    "files_loaded": "names that are written into files",
    "init_inputs": "arguments that are written into files",
    "init_kwargs": "arguments that are written into files",
    "lora_chat_num_embeddings": "limit above which ids are refused; the config is compared",
    "name_or_path": "the folder",
    "response_template": "used by parse_response, which is not used; its field in the file is compared",
    "verbose": "whether warnings are printed",
}
"""Attributes that identities do not cover, with the reason why they change neither ids nor text."""


def test_identity_covers_every_attribute_unless_harmless(cache_home):
    base = LocalBase("base", find_bundled_base("tiny-random"))
    attributes = set(vars(load_tokenizer(base)))
    assert attributes - {"_tokenizer"} == (attributes & BOUND.keys()) | NO_PART.keys()
    trained = compute_identity(base, load_tokenizer(base))
    for name, value in BOUND.items():
        tokenizer = load_tokenizer(base)
        setattr(tokenizer, name, value)
        assert list_identity_differences(trained, compute_identity(base, tokenizer, stops=trained.stops)), name
    tokenizer = load_tokenizer(base)
    text = "It's <|im_end|> a 你 "
    ids = tokenizer(text)["input_ids"]
    before = ids, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)
    for name in NO_PART:
        for value in (True, "x", [], {}):
            setattr(tokenizer, name, value)
            assert tokenizer(text)["input_ids"] == ids, name
            assert (ids, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)) == before, name
