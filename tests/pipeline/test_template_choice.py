"""A chat template in the recipe is used in training, evaluation, chat and merge."""

import io
import json

import pytest

from lora_chat.cli import main

MINE = (
    "{%- for m in messages %}{{ '[' + m.role + '] ' + m.content + '<|endoftext|>' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '[assistant] ' }}{% endif -%}"
)
ROWS = [
    {"messages": [{"role": "user", "content": f"number {n}?"}, {"role": "assistant", "content": f"it is {n}"}]}
    for n in range(8)
]


@pytest.fixture
def lora_chat(cache_home, tmp_path, capsys, monkeypatch):
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "mine.jinja").write_text(MINE)

    def run(command, template="mine.jinja", *more):
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            f"base: {{name: tiny-random}}\nquantization: {{mode: none}}\n"
            f"data: {{train: talk.jsonl, template: {template}}}\n"
            f"training: {{max_steps: 2, effective_batch_size: 2}}\n"
            f"evaluation: {{samples: 1, max_new_tokens: 4}}\noutput: {{directory: {tmp_path / 'runs'}}}\n"
        )
        code = main([command, str(recipe), "--json", *more])
        out, err = capsys.readouterr()
        return code, json.loads(out) if code == 0 else None, err

    return run


@pytest.mark.slow
def test_template_file_is_used_in_training_evaluation_and_merge(lora_chat, tmp_path, capsys, monkeypatch):
    from transformers import AutoTokenizer

    code, shown, _ = lora_chat("data", "mine.jinja", "--show", "1")
    assert code == 0
    assert shown["total"]["stops"] == shown["total"]["replies"] == 8
    code, result, err = lora_chat("sft")
    assert code == 0, err
    run = result["run"]
    assert (tmp_path / "runs" / "r-1" / "adapter" / "chat_template.jinja").read_text() == MINE
    (tmp_path / "mine.jinja").unlink()  # the run needs nothing but itself
    assert main(["eval", run, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    losses = [figures["validation_loss"] for figures in (again, result)]
    for side in ("base", "adapted"):
        assert losses[0][side] == pytest.approx(losses[1][side], abs=1e-6)
    merged = tmp_path / "merged"
    assert main(["merge", run, "--to", str(merged), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proof"]["mean_kl"] < 1e-6
    assert AutoTokenizer.from_pretrained(merged).chat_template == MINE
    stops = json.loads((merged / "generation_config.json").read_text())["eos_token_id"]
    assert AutoTokenizer.from_pretrained(merged).convert_tokens_to_ids("<|endoftext|>") in stops
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert main(["chat", run, "--json", "--max-new-tokens", "2"]) == 0


@pytest.mark.parametrize(("template", "stop"), [("plain", "<|im_end|>"), ("chatml", "<|im_end|>")])
def test_trains_with_bundled_templates(lora_chat, template, stop):
    code, shown, err = lora_chat("data", template, "--show", "1")
    assert code == 0, err
    assert shown["total"]["stops"] == shown["total"]["replies"] == 8


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "Cannot read the chat template"),
        (b"", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"{% for %}", "chat template"),
        (b"{{ messages[0].content }}", "message 2"),
    ],
)
def test_rejects_invalid_template_before_weights_load(lora_chat, tmp_path, text, told):
    path = tmp_path / "other.jinja"
    if text is not None:
        path.write_bytes(text)
    code, _, err = lora_chat("sft", "other.jinja")
    assert code == 3
    assert told in err
    assert not (tmp_path / "runs").exists()
