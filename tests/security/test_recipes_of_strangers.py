"""Strangers' recipes end in one short message: no value overflows, no path hangs, no glob walks the whole disk."""

import os
import sys
import time

import pytest
import yaml

from lora_chat import cli
from lora_chat.config.load import format_recipe_yaml, read_recipe
from lora_chat.data.reading import globs
from lora_chat.data.reading.find_files import find_files
from lora_chat.errors import DataError, RecipeError, UsageError
from lora_chat.system.user_path import expand_user_path

DATA = "data: {train: d.jsonl}\n"
SMALL = "base: {name: tiny-random}\nquantization: {mode: none}\n"
LONG = "x" * 5000


@pytest.fixture
def recipe(tmp_path):
    def recipe(text, name="mine.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return recipe


def refused(path, *sets):
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, sets)
    assert len(str(caught.value)) < 10_000
    return str(caught.value)


NUMBERS = [
    "9" * 400,
    "9" * 5000,
    "1" + ":59" * 5000,
    "0x" + "f" * 5000,
    "0b" + "1" * 50_000,
    "-" + "7" * 5000,
    2**53 + 1,
]


@pytest.mark.parametrize("number", NUMBERS, ids=range(len(NUMBERS)))
def test_refuses_infinite_number(recipe, number):
    for key in ("max_steps", "effective_batch_size", "micro_batch_tokens", "seed"):
        assert "mine.yaml:2" in refused(recipe(f"{DATA}training: {{{key}: {number}}}"))
    assert "--set" in refused(recipe(DATA), f"checkpoint.keep={number}")


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e400", "1" + ":59" * 5000 + ".5", "1e300"])
def test_refuses_invalid_fraction(recipe, number):
    assert "mine.yaml:2" in refused(recipe(f"{DATA}training: {{epochs: {number}}}"))
    assert "mine.yaml:2" in refused(recipe(f"{DATA}adapter: {{alpha: {number}}}"))


@pytest.mark.parametrize("tag", ["int", "float", "bool", "timestamp", "binary", "set", "omap", "pairs", "merge"])
@pytest.mark.parametrize("value", ["''", "'-'", "'_'", "':'", "'0x'", "'1:x'", "'.'", "'+'"])
def test_a_tag_that_does_not_fit_is_refused(recipe, tag, value):
    assert "mine.yaml:2" in refused(recipe(f"{DATA}training: {{epochs: !!{tag} {value}}}"))


def test_thousands_of_faults_give_a_short_message(recipe):
    many = "".join(f"  k{number}: 1\n" for number in range(3000))
    assert "and more" in refused(recipe(f"{DATA}training:\n{many}"))
    assert "and more" in refused(recipe("data:\n  train: [" + ",".join("{pat: x}" for _ in range(1000)) + "]"))
    for text in (f"? {LONG * 4}\n: 1\n", f"training:\n  ? {LONG * 4}\n  : 1\n", f"training: !{LONG} 1\n"):
        refused(recipe(DATA + text))
    refused(recipe(DATA + f"training:\n  ? {LONG * 4}\n  : 1\n  ? {LONG * 4}\n  : 1\n"))


NAMES = [
    "a/b",
    "../x",
    "..",
    ".",
    "-x",
    "a\n",
    "a b",
    "a\0",
    "a\x1b",
    "a:b",
    "~",
    "x" * 300,
    "\uff0e\uff0e",
    "a\u202eb",
]


@pytest.mark.parametrize("name", [*NAMES, "CON", "nul.txt", "Aux", "com1", "LPT9.a.b"])
def test_run_name_must_be_plain(recipe, name):
    assert "output.name" in refused(recipe(DATA + yaml.safe_dump({"output": {"name": name}})))


@pytest.mark.parametrize("stem", ["été", "x" * 240, "a²b", "我", "-..-", "a\u0301b"])
def test_a_run_named_after_its_file_can_be_read_again(recipe, tmp_path, stem):
    found = read_recipe(recipe(DATA, f"{stem}.yaml"))
    assert read_recipe(recipe(format_recipe_yaml(found), "again.yaml")) == found


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "a\0b", LONG, "x/" * 3000])
def test_reports_invalid_path(text):
    with pytest.raises(UsageError, match="is not a usable path"):
        expand_user_path(text)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX devices")
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("data: {train: /dev/zero}", 3),
        ("data: {train: fifo}", 3),
        ("data: {train: [d.jsonl, fifo]}", 3),
        ("data: {train: d.jsonl, validation: /dev/zero}", 3),
        ("data: {train: d.jsonl, template: fifo}", 3),
        (DATA + "evaluation: {questions: fifo}", 3),
        (f"data: {{train: {LONG}}}", 3),
        (f"data: {{train: '{LONG}*'}}", 3),
        (DATA + "base: {name: ~nobody-of-this-name/x}", 2),
        (DATA + f"base: {{name: {LONG}}}", 2),
        *((f"data: {{train: {{hub: '{name}'}}}}", 8) for name in ("../x", "x@y", "a/b/c", "a/b?x", "//a/b")),
        *((f"data: {{train: {{hub: a/b, revision: '{name}'}}}}", 8) for name in ("../../x", "refs/../x", "%2e%2e")),
    ],
)
def test_no_path_blocks(recipe, tmp_path, cache_home, capsys, text, code):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "d.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 20
    )
    path = recipe(text if "base:" in text else SMALL + text)
    started = time.monotonic()
    assert cli.main(["plan", str(path)]) == code
    assert time.monotonic() - started < 30
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["~nobody-of-this-name/x", LONG, "a\0b"])
def test_no_folder_of_runs_ends_in_a_traceback(recipe, cache_home, tmp_path, option):
    (tmp_path / "d.jsonl").write_text("{}")
    path = recipe(SMALL + DATA + yaml.safe_dump({"output": {"directory": option}}))
    assert cli.main(["sft", str(path)]) == 2


def tree(folder):
    for name in ("a/b/c/x.jsonl", "a/y.jsonl", "a/.hidden.jsonl", ".h/z.jsonl", "b/[x].jsonl", "a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "link").symlink_to(folder / "a")
    (folder / "b" / "up").symlink_to(folder)


PATTERNS = [
    "*",
    "*/*",
    "**/*",
    "**/*.jsonl",
    "a/**/*.jsonl",
    "**/b/**/*",
    "**/**/x.jsonl",
    "*/y.*",
    "?/*.jsonl",
    "[ab]/*",
]


@pytest.mark.parametrize("pattern", [*PATTERNS, "nothing*", "a.txt/*", "*/../a/*", "**/*/c/*", "[!a]*/*", "*.TXT"])
def test_a_glob_finds_what_it_found_before(tmp_path, pattern):
    tree(tmp_path)
    before = sorted({path for path in tmp_path.glob(pattern) if path.is_file()})
    try:
        assert list(find_files(str(tmp_path / pattern))) == before
    except DataError:
        assert not before


def test_glob_is_bounded(tmp_path, monkeypatch):
    tree(tmp_path)
    monkeypatch.setattr(globs, "_MAX_ENTRIES", 10)
    for pattern in ("**/*", "**/*/**/*.x", "*/*/*/*"):
        with pytest.raises(DataError, match="files and folders"):
            find_files(str(tmp_path / pattern))
    with pytest.raises(DataError, match="parts"):
        find_files(str(tmp_path / "/".join(["**", "*"] * 40)))
    (tmp_path / "a").chmod(0)
    monkeypatch.undo()
    assert find_files(str(tmp_path / "**/*.jsonl"))
    (tmp_path / "a").chmod(0o700)
