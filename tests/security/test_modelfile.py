"""A Modelfile contains no other directives, whatever names, stops, messages and templates contain."""

import re

import pytest

from lora_chat.errors import UsageError
from lora_chat.export import ollama
from lora_chat.export.ollama import MODELFILE_NAME, write_modelfile
from lora_chat.export.ollama_template import OllamaTemplate

SAID = (
    "Hi.\nFROM ./evil.gguf\nADAPTER x\nLICENSE y\n# no\nMESSAGE user z\n"
    'PARAMETER stop "x"\n{{ .System }} {% x %} "" \\ ""'
)
HOSTILE = ['x"\nSYSTEM evil', "x\nFROM evil", 'x" "y', "x\rADAPTER evil", '"', " x", "x\u2028LICENSE evil", "x\x00"]
PLAIN = {"from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "requires"}


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(ollama, "run_llama_cpp", lambda request, work: {"beginning": ""})

    def written(name="model.gguf", part="<|im_end|>", stops=("<|im_end|>",), system="Hi."):
        around = {"system": (part, part), "user": (part, ""), "assistant": (part, part)}
        template = OllamaTemplate(leading_text=part, role_wrappers=around, generation_prompt=part)
        write_modelfile(tmp_path / name, template, stops, system, 512, tmp_path / "work")
        return (tmp_path / MODELFILE_NAME).read_bytes().decode("utf-8")

    return written


class Reader:
    """A reader of Modelfiles with Ollama's rules: a state per character (ollama/ollama, parser/parser.go).

    Blanks end a name; a value ends at the first line end at which its quotes are closed, one quote or three at each
    end, counted over all of it. Nothing is an escape. Of a value, characters that Go does not print are left out.
    """

    def __init__(self):
        self.found = []
        self.name, self.key, self.value = "", None, ""
        self.state = self._nothing

    def read(self, text):
        for character in text.removeprefix("\ufeff"):
            self.state = self.state(character)
        if self.state == self._in_value:
            assert self._end(), "the file ends inside a text"
        else:
            assert self.state in (self._nothing, self._in_comment), "the file ends inside a command"
        assert any(name == "from" for name, *_ in self.found)
        return self.found

    def _nothing(self, character):
        if character == "#":
            return self._in_comment
        if character in " \t\r\n":
            return self._nothing
        self.name = character
        return self._in_name

    def _in_comment(self, character):
        return self._nothing if character in "\r\n" else self._in_comment

    def _in_name(self, character):
        if character.isascii() and character.isalpha():
            self.name += character
            return self._in_name
        assert character in " \t", f"no command: {self.name + character!r}"
        command, self.key, self.value = self.name.lower(), None, ""
        if command in ("parameter", "message"):
            self.key = ""
            return self._in_key
        assert command in PLAIN, f"no command: {command!r}"
        return self._in_value

    def _in_key(self, character):
        if (character.isascii() and character.isalnum()) or character == "_":
            self.key += character
            return self._in_key
        assert character in " \t"
        return self._in_value

    def _in_value(self, character):
        if character in "\r\n" and self._end():
            return self._nothing
        if character in "\t\r\n" or character.isprintable():
            self.value += character
        return self._in_value

    def _end(self):
        """Record a complete value. Return whether it is complete."""
        text = self.value.strip()
        for quote in ('"""', '"'):
            if text.startswith(quote):
                if len(text) < 2 * len(quote) or not text.endswith(quote):
                    return False
                text = text[len(quote) : -len(quote)]
                break
        self.found.append((self.name.lower(), self.key, text))
        return True


def directives(text):
    return Reader().read(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FROM x\n", [("from", None, "x")]),
        ("from x y \r\n  # FROM z\nSYSTEM a", [("from", None, "x y"), ("system", None, "a")]),
        ('FROM x\nSYSTEM """a\n"b" """\n', [("from", None, "x"), ("system", None, 'a\n"b" ')]),
        ('FROM x\nSYSTEM """a""" b\nFROM y"""\n', [("from", None, "x"), ("system", None, 'a""" b\nFROM y')]),
        ('FROM x\nSYSTEM "a\nFROM y"\n', [("from", None, "x"), ("system", None, "a\nFROM y")]),
        ('FROM x\nSYSTEM "a\\"\nADAPTER z\n', [("from", None, "x"), ("system", None, "a\\"), ("adapter", None, "z")]),
        ("FROM x\nMESSAGE user hi\n", [("from", None, "x"), ("message", "user", "hi")]),
        ('FROM x\nPARAMETER stop "a b"\n', [("from", None, "x"), ("parameter", "stop", "a b")]),
        ("FROM x\nSYSTEM a\u200db\u00a0c\x07\n", [("from", None, "x"), ("system", None, "abc")]),
    ],
)
def test_reader_parses_like_ollama(text, found):
    assert directives(text) == found


PARTS = ["<|im_end|>", '"""', 'a"', '\nFROM ./evil\n"""\nSYSTEM """', "{{ .System }}", "\\", "`", "}}", "{{/*", "\r\n"]
INVISIBLE = ["\u200b<|x|>\u200d", "a\u00a0b\u3000", "\x7f\x85\u2028", "\U000e0041\U0001f642\u202e", "\ufeff"]


@pytest.mark.parametrize("part", [*PARTS, *INVISIBLE])
def test_a_template_stays_inside_its_text(written, part):
    found = directives(written(part=part, system=SAID + " "))
    assert [(name, key) for name, key, _ in found] == [
        ("from", None),
        ("template", None),
        ("system", None),
        ("parameter", "stop"),
        ("parameter", "num_ctx"),
        ("parameter", "temperature"),
    ]
    assert found[2][2] == SAID + " "
    actions = re.sub(r'"(?:[^"\\]|\\.)*"', "", found[1][2])  # without its literals
    assert ".System" not in actions
    assert "evil" not in actions
    literals = [unquoted(one) for one in re.findall(r'"(?:[^"\\]|\\.)*"', found[1][2])]
    assert part in literals
    assert set(literals) == {part, "system", "user", "assistant"}


def unquoted(literal):
    """Return the value of a Go string literal."""
    whole = re.sub(r"\\U([0-9a-f]{8})", lambda m: chr(int(m[1], 16)), literal[1:-1])
    short = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", '"': '"', "\\": "\\"}
    return re.sub(r"\\(?:u([0-9a-f]{4})|(.))", lambda m: chr(int(m[1], 16)) if m[1] else short[m[2]], whole)


@pytest.mark.parametrize("text", [*HOSTILE, "", "x\u200d", "x\u00a0y"])
def test_stops_and_names_that_open_a_directive_are_refused(written, text):
    with pytest.raises(UsageError):
        written(stops=("<|im_end|>", text))
    if text and "\x00" not in text:
        with pytest.raises(UsageError):
            written(name=text)


@pytest.mark.parametrize(
    "system",
    ['a""" \nFROM evil', 'ends with "', '"""', '"', 'a"""\r', "a\u200db", "a\u00a0b", "a\x1b[31mb", "\u2028", "\ufeff"],
)
def test_a_message_that_a_modelfile_would_change_is_refused(written, system):
    with pytest.raises(UsageError):
        written(system=system)


@pytest.mark.parametrize("system", ["", " ", "\n", '"a" b', "# x", "a\tb\r\nFROM x\n", "\\", "é我🙂", 'say ""' + " "])
def test_message_is_written_unchanged(written, system):
    found = {name: text for name, key, text in directives(written(system=system)) if key is None}
    assert found["system"] == system
    assert found["from"] == "./model.gguf"
