"""Strangers' files, names and replies have no effect on the terminal in any command."""

import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import unicodedata

import pytest

from lora_chat.cli import main
from lora_chat.models.bundled import find_bundled_base
from lora_chat.system.sanitize import sanitize_line

ESCAPE = "\x1b]0;PWNED\x07"
EVIL = f"{ESCAPE}\x9b31m\u202eabc\u2066\u200b\x08\rgone"


def acts(text):
    kept = "\n\t\u200c\u200d"
    return {c for c in text if c not in kept and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}


@pytest.fixture(scope="module")
def run(cache_home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    settings = [f"output.directory={folder}", "output.name=x", "training.max_steps=1", "evaluation.samples=1"]
    assert main(["sft", "recipes/smoke.yaml", *(word for one in settings for word in ("--set", one))]) == 0
    return folder / "x-1"


@pytest.fixture
def call(capsys, monkeypatch):
    def call(*words, stdin="hi\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = main([str(word) for word in words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def held(call):
    """Run a command that must show a part of EVIL as text."""

    def held(*words, code, stdin="hi\n"):
        found, out, err = call(*words, stdin=stdin)
        assert found == code, out + err
        assert not acts(out + err)
        assert "PWNED" in out + err
        assert "Traceback" not in err
        return out, err

    return held


@pytest.fixture
def adapter(run, tmp_path):
    """Return a function that copies the run's adapter and changes its two JSON files."""

    def adapter(config=None, identity=None, name="adapter"):
        folder = tmp_path / name
        shutil.copytree(run / "adapter", folder)
        for file, new in (("adapter_config.json", config), ("lora_chat.json", identity)):
            place = folder / file
            place.write_text(json.dumps(json.loads(place.read_text()) | (new or {})))
        return folder

    return adapter


@pytest.fixture
def base(cache_home, tmp_path):
    """Return a function that copies the base without its digests."""

    def base():
        folder = tmp_path / "base"
        shutil.copytree(find_bundled_base("tiny-random"), folder)
        for name in ("sha256.json", "complete.json"):
            (folder / name).unlink(missing_ok=True)
        return folder

    return base


@pytest.mark.parametrize(
    ("config", "identity", "code"),
    [
        ({"base_model_name_or_path": "x" + EVIL}, {"base": "x" + EVIL}, 8),
        ({"base_model_name_or_path": "friend/tiny", "revision": EVIL}, {"base": "friend/tiny"}, 8),
        (None, {"base": "x" + EVIL, "weights": "0" * 64}, 7),
        ({EVIL: 1}, None, 7),
        ({"peft_type": EVIL}, None, 7),
        ({"target_modules": [EVIL]}, None, 7),
        (None, {EVIL: 1}, 7),
        (None, {"weights": EVIL}, 7),
    ],
    ids=["base", "revision", "identity", "unknown key", "type", "modules", "unknown field", "digest"],
)
def test_files_of_an_adapter_are_filtered(adapter, call, config, identity, code):
    found, out, err = call("chat", adapter(config, identity))
    assert found == code, out + err
    assert not acts(out + err)
    assert "Traceback" not in err


def test_name_of_an_adapter_folder_is_filtered(adapter, held):
    folder = adapter(name="a" + EVIL.replace("/", ""))
    (folder / "adapter_config.json").write_text("{")
    held("chat", folder, code=7)


def test_model_replies_are_filtered(base, held):
    folder = base()
    place = folder / "tokenizer.json"
    tokenizer = json.loads(place.read_text())
    own = [tokenizer["decoder"]] if tokenizer.get("decoder") else []
    says = {"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": EVIL}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [*own, says]}
    place.write_text(json.dumps(tokenizer))
    held("chat", folder, "--max-new-tokens", 8, code=0)
    out, _ = held("chat", folder, "--max-new-tokens", 8, "--json", code=0)
    assert out.isascii()
    assert EVIL in json.loads(out)["content"]


@pytest.mark.parametrize("name", ["chat_template.jinja", "config.json"])
def test_files_of_a_base_are_filtered(base, held, name):
    folder = base()
    if name == "config.json":
        (folder / name).write_text(json.dumps({"model_type": EVIL}))
    else:
        (folder / name).write_text("{{ raise_exception('x" + ESCAPE + "') }}")
    held("chat", folder, code=8 if name == "config.json" else 3)


@pytest.fixture
def recipe(tmp_path):
    def recipe(text):
        (tmp_path / "r.yaml").write_text(text)
        return tmp_path / "r.yaml"

    return recipe


def rows(count=9):
    for number in range(count):
        user = {"role": "user", "content": f"q{number}{EVIL}"}
        yield json.dumps({"messages": [user, {"role": "assistant", "content": f"mail a{number}@b.de {EVIL}"}]}) + "\n"


def test_data_files_and_their_names_are_filtered(tmp_path, recipe, held):
    folder = tmp_path / f"d{ESCAPE}\nAll checks passed."
    folder.mkdir()
    path = recipe(f"base: {{name: tiny-random}}\ndata: {{train: '{tmp_path}/d*/*.jsonl'}}\n")
    (folder / "x.jsonl").write_text('{"messages": 1}\n' * 3)
    _, err = held("data", path, code=3)
    assert "\nAll checks" not in err
    (folder / "x.jsonl").write_text("".join(rows()), encoding="utf-8")
    for command, *words in (("data", "--show", 2), ("audit",), ("data", "--json"), ("audit", "--json")):
        out, err = held(command, path, *words, code=0)
        assert "\nAll checks" not in out + err
        if "--json" in words:
            assert out.isascii()
            assert json.dumps(folder.name)[1:-1] in out


@pytest.mark.parametrize(
    ("text", "command", "code"),
    [
        ('base: {name: tiny-random}\ndata: {train: x.jsonl}\n"\\e]0;PWNED\\a": 1\n', "recipe", 2),
        ('base: {name: "\\e]0;PWNED\\a/x"}\ndata: {train: x.jsonl}\n', "plan", 8),
        ('data: {train: "x\\e]0;PWNED\\a.jsonl"}\n', "data", 3),
        ("data: {train: !<x%1B]0;PWNED%07> y}\n", "recipe", 2),
        ('data: {train: x, format: "\\e]0;PWNED\\a"}\n', "recipe", 2),
        ('base: {name: "PWNED\\u202e\\x9b\\e\\u2028"}\ndata: {train: x.jsonl}\n', "recipe", 0),
    ],
    ids=["key", "base", "path", "tag", "format", "resolved"],
)
def test_recipes_are_filtered(recipe, held, text, command, code):
    path = recipe(text)
    out, _ = held(command, path, code=code)
    if code == 0:
        import yaml

        assert yaml.safe_load(out)["base"]["name"] == "PWNED\u202e\x9b\x1b\u2028"
        out, _ = held(command, path, "--json", code=code)
        assert json.loads(out)["base"]["name"] == "PWNED\u202e\x9b\x1b\u2028"


def test_held_out_prompts_are_filtered(run, tmp_path, held):
    folder = tmp_path / "run-1"
    shutil.copytree(run, folder)
    place = folder / "validation.jsonl"
    place.write_text(place.read_text().replace('"content": "', '"content": "' + json.dumps(EVIL)[1:-1]))
    held("eval", folder, code=0)


@pytest.mark.parametrize("words", [["sft", EVIL], ["nonsense" + EVIL], ["chat", "x", "--quantization", EVIL]])
def test_arguments_are_quoted_as_text(call, capsys, words):
    try:
        _, out, err = call(*words)
    except SystemExit:
        out, err = capsys.readouterr()
    assert "PWNED" in out + err
    assert not acts(out + err)


def test_name_with_line_feeds_stays_on_one_line(adapter, call):
    forged = "x\nVerified: all checks passed.\nError: none"
    _, out, err = call("chat", adapter({"base_model_name_or_path": forged}, {"base": forged}))
    assert not re.search(r"^(Verified|Error: none)", out + err, re.MULTILINE)


def test_suggested_commands_quote_names(tmp_path, monkeypatch):
    from lora_chat.system.console import quote_path

    assert quote_path(tmp_path / "kiln-1") == str(tmp_path / "kiln-1")
    for name in ("$(touch x)", "a; touch x", "`touch x`", "a b", "a'$(touch x)'", "a\n touch x\n", "\x1b[A;touch x"):
        monkeypatch.chdir(tmp_path)
        command = f"printf %s {quote_path(tmp_path / name)}"
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True, text=True)
        assert done.stdout == sanitize_line(name)
        assert list(tmp_path.iterdir()) == []


