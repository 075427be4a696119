"""New tokens from the recipe to the merged model: learnt, generated as one token, and the same in every command."""

import contextlib
import io
import json
import os

import pytest
from transformers import AutoTokenizer

from lora_chat.cli import main
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.control_tokens import read_kept_tokens
from lora_chat.inference.generation import generate_ids
from lora_chat.models.base_model import LocalBase, load_base_model, load_tokenizer
from lora_chat.pipeline.open_adapter import TrustOptions, open_adapter

ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
WORDS = ("tea", "bun", "pie", "jam", "rye", "egg", "oat", "fig")


def here(*arguments, code=0):
    """Run a command in this process, and return its stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main(list(map(str, arguments)))
    assert found == code, err.getvalue()
    return out.getvalue(), err.getvalue()


def write_recipe(folder, adapter, **data):
    dialogues = []
    for word in WORDS:
        reply = {"role": "assistant", "content": f"<order>{word}</order>"}
        dialogues.append({"messages": [{"role": "user", "content": f"{word}?"}, reply]})
    (folder / "orders.jsonl").write_text("".join(f"{json.dumps(dialogue)}\n" for dialogue in dialogues))
    recipe = {
        "base": {"name": "tiny-random"},
        "quantization": {"mode": "none"},
        "adapter": {"rank": 8, **adapter},
        "data": {"train": "orders.jsonl", "validation": "orders.jsonl", **data},
        "audit": {"leak": "ignore", "near_duplicate": "ignore"},
        "training": {"max_steps": 25, "effective_batch_size": 8, "learning_rate": 2e-2, "memory": "unlimited"},
        "evaluation": {"samples": 0},
        "output": {"directory": str(folder / "runs"), "name": "orders"},
    }
    (folder / "orders.yaml").write_text(json.dumps(recipe))
    return folder / "orders.yaml"


@pytest.fixture(scope="module")
def run(cache_home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("orders")
    here("sft", write_recipe(folder, {"new_tokens": ["<order>", "</order>"]}))
    return folder / "runs" / "orders-1"


def greedy(model, tokenizer, prompts):
    return generate_ids(model.eval(), int(tokenizer.pad_token_id), prompts, [2], 6)


@ON_DEMAND
def test_new_tokens_are_learnt_and_merged(run, tmp_path):
    opened = open_adapter(str(run))
    tokenizer = opened.adapter.tokenizer
    begin, end = tokenizer.convert_tokens_to_ids(["<order>", "</order>"])
    assert json.loads((run / "adapter" / "lora_chat.json").read_text())["new_tokens"] == {
        "<order>": begin,
        "</order>": end,
    }
    assert AutoTokenizer.from_pretrained(run / "adapter").convert_tokens_to_ids("<order>") == begin

    messages = [{"role": "user", "content": "tea?"}]
    prompts = [render_ids(tokenizer, messages, add_generation_prompt=True)]
    (reply,) = greedy(opened.adapter.load(opened.precision), tokenizer, prompts)
    assert reply[0] == begin  # generated as one token
    here("merge", run, "--to", tmp_path / "merged")
    merged = LocalBase("merged", tmp_path / "merged")
    merged_tokenizer = load_tokenizer(merged)
    assert read_kept_tokens(merged_tokenizer) == ("</order>", "<order>")
    assert [render_ids(merged_tokenizer, messages, add_generation_prompt=True)] == prompts
    model = load_base_model(merged, opened.precision)
    assert model.config.vocab_size == end + 1 == len(merged_tokenizer)
    assert greedy(model, merged_tokenizer, prompts) == [reply]


@ON_DEMAND
def test_the_data_command_counts_kept_tokens(run):
    out, _ = here("data", run.parents[1] / "orders.yaml", "--json")
    counts = json.loads(out)["total"]["kept_tokens"]
    assert counts == {"<order>": len(WORDS), "</order>": len(WORDS)}


@ON_DEMAND
def test_other_formats_are_refused_before_weights_load(run, tmp_path):
    _, err = here("export", run, "--to", "gguf-adapter", "--out", tmp_path / "gguf", code=2)
    assert "--to gguf." in err
    _, err = here("merge", run, run, "--to", tmp_path / "two", code=2)
    assert "without other adapters" in err


@ON_DEMAND
def test_a_parcel_brings_its_new_tokens(run, tmp_path):
    here("pack", run, "--out", tmp_path / "orders.lorachat")
    out, _ = here("verify", tmp_path / "orders.lorachat")
    assert "No check failed" in out
    opened = open_adapter(str(tmp_path / "orders.lorachat"), TrustOptions())
    assert opened.adapter.tokenizer.convert_tokens_to_ids("<order>") == 259
    here("export", run, "--to", "peft", "--out", tmp_path / "peft")


@pytest.mark.parametrize(
    ("adapter", "data", "words"),
    [
        ({"new_tokens": ["<|im_end|>"]}, {}, "already"),
        ({"new_tokens": ["user"]}, {}, "control token of the chat template"),
        ({"trainable_tokens": ["<order>"]}, {}, "adapter.new_tokens"),
        ({"modules_to_save": ["q_proj"]}, {}, "adapter.target_modules"),
        ({"new_tokens": ["<a>", "<a>"]}, {}, "twice"),
        ({}, {"keep_tokens": ["<order>"]}, "adapter.new_tokens"),
    ],
)
def test_refuses_senseless_tokens_before_data_is_read(cache_home, tmp_path, adapter, data, words):
    path = write_recipe(tmp_path, adapter, **data)
    (tmp_path / "orders.jsonl").write_text("not a dialogue\n")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["data", str(path)]) in (2, 3)
    assert words in err.getvalue()
    assert "orders.jsonl" not in err.getvalue()
