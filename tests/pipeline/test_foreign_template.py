"""A chat template beside another tool's adapter is shown, needs consent, and is then the template of every command."""

import json
import shutil

import pytest

from lora_chat.cli import main
from lora_chat.config.recipe import BaseSection
from lora_chat.data.encoding.bundled_templates import CHATML_TEMPLATE
from lora_chat.errors import ConsentError, IntegrityError
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import find_base, load_tokenizer
from lora_chat.pipeline.open_adapter import TrustOptions, open_adapter

OWN = "{% for message in messages %}[{{ message.role }}] {{ message.content + eos_token }}\n{% endfor %}\x1b[31m"
OTHER = "{# other #}"
JINJA, CONFIG, PROCESSOR = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
NAMED = [{"name": "tool_use", "template": OTHER}, {"name": "default", "template": OWN}]


@pytest.fixture(scope="module")
def adapter(random_base, make_adapter, tmp_path_factory):
    """Return an adapter's folder as another tool leaves it, without a template."""
    folder = tmp_path_factory.mktemp("foreign") / "adapter"
    make_adapter(random_base("llama", 8.0), folder, size=0.02)
    (folder / "lora_chat.json").unlink()
    (folder / JINJA).unlink()
    return folder


@pytest.fixture
def folder(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "adapter")


def open_on(base, folder, **trust):
    return open_adapter(str(folder), TrustOptions(base=str(base), **trust)).adapter


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if name.endswith(".jinja") else json.dumps(content), newline="")


@pytest.mark.parametrize(
    "files",
    [
        {JINJA: OWN},
        {CONFIG: {"chat_template": OWN}},
        {CONFIG: {"chat_template": NAMED}},
        {CONFIG: {"chat_template": {"default": OWN}}},
        {PROCESSOR: {"chat_template": OWN}},
        {JINJA: OWN, CONFIG: {"chat_template": OTHER}, PROCESSOR: {"chat_template": OTHER}},
        {JINJA: OWN, "additional_chat_templates/tool_use.jinja": OTHER},
        {"additional_chat_templates/default.jinja": OWN},
    ],
    ids=lambda files: "+".join(files),
)
def test_own_template_is_shown_and_used_only_with_consent(random_base, folder, files):
    write(folder, files)
    with pytest.raises(ConsentError) as caught:
        open_on(random_base("llama", 8.0), folder)
    message = str(caught.value)
    assert "+{% for message in messages %}[{{ message.role }}]" in message and "--accept-template" in message
    assert "\x1b" not in message
    opened = open_on(random_base("llama", 8.0), folder, accept_template=True)
    assert opened.tokenizer.chat_template == OWN


@pytest.mark.parametrize("end", ["", "\n"])
def test_template_of_the_base_or_a_bundled_one_needs_no_consent(random_base, folder, end):
    base = random_base("llama", 8.0)
    own = str(load_tokenizer(find_base(BaseSection(name=str(base)))).chat_template)
    for text in (own, CHATML_TEMPLATE):
        write(folder, {JINJA: text + end})
        assert open_on(base, folder).tokenizer.chat_template == text


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({CONFIG: {"chat_template": 7}}, "not a text"),
        ({CONFIG: {"chat_template": [OWN]}}, "not a text"),
        ({CONFIG: {"chat_template": [{"name": "default"}]}}, "not a text"),
        ({PROCESSOR: ["x"] * 9}, "not a text"),
        ({"additional_chat_templates/tool_use.jinja": OTHER}, r"none is called default \(tool_use\)"),
        ({JINJA: OWN + " " * (1 << 20)}, "more than"),
        ({CONFIG: {"chat_template": OWN + " " * (1 << 20)}}, "not a text"),
    ],
)
def test_refuses_templates_that_cannot_be_read(folder, files, match):
    write(folder, files)
    with pytest.raises(IntegrityError, match=match):
        read_adapter(folder)


def test_merge_asks_first_and_writes_the_accepted_template(random_base, folder, tmp_path, capsys):
    write(folder, {JINJA: OWN})
    command = ["merge", str(folder), "--base", str(random_base("llama", 8.0)), "--to", str(tmp_path / "merged")]
    assert main(command) == 7
    assert "--accept-template" in capsys.readouterr().err and not (tmp_path / "merged").exists()
    assert main([*command, "--accept-template"]) == 0
    merged = load_tokenizer(find_base(BaseSection(name=str(tmp_path / "merged"))))
    assert merged.chat_template == OWN