def test_endless_name_is_shortened(adapter, call):
    _, out, err = call("chat", adapter({"x" * 10**6: 1}))
    assert len(out + err) < 30_000


SCRIPT = """
import atexit, logging, sys, threading, warnings
from lora_chat import cli
from lora_chat.commands import recipe
def bug(options):
    class Broken:
        def __del__(self):
            raise ValueError(EVIL)
    broken = Broken()
    del broken
    warnings.warn(EVIL)
    logging.warning(EVIL)
    thread = threading.Thread(target=lambda: {}[EVIL])
    thread.start()
    thread.join()
    atexit.register(lambda: sys.stderr.write(EVIL))
    error = RuntimeError("x" + EVIL)
    raise error
recipe.run = bug
sys.exit(cli.main(["recipe", "x", "--verbose"]))
"""


def test_bugs_warnings_and_loggers_are_filtered():
    done = subprocess.run(
        [sys.executable, "-c", f"EVIL = {EVIL!r}\n{SCRIPT}"], capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 1
    assert not acts(done.stdout + done.stderr)
    assert done.stderr.count("PWNED") >= 6
    assert "RuntimeError: x\\x1b]0;PWNED\\x07" in done.stderr


def in_a_terminal(*words, typed=""):
    """Return the output of a command in a real terminal, and its exit code. A fork takes no time for imports."""
    process, terminal = pty.fork()
    if not process:  # pragma: no cover - the child runs the command
        code = 1
        try:
            os.environ["TERM"] = "xterm"
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            code = main(list(map(str, words)))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.write(terminal, typed.encode())
    sent, until = b"", time.monotonic() + 120
    while time.monotonic() < until:
        if select.select([terminal], [], [], 1)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:
                break
            if not piece:
                break
            sent += piece
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), sent.decode(errors="replace")


@pytest.mark.slow
def test_only_highlights_send_colours_to_a_terminal(tmp_path, recipe, monkeypatch):
    (tmp_path / "x.jsonl").write_text("".join(rows()), encoding="utf-8")
    path = recipe(f"base: {{name: tiny-random}}\ndata: {{train: '{tmp_path}/x.jsonl'}}\n")
    monkeypatch.delenv("NO_COLOR", raising=False)
    code, sent = in_a_terminal("data", path, "--show", 2)
    assert code == 0, sent
    assert set(re.findall(r"\x1b[^m]*m", sent)) == {"\x1b[1;32m", "\x1b[0m"}
    assert acts(re.sub(r"\x1b\[(1;32|0)m", "", sent).replace("\r\n", "\n")) == set()
    assert "\\x1b]0;PWNED\\x07" in sent
