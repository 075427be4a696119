"""`merge --check-with` reads the merged folder with another Python, and refuses it if the outputs differ."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_chat.errors import IntegrityError, UnavailableError, UsageError
from lora_chat.export import merge
from lora_chat.export.merge import merge_and_read
from lora_chat.export.parity.reader_runner import Reader, ReaderRunner, find_reader
from tests.export.test_merge import open_blend, samples_for

ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
OLD_PACKAGES = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.0")


@pytest.fixture(scope="module")
def blend(random_base, make_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")
    _, precision = make_adapter(random_base("llama", 8.0), folder / "adapter")
    return open_blend(precision, folder / "adapter")


def damage(folder):
    """Change what only the next reader sees: rotary embeddings, template, tokenizer and stop tokens."""
    for name, fields in {
        "config.json": {"rope_parameters": {"rope_type": "default", "rope_theta": 1.5}, "rope_theta": 1.5},
        "generation_config.json": {"eos_token_id": 7},
    }.items():
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_another_python_detects_a_folder_that_it_reads_differently(blend, tmp_path, monkeypatch):
    reader = Reader(Path(sys.executable), "this environment")

    def damage_and_read(reader, folder, *rest):
        damage(folder)
        return ReaderRunner(reader, folder, *rest)

    monkeypatch.setattr(merge, "ReaderRunner", damage_and_read)
    first, second = merge_and_read(blend, samples_for(blend), tmp_path / "merged", [reader], accept=True)
    assert not first.failures
    text = "\n".join(second.failures)
    for expected in ("mean KL", "3 of 3 prompts", "a text has other token ids", "end at the tokens [7]"):
        assert expected in text
    proofs = json.loads((tmp_path / "merged" / "proof.json").read_text())["proofs"]
    assert [proof["reader"] for proof in proofs] == [first.reader, reader.name]
    assert reader.name in (tmp_path / "merged" / "PROOF.md").read_text()


def test_nothing_is_kept_if_a_reader_fails(blend, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'KeyError: rope_theta' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(IntegrityError, match="cannot read the merged model") as raised:
        merge_and_read(blend, samples_for(blend), tmp_path / "merged", [Reader(program, "transformers 4.0.0")])
    assert "KeyError: rope_theta" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_reports_the_versions_of_a_reader(tmp_path):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "python"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\nfolder = json.loads(sys.argv[-1])['arguments'][0]\n"
        "answer = {'transformers': '4.57.6', 'python': '3.12.1', 'torch': '2.9.0' + chr(27)}\n"
        "json.dump(answer, open(folder + '/answer.json', 'w'))\n"
    )
    program.chmod(0o755)
    reader = find_reader(str(tmp_path))  # the folder of an environment
    assert reader.python == program
    assert reader.name.startswith("transformers 4.57.6 (Python 3.12.1, torch 2.9.0")
    assert "\x1b" not in reader.name


def test_refuses_a_python_that_cannot_read(tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(UsageError, match="No Python to run"):
        find_reader(str(program))
    with pytest.raises(UsageError, match="No Python to run"):
        find_reader(str(tmp_path))
    program.chmod(0o755)
    with pytest.raises(UnavailableError, match="cannot import Transformers"):
        find_reader(str(program))
    program.write_bytes(b"\x7fELF")
    with pytest.raises(UsageError, match="does not run"):
        find_reader(str(program))


@pytest.fixture(scope="module")
def transformers_4(tmp_path_factory):
    """Return a Python with Transformers 4.57.6 and the other packages of this environment."""
    folder = tmp_path_factory.mktemp("transformers-4")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder / "packages"]
    subprocess.run([*command, *OLD_PACKAGES], check=True)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}/packages" exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return find_reader(str(program))


@ON_DEMAND
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2", "mixtral", "qwen3_moe"])
def test_transformers_4_reads_merged_folders(random_base, make_adapter, transformers_4, tmp_path, architecture):
    assert transformers_4.name.startswith("transformers 4.57.6")
    base = Path(random_base(architecture, 8.0))
    config = json.loads((base / "config.json").read_text())
    if "rope_parameters" in config:
        config["rope_parameters"]["rope_theta"] = 123456.0
        (base / "config.json").write_text(json.dumps(config))
    targets = "all-linear" if architecture == "gpt2" else ("q_proj", "v_proj")
    _, precision = make_adapter(base, tmp_path / "adapter", targets=targets)
    blend = open_blend(precision, tmp_path / "adapter")
    for report in merge_and_read(blend, samples_for(blend), tmp_path / "merged", [transformers_4]):
        assert not report.failures
