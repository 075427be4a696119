"""Strangers' chat templates are programs that run in a separate process within limits."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.data.encoding import render_requests, template_renderer
from lora_chat.data.encoding.bundled_templates import CHATML_TEMPLATE, PLAIN_TEMPLATE
from lora_chat.data.encoding.chat_template import is_trusted_template, render_texts
from lora_chat.data.encoding.encode import encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.parsing.rows import ReadingOptions
from lora_chat.data.storage.build import build_store
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodingOptions
from lora_chat.errors import DataError, TemplateError
from lora_chat.models.stop_tokens import find_turn_end_ids

pytestmark = pytest.mark.slow

MINE = CHATML_TEMPLATE + "{# mine #}"
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def with_template(tiny_tokenizer):
    before = tiny_tokenizer.chat_template

    def change(template):
        tiny_tokenizer.chat_template = template
        return tiny_tokenizer

    yield change
    tiny_tokenizer.chat_template = before


@pytest.fixture
def short_limits(monkeypatch):
    monkeypatch.setattr(render_requests, "_BASE_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(template_renderer, "_GRACE_SECONDS", 1.0)


def child():
    assert template_renderer._worker is not None
    return template_renderer._worker._child


def test_the_child_renders_what_transformers_renders(with_template):
    chats = [
        CHAT,
        CHAT[:1],
        [{"role": "user", "content": "\x00\x1b[31m\ud800 \U0001f642 \u202e\r\n\t\"'\\"}],
        [*CHAT, {"role": "user", "content": ""}],
        [{"role": "assistant", "content": "x", "n": 3, "f": 0.1, "yes": True, "list": [1, ["a"], {}]}],
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "ä": 1e300}}}]
    text = (
        "{{ bos_token }}{% for m in messages %}{{ m | tojson(indent=1) }}{{ m.role | title }}{% if loop.last %}."
        "{% else %}{% continue %}{% endif %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}"
        "{{ tools | tojson if tools else 'none' }}{{ eos_token }}{{ strftime_now('%Y') }}{{ nothing }}"
        "{{ namespace(a=1).a }}{{ dict(b=2) }}{% if add_generation_prompt %}>{% endif %}"
    )
    tokenizer = with_template(text)
    for reply_follows in (True, False):
        for given in (None, tools):
            found = render_texts(tokenizer, chats, add_generation_prompt=reply_follows, tools=given)
            assert found == [
                tokenizer.apply_chat_template(chat, tools=given, tokenize=False, add_generation_prompt=reply_follows)
                for chat in chats
            ]


def test_only_templates_of_this_package_and_its_bases_are_rendered_here(tiny_tokenizer, monkeypatch, with_template):
    assert is_trusted_template(str(tiny_tokenizer.chat_template))
    assert is_trusted_template(PLAIN_TEMPLATE) and is_trusted_template("{{- bos_token -}}" + PLAIN_TEMPLATE)
    assert (
        not is_trusted_template(MINE) and not is_trusted_template("") and not is_trusted_template(PLAIN_TEMPLATE + " ")
    )
    asked = []
    monkeypatch.setattr(
        "lora_chat.data.encoding.chat_template.render_in_worker",
        lambda template, *_: asked.append(template) or [["text"]],
    )
    for template in (CHATML_TEMPLATE, MINE):
        render_texts(with_template(template), [CHAT], add_generation_prompt=False)
    assert asked == [MINE]


def test_the_changed_template_of_a_stranger_is_compiled_in_the_worker_only(monkeypatch, with_template):
    compiled = []
    monkeypatch.setattr(
        "lora_chat.data.encoding.chat_template.find_stepwise_render",
        lambda source: compiled.append(source) or None,
    )
    long = CHAT * 8
    chats = [long[:n] for n in range(1, 17)]
    for template in (CHATML_TEMPLATE, MINE):
        together = render_texts(with_template(template), chats, add_generation_prompt=True)
        assert together == [
            render_texts(with_template(template), [chat], add_generation_prompt=True)[0] for chat in chats
        ]
    assert compiled == [CHATML_TEMPLATE]


def test_the_changed_template_runs_in_the_sandbox_of_transformers(monkeypatch):
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils.chat_template_utils import _compile_jinja_template

    from lora_chat.data.encoding import stepwise_render

    made = []
    environment = _compile_jinja_template(MINE).environment
    from_code = environment.template_class.from_code
    monkeypatch.setattr(
        environment.template_class,
        "from_code",
        classmethod(lambda _, *args: made.append(args[0]) or from_code(*args)),
    )
    stepwise_render.find_stepwise_render.cache_clear()
    assert stepwise_render.find_stepwise_render(MINE)
    assert made[-1] is environment
    assert isinstance(made[-1], ImmutableSandboxedEnvironment)
    assert made[-1].filters.keys() == environment.filters.keys()
    assert made[-1].extensions.keys() == environment.extensions.keys()
    for bad in (
        "{{ messages[0].update(a=1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].__init__.__globals__ }}",
    ):
        render = stepwise_render.find_stepwise_render(MINE + bad)
        with pytest.raises(Exception, match=r"unsafe|not safely"):
            render(messages=CHAT, add_generation_prompt=False)


@pytest.mark.slow
def test_the_embedded_base_s_template_is_trusted(cache_home):
    from transformers import AutoTokenizer

    from lora_chat.models.bundled import find_bundled_base

    tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("smollm2-135m-instruct"))
    assert is_trusted_template(str(tokenizer.chat_template))


BOMBS = {
    "a loop": LOOP,
    "a loop in a macro": "{% macro m(n) %}{% for a in range(99999) %}{{ m(n) if n > 999 }}{% endfor %}{% endmacro %}"
    "{% for a in range(99999) %}{{ m(1) }}{% endfor %}",
    "memory while it is compiled": "{{ 'a' * 30000000000 }}",
    "memory while it is rendered": "{{ messages[0].content * 30000000000 }}",
    "memory in a list": "{{ (messages * 900000000) | length }}",
    "doubling": "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "one long operation": "{{ (messages | length * 9) ** (9 ** 9) }}",
    "one long operation while it is compiled": "{{ 9 ** (9 ** 9) }}",
    "padding": "{{ 'a' | indent(999999999) }}{{ '%999999999s' | format('a') }}{{ 'a'.center(2000000000) }}",
    "too much text": "{{ 'a' * 90000000 }}",
    "text beyond all proportion": "{{ 'a' * 200000 }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_within_its_limit_and_the_next_template_renders(name, with_template, short_limits):
    render_texts(
        with_template(MINE), [CHAT], add_generation_prompt=False
    )  # the start of a child is no part of the limit
    began = time.monotonic()
    with pytest.raises(TemplateError, match="chat template"):
        render_texts(with_template(BOMBS[name]), [CHAT], add_generation_prompt=False)
    assert time.monotonic() - began < 10
    assert render_texts(with_template(MINE), [CHAT[:1]], add_generation_prompt=False) == [
        "<|im_start|>user\nhi<|im_end|>\n"
    ]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('no \x1b[31m\u202e') }}", r"no \x1b[31m\u202e"),
        ("{% for %}", "cannot be compiled"),
        ("{{ messages[0]['no'].nothing }}", "no attribute"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ messages.__class__.__mro__ }}{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}{{ os }}", "no loader"),
        ("{{ range(999999) }}", "Range too big"),
        ("{{ raise_exception('a' * 100000) }}", "aaa..."),
        ("{{ nothing() }}", "undefined"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_template_failure_is_reported_in_visible_text(template, told, with_template):
    with pytest.raises(DataError) as caught:
        render_texts(with_template(template), [CHAT], add_generation_prompt=False)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


@pytest.mark.parametrize("nested", ["{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", "{{ " + "-" * 50000 + "1 }}"])
def test_refuses_deep_nesting(nested, with_template):
    with pytest.raises((DataError, TemplateError)):
        render_texts(with_template(nested), [CHAT], add_generation_prompt=False)
    assert render_texts(with_template(MINE), [CHAT], add_generation_prompt=False)


def test_one_child_serves_many_renderings(with_template):
    tokenizer = with_template(MINE)
    render_texts(tokenizer, [CHAT], add_generation_prompt=False)
    first = child().pid
    for _ in range(20):
        render_texts(tokenizer, [CHAT], add_generation_prompt=True)
    with pytest.raises(DataError):
        render_texts(with_template("{% for %}"), [CHAT], add_generation_prompt=False)
    assert child().pid == first


def test_more_than_a_batch_is_rendered_in_pieces(with_template, monkeypatch):
    tokenizer = with_template(MINE)
    whole = render_texts(tokenizer, [CHAT, CHAT[:1], CHAT], add_generation_prompt=True)
    monkeypatch.setattr(render_requests, "_MAX_REQUEST_CHARACTERS", 10)
    assert render_texts(tokenizer, [CHAT, CHAT[:1], CHAT], add_generation_prompt=True) == whole
    assert "<|im_start|>assistant" in whole[1]


def test_chat_of_many_megabytes_is_rendered(with_template):
    long = [{"role": "user", "content": "ä\n" * 4_000_000}]
    (text,) = render_texts(with_template(MINE), [long], add_generation_prompt=False)
    assert len(text) > 8_000_000


def test_turn_ends_and_dialogues_do_not_hide_a_bomb(with_template, short_limits):
    with pytest.raises(TemplateError):
        find_turn_end_ids(with_template(LOOP))
    assert find_turn_end_ids(with_template("{{ raise_exception('no') }}")) == set()
    late = CHATML_TEMPLATE + "{% if messages[0].content == 'bomb' %}" + LOOP + "{% endif %}"
    tokenizer = with_template(late)
    assert find_turn_end_ids(tokenizer) == {tokenizer.eos_token_id}
    bad = parse_dialogue({"messages": [{"role": "user", "content": "bomb"}, CHAT[1]]})
    with pytest.raises(TemplateError):
        encode_dialogue(bad, tokenizer, [tokenizer.eos_token_id])


def test_forked_processes_render_in_separate_children(with_template, tmp_path):
    tokenizer = with_template(MINE)
    rows = [{"messages": [{"role": "user", "content": str(n)}, CHAT[1]]} for n in range(300)]
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    render_texts(tokenizer, [CHAT], add_generation_prompt=False)
    ours = child().pid
    encoder = ChunkEncoder(tokenizer, [tokenizer.eos_token_id], EncodingOptions(ReadingOptions(), 1 << 20))
    folders = [tmp_path / "two", tmp_path / "one"]
    for folder, workers in zip(folders, (2, 1), strict=True):
        folder.mkdir()
        assert build_store(folder, [path], encoder, workers).accepted == 300
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} for folder in folders)
    assert one.keys() == two.keys() and any(one.values())
    assert {k: v for k, v in one.items() if k.endswith(".arrow")} == {
        k: v for k, v in two.items() if k.endswith(".arrow")
    }
    assert child().pid == ours and child().poll() is None
    assert render_texts(tokenizer, [CHAT], add_generation_prompt=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_does_not_use_the_child_of_its_parent(with_template):
    tokenizer = with_template(MINE)
    before = render_texts(tokenizer, [CHAT], add_generation_prompt=False)
    ours = child().pid
    pid = os.fork()
    if pid == 0:
        same = render_texts(tokenizer, [CHAT], add_generation_prompt=False) == before and child().pid != ours
        template_renderer.close_worker()
        os._exit(0 if same else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert child().pid == ours and child().poll() is None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("busy", [False, True])
def test_no_child_outlives_a_parent_that_is_killed(busy):
    script = (
        "import sys, threading\n"
        "from lora_chat.data.encoding import render_requests, template_renderer as t\n"
        "render_requests._BASE_TIMEOUT_SECONDS = 1.0\n"
        "t.render_in_worker('x', {}, [t.RenderJob([[]], False)])\n"
        "print(t._worker._child.pid, flush=True)\n"
        f"{f't.render_in_worker({LOOP!r}, {{}}, [t.RenderJob([[]], False)])' if busy else 'sys.stdin.read()'}\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    if busy:
        before = processor_seconds(pid)
        wait_for(lambda: processor_seconds(pid) > before + 0.1)  # it is inside the loop
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in state(pid))


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_child_can_write_no_file_and_sees_no_secret(with_template, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    template_renderer.close_worker()
    render_texts(with_template(MINE), [CHAT], add_generation_prompt=False)
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    assert b"hf_secret" not in Path(f"/proc/{child().pid}/environ").read_bytes()
    limits = Path(f"/proc/{child().pid}/limits").read_text()
    assert next(line for line in limits.splitlines() if line.startswith("Max file size")).split()[3] == "0"


def test_nothing_else_in_the_package_compiles_or_renders_templates():
    allowed = {
        "data/encoding/chat_template.py",
        "data/encoding/template_worker.py",
        # These change the template for long dialogues. Only the two above call them: in the worker, or here if the
        # digest is trusted. They use the sandbox of transformers (tests above).
        "data/encoding/lookahead_traps.py",
        "data/encoding/message_lists.py",
        "data/encoding/stepwise_render.py",
        "data/encoding/stepwise_template.py",
        "evaluation/harness_model.py",  # templates of local task files, in a sandbox
        "export/parity/llama_cpp_worker.py",
        "export/parity/reader_worker.py",  # the other environment of `merge --check-with`, in a process with limits
    }
    names = {"apply_chat_template", "_compile_jinja_template", "Jinja2ChatFormatter", "render_jinja_template", "jinja2"}
    root = Path(template_renderer.__file__).parents[2]
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = {getattr(node, "id", None), getattr(node, "attr", None)}
            if isinstance(node, ast.Import | ast.ImportFrom):
                said |= {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", None)}
            if said & names:
                found.add(path.relative_to(root).as_posix())
    assert found == allowed


@pytest.fixture
def hostile_base(random_base, tmp_path):
    import shutil

    def make(template):
        folder = tmp_path / "base"
        shutil.copytree(random_base("llama"), folder)
        (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


@pytest.mark.parametrize("command", ["plan", "data", "sft", "chat"])
@pytest.mark.parametrize("name", ["a loop", "memory while it is compiled"])
def test_every_command_ends_with_a_message_where_the_base_s_template_is_a_bomb(
    command, name, hostile_base, short_limits, tmp_path, capsys
):
    base = hostile_base(BOMBS[name])
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"messages": CHAT}) + "\n" for _ in range(8)))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"base: {{name: {base}}}\nquantization: {{mode: none}}\ndata: {{train: talk.jsonl}}\n"
        f"training: {{max_steps: 2, effective_batch_size: 2}}\noutput: {{directory: {tmp_path / 'runs'}}}\n"
    )
    assert main([command, str(base if command == "chat" else recipe)]) == 3
    told = capsys.readouterr().err
    assert "chat template" in told and "it was stopped" in told and "Traceback" not in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("known", ["'x7q'", "'x7q' or messages[0]['content'] == 'bye'"])
def test_a_template_that_knows_the_reply_it_is_tried_with_hides_no_stop_token(with_template, known):
    ask = "{% for m in messages %}{{ m['content'] }}{% if m['content'] == " + known + " %}"
    tokenizer = with_template(ask + "<|im_start|>{% else %}<|im_end|>{% endif %}{% endfor %}")
    assert find_turn_end_ids(tokenizer) == set(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]))
