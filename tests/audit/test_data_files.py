import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

import lora_chat.audit
from lora_chat.audit import data_files
from lora_chat.audit.checks.abusive_language import find_abuse, load_abuse_detector
from lora_chat.audit.checks.markup import MarkupDetector, load_chat_markup
from lora_chat.audit.redactor import AUDIT_CODE_PATHS
from lora_chat.audit.sensitive.assigned_secrets import load_secret_words
from lora_chat.audit.sensitive.examples import is_placeholder, load_examples
from lora_chat.audit.sensitive.ibans import find_ibans
from lora_chat.audit.sensitive.key_formats import load_key_formats
from lora_chat.audit.sensitive.national_ids import load_national_id_formats
from lora_chat.audit.sensitive.payment_cards import find_cards, load_card_lengths
from lora_chat.audit.sensitive.phones import find_phones
from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.system.hashing import digest_code
from lora_chat.system.package_folders import find_package_folder

PACKAGE = Path(lora_chat.audit.__file__).parent
DATA_FILES = sorted(PACKAGE.rglob("*.json"))


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "files", lambda _: tmp_path)

    def write_and_load(text, content_type):
        (tmp_path / "list.json").write_text(text, encoding="utf-8")
        return data_files.load_data_file(".", "list.json", TypeAdapter(content_type))

    return write_and_load


def test_loader_returns_validated_content(load):
    assert load('{"a": ["b", "c"]}', dict[str, tuple[str, ...]]) == {"a": ("b", "c")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ["b", "b"]}', 'list.json: the entry "b" is repeated'),
        ('{"a": ["b"], "a": ["c"]}', "has the key 'a' twice"),
        ('{"a": ["b"}', "not valid JSON"),
    ],
)
def test_loader_rejects_repetitions_and_invalid_json(load, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(text, dict[str, tuple[str, ...]])


@pytest.mark.parametrize("text", ['{"a": "b"}', '{"a": [1]}', "[]"])
def test_loader_rejects_wrong_types(load, text):
    with pytest.raises(ValidationError):
        load(text, dict[str, tuple[str, ...]])


def test_every_pattern_compiles_and_matches_no_empty_text():
    patterns = [key_format.regex for key_format in load_key_formats()]
    for id_format in load_national_id_formats():
        forms = [id_format.distinctive_regex, id_format.ambiguous_regex]
        assert any(forms), id_format.detail
        assert bool(id_format.ambiguous_regex) <= bool(id_format.keyword_regex), id_format.detail
        patterns += [form for form in (*forms, id_format.keyword_regex) if form]
    words = load_secret_words()
    patterns += [words.key_regex, words.password_regex, load_examples().placeholder_regex]
    patterns += [load_chat_markup()[1], load_abuse_detector().listed_pattern, load_abuse_detector().unspaced_pattern]
    assert len(patterns) > 100
    assert not [pattern.pattern for pattern in patterns if pattern.search("")]


def test_names_of_formats_are_unique():
    for formats in (load_key_formats(), load_national_id_formats()):
        names = [entry.detail for entry in formats]
        assert len(set(names)) == len(names)


def test_checksums_of_national_ids_exist():
    for id_format in load_national_id_formats():
        if id_format.checksum_module:
            assert callable(import_module(f"stdnum.{id_format.checksum_module}").is_valid)


def test_hints_are_parts_of_the_markup_they_announce():
    hints, _ = load_chat_markup()
    samples = ["<|im_start|>", "<｜User｜>", "[INST]", "<<SYS>>", "<start_of_turn>"]
    samples += [
        f"###{blank}{name}:" for blank in (" ", "") for name in ("Instruction", "Response", "Human", "Assistant")
    ]
    for sample in samples:
        assert list(MarkupDetector(()).find_tokens(sample)), sample
    assert all(any(hint in sample for sample in samples) for hint in hints)


def test_every_abusive_word_is_found_in_a_sentence():
    for phrase, kind in load_abuse_detector().kind_by_phrase.items():
        assert kind in {match.detail for match in find_abuse(f"Well, {phrase.upper()}! Right?")}, phrase


def test_card_lengths_cover_ranges_of_prefixes():
    lengths = load_card_lengths()
    assert lengths["2221"] == lengths["2720"] == lengths["55"] == (16,)
    assert "2721" not in lengths
    assert "56" not in lengths


def test_published_examples_are_not_found():
    examples = load_examples()
    for number in examples.card_numbers:
        assert not list(find_cards(number))
    for iban in examples.ibans:
        assert not list(find_ibans(iban))
    assert all(is_placeholder(token + "QiLCJpYXQ6MTUx") for token in examples.token_prefixes)


def test_a_value_near_a_published_password_is_found():
    (known,) = load_examples().passwords
    assert not find_sensitive(f"The Wi-Fi password is {known}.")
    assert find_sensitive(f"The Wi-Fi password is {known}7.") and find_sensitive(f"The Wi-Fi password is x{known}.")


def test_data_of_the_bundled_recipes_contains_nothing_sensitive():
    files = sorted(find_package_folder("recipes").rglob("*.jsonl"))
    assert len(files) > 10
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if find_sensitive(json.dumps(json.loads(line), ensure_ascii=False))] == []


def test_phone_numbers_need_the_form_of_their_country_or_a_keyword():
    assert list(find_phones("07911 123456"))
    number = "0791" + "1234" + "56"
    assert not list(find_phones(f"order {number}"))


def test_code_digest_covers_the_data_files(tmp_path):
    assert PACKAGE in AUDIT_CODE_PATHS
    before = digest_code(*AUDIT_CODE_PATHS)
    assert before == digest_code(*AUDIT_CODE_PATHS)
    copy = tmp_path / "audit"
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".json"):
            (copy / path.relative_to(PACKAGE)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(PACKAGE)).write_bytes(path.read_bytes())
    paths = (copy, *AUDIT_CODE_PATHS[1:])
    assert digest_code(*paths) == before
    for data_file in DATA_FILES:
        path = copy / data_file.relative_to(PACKAGE)
        content = path.read_text(encoding="utf-8")
        path.write_text(content + "\n", encoding="utf-8")
        assert digest_code(*paths) != before, data_file.name
        path.write_text(content, encoding="utf-8")


def test_data_files_are_installed_with_the_package():
    assert len(DATA_FILES) >= 9
    project = (PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for path in DATA_FILES:
        package = ".".join(path.parent.relative_to(PACKAGE.parents[1]).parts)
        assert f'"{package}" = ["*.json"]' in project, path
        assert json.loads(path.read_text(encoding="utf-8"))
