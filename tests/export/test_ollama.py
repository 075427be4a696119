"""The template of a Modelfile renders the same text as the chat template of training, or the export is refused."""

import copy
import json
import shutil
import subprocess
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

TEMPLATES = {path.stem: path.read_text() for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")}
DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are \"kind\".<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BUNDLED = {
    "chatml": CHATML_TEMPLATE,
    "plain": PLAIN_TEMPLATE,
    "plain with a beginning": "{{- bos_token -}}" + PLAIN_TEMPLATE,
    "default system": DEFAULT_SYSTEM,
}
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
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var work struct {
		Template string
		Chats    [][]Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&work); err != nil {
		panic(err)
	}
	made := template.Must(template.New("").Parse(work.Template))
	for _, chat := range work.Chats {
		if err := made.Execute(os.Stdout, map[string]any{"Messages": chat}); err != nil {
			panic(err)
		}
		os.Stdout.Write([]byte{0})
	}
}
"""


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
    for chat in CHATS[1:]:
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
@pytest.mark.parametrize("name", TRANSLATABLE)
def test_go_renders_the_same_text(renderer, tmp_path, name):
    _, render = renderer(TRANSLATABLE[name])
    (tmp_path / "main.go").write_text(PROGRAM)
    work = {"Template": derive_ollama_template(render, CHATS).to_go(), "Chats": CHATS}
    done = subprocess.run(
        ["go", "run", "main.go"], input=json.dumps(work), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\0")[:-1] == [render(chat, True) for chat in CHATS]
