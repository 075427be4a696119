"""`lora-chat data RECIPE`, and the data statistics that `sft` prints and saves."""

import contextlib
import json
import os
import re
import sys

import pytest

from lora_chat.cli import main


def row(i, answer="an answer"):
    return {
        "messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"{answer} {i}"}]
    }


def lines(rows):
    return "".join(json.dumps(line) + "\n" for line in rows)


@pytest.fixture
def data(cache_home, tmp_path, capsys, monkeypatch):
    """Return a function that runs the command on files and a `data` section and returns code, stdout, stderr."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(section, *arguments, command="data", **contents):
        for name, content in contents.items():
            path = tmp_path / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            f"base: {{name: tiny-random}}\nquantization: {{mode: none}}\noutput: {{directory: {tmp_path}/runs}}\n"
            "training: {max_steps: 1, effective_batch_size: 2}\nevaluation: {samples: 0}\n"
            f"data: {json.dumps({'validation_share': 0.25, **section})}\n"
        )
        capsys.readouterr()
        code = main([command, str(recipe), *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def test_prints_all_statistics(data, tmp_path):
    rows = [*(row(i) for i in range(12)), row(0), row(1), {"messages": []}]
    code, out, err = data({"train": "a.jsonl", "skip_bad": 2, "max_length": 256}, a_jsonl=lines(rows) + "\nnonsense\n")
    assert (code, err.replace("Preparing the base tiny-random", "").count("Error")) == (0, 0)
    cells = [line.split() for line in out.splitlines()]
    assert out.splitlines()[0] == str(tmp_path / "a.jsonl")
    assert ["recognised", "messages"] in cells
    assert re.search(r"ledger +17 lines = 14 accepted \+ 1 blank \+ 2 faulty and left out\n", out)
    assert re.search(
        rf"refused +{re.escape(str(tmp_path))}/a\.jsonl:15: `messages` must be a list with at least one", out
    )
    assert re.search(r"a\.jsonl:17: is not valid JSON: .* at column 1\n +nonsense\n", out)
    assert ", 2 duplicates" in out
    assert re.search(r"tokens +[\d,]+, supervised [\d,]+ \(\d+%\)", out)
    assert "14 of 14 replies end with a trained one (100%)" in out
    assert {"user", "assistant", "template"} <= {line[0] for line in cells if line}
    assert "length in tokens" in out
    assert "####" in out
    assert re.search(
        r"packing +\d+% of positions would contain a token in rows of 256, \d+% in padded batches of \d", out
    )
    roles = {
        name: (int(a), int(b)) for name, a, b in re.findall(r"^(user|assistant|template) +(\d+) +(\d+)$", out, re.M)
    }
    tokens, supervised = re.search(r"^tokens +(\d+), supervised (\d+)", out, re.M).groups()
    assert [sum(column) for column in zip(*roles.values(), strict=True)] == [int(tokens), int(supervised)]
    assert roles["user"][1] == 0


def test_json_prints_the_whole_ledger_and_nothing_else(data):
    code, out, _ = data({"train": "a.jsonl"}, "--json", "--show", "2", a_jsonl=lines(row(i) for i in range(8)))
    report = json.loads(out)
    assert code == 0
    assert len(out.splitlines()) == 1
    assert set(report) >= {
        "sources",
        "total",
        "duplicates",
        "train_dialogues",
        "validation_dialogues",
        "histogram",
        "packing",
    }
    assert report["total"]["lines"] == report["total"]["accepted"] == 8
    assert (report["train_dialogues"], report["validation_dialogues"]) == (6, 2)
    assert len(report["shown"]) == 2
    for dialogue in report["shown"]:
        assert set(dialogue) == {"path", "line", "input_ids", "labels"}
        assert len(dialogue["input_ids"]) == len(dialogue["labels"])


def test_show_marks_supervised_tokens_without_colour(data):
    code, out, _ = data({"train": "a.jsonl"}, "--show", "3", a_jsonl=lines(row(i) for i in range(8)))
    assert code == 0
    shown = re.findall(r"--- (\S+):(\d+), (\d+) tokens, (\d+) supervised\n(.*?)(?=\n\n---|\Z)", out, re.DOTALL)
    assert len(shown) == 3
    for _, line, _, supervised, text in shown:
        i = int(line) - 1
        assert (
            text.strip()
            == f"<|im_start|>user\nquestion {i}<|im_end|>\n<|im_start|>assistant\n[[an answer {i}<|im_end|>]]"
        )
        assert int(supervised) == len(f"an answer {i}") + 1
    assert "\x1b" not in out


def test_show_colours_supervised_tokens_on_a_terminal(data, monkeypatch, tmp_path, capsys):
    rows = lines(row(i) for i in range(8))
    data({"train": "a.jsonl"}, a_jsonl=rows)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, out, _ = data({"train": "a.jsonl"}, "--show", "1")
    assert re.search("assistant\n\x1b\\[1;32man answer \\d<\\|im_end\\|>\x1b\\[0m", out)
    assert "[[" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = data({"train": "a.jsonl"}, "--show", "1")
    assert "\x1b" not in out
    assert "[[an answer" in out


EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2028\x00\rgone"


def test_escapes_control_characters_of_the_data(data):
    rows = [row(i, answer=f"{EVIL}[[x]]") for i in range(8)]
    bad = {"messages": [{"role": EVIL, "content": EVIL}]}
    odd = {EVIL: EVIL, "messages": [{"role": "user", "content": "q", EVIL: 1}]}
    contents = lines([*rows, bad, odd]) + json.dumps({"messages": EVIL}, ensure_ascii=False) + "\n" + EVIL + "\n"
    for arguments in (["--show", "8"], ["--set", "data.skip_bad=0"]):
        code, out, err = data({"train": "a.jsonl", "skip_bad": 4}, *arguments, a_jsonl=contents)
        assert code == (0 if "--show" in arguments else 3)
        assert not set(out + err) & {"\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\x00", "\r"}
        assert "\\x1b[2J" in out + err


def test_exits_with_3_for_bad_data_and_2_for_a_bad_recipe(data):
    code, out, err = data({"train": "a.jsonl"}, "--json", a_jsonl=lines([row(1), {"messages": 3}, row(2)]))
    assert (code, out) == (3, "")
    assert re.search(r"1 line of \S+a\.jsonl cannot be used:\n\S+a\.jsonl:2: `messages` must be a list.*\n +\S", err)
    assert data({"train": "none.jsonl"})[0] == 3
    assert data({"train": "a.jsonl", "trian": 1})[0] == 2
    assert data({"train": {"path": "a.jsonl", "weight": 0}})[0] == 2
    assert data({"train": {"path": "a.jsonl", "hub": "a/b"}})[0] == 2
    assert data({"train": "a.jsonl", "columns": {"user": "q"}})[0] == 2
    assert data({"train": "a.jsonl", "format": "alpca"})[0] == 2


@pytest.mark.parametrize("number", ["-1", "x"])
def test_rejects_an_invalid_number_of_dialogues(data, number):
    with pytest.raises(SystemExit) as caught:
        data({"train": "a.jsonl"}, "--show", number, a_jsonl=lines(row(i) for i in range(8)))
    assert caught.value.code == 2


def test_mixes_two_sources_with_weights_and_formats(data, tmp_path):
    table = "prompt,completion\n" + "".join(f"ask {i},say {i}\n" for i in range(8))
    sources = [{"path": "a.jsonl", "weight": 2}, {"path": "b.csv", "weight": 0.5}]
    contents = {"a_jsonl": lines(row(i) for i in range(8)), "b_csv": table}
    code, out, _ = data({"train": sources, "validation": "v.jsonl"}, v_jsonl=lines([row(99), row(98)]), **contents)
    assert code == 0
    assert f"{tmp_path}/a.jsonl, weight 2\n  recognised  messages\n  ledger      8 lines = 8 accepted\n" in out
    assert f"{tmp_path}/b.csv, weight 0.5\n  recognised  prompt_completion\n  ledger      8 lines = 8 accepted\n" in out
    assert "12 to train on, 2 held out" in out
    assert re.search(r"rows +20 an epoch", out)
    report = json.loads(data({"train": sources}, "--json")[1])
    assert [(s["weight"], list(s["files"].values())) for s in report["sources"]] == [
        (2, ["messages"]),
        (0.5, ["prompt_completion"]),
    ]
    assert report["total"]["lines"] == 16


def test_accepts_folders_and_globs(data):
    contents = {f"in__{name}_jsonl": lines(row(f"{name}{i}") for i in range(4)) for name in "ab"}
    contents["in__c_csv"] = "instruction,output\n" + "".join(f"do {i},done {i}\n" for i in range(4))
    for train, files, accepted in (("in", 3, 12), ("in/*.jsonl", 2, 8), (["in/a.jsonl", "in/c.csv"], 2, 8)):
        code, out, _ = data({"train": train}, "--json", **contents)
        report = json.loads(out)["total"]
        assert (code, len(report["files"]), report["accepted"]) == (0, files, accepted)
    assert data({"train": "in/*.txt"})[0] == 3


def test_supervises_only_the_last_reply_on_request(data):
    long = [{"messages": row(i, "first")["messages"] + row(i, "second")["messages"]} for i in range(8)]
    contents = {"a_jsonl": lines(long), "b_jsonl": lines([long[0] | {"turns": "last"}, *long[1:]])}
    for section, replies in (
        ({"train": "a.jsonl"}, 16),
        ({"train": "a.jsonl", "turns": "last"}, 8),
        ({"train": {"path": "a.jsonl", "turns": "last"}}, 8),
        ({"train": "b.jsonl"}, 15),
        ({"train": [{"path": "a.jsonl", "turns": "last"}, "b.jsonl"]}, 23),
    ):
        assert json.loads(data(section, "--json", **contents)[1])["total"]["replies"] == replies
    _, out, _ = data({"train": "a.jsonl", "turns": "last"}, "--show", "6")
    assert "[[first" not in out
    assert out.count("[[second") == 6


def test_rejects_an_unsupervised_last_reply_if_only_it_is_trained(data):
    rows = [{"messages": row(i)["messages"] + row(i)["messages"]} for i in range(8)]
    rows[2]["messages"][3] = rows[2]["messages"][3] | {"train": False}
    for section, third in (({"train": "a.jsonl", "turns": "last"}, {}), ({"train": "a.jsonl"}, {"turns": "last"})):
        changed = lines([*rows[:2], rows[2] | third, *rows[3:]])
        code, _, err = data(section, a_jsonl=changed)
        assert code == 3
        assert "a.jsonl:3: has a last reply that is not trained" in err


def test_sft_prints_a_short_ledger_and_saves_the_whole_one(data, tmp_path):
    rows = [row(0), *(row(i) for i in range(12)), {"messages": [{"role": "user", "content": "no answer"}]}]
    section = {"train": "a.jsonl", "skip_bad": 1}
    code, out, err = data(section, "--json", command="sft", a_jsonl=lines(rows) + "\n")
    assert code == 0
    assert re.search(
        r"^Data +\S*a\.jsonl, messages: 15 lines = 13 accepted \+ 1 blank \+ 1 faulty and left out$", err, re.M
    )
    assert re.search(
        r"^Dialogues \d+ to train on, 3 held out; longest \d+ tokens; loss on \d+ of \d+ tokens$", err, re.M
    )
    kept = json.loads((tmp_path / "runs" / "recipe-1" / "data.json").read_text())
    assert json.loads(out)["run"] == str(tmp_path / "runs" / "recipe-1")
    assert kept == json.loads(data(section, "--json")[1])
    assert kept["total"]["refusals"][0].startswith(f"{tmp_path}/a.jsonl:14: has no assistant message")


def test_packing_respects_the_positions_of_the_base(data):
    rows = lines(row(i) for i in range(8))
    assert (
        json.loads(data({"train": "a.jsonl", "max_length": 5000}, "--json", a_jsonl=rows)[1])["packing"]["packed_to"]
        == 1024
    )


def test_error_shows_faulty_lines_even_if_they_are_allowed(data):
    code, _, err = data({"train": "a.jsonl", "skip_bad": 100}, a_jsonl=lines([{"chat": 1}, {"chat": 2}]))
    assert code == 3
    assert "contains no dialogue (2 lines, 0 of them blank, 2 refused)." in err
    assert "a.jsonl:1: " in err
    assert "its columns: chat" in err


def test_leaves_no_files_beside_the_recipe(data, tmp_path):
    data({"train": "a.jsonl"}, "--show", "2", a_jsonl=lines(row(i) for i in range(8)))
    assert {path.name for path in tmp_path.iterdir() if path.name != "cache"} == {"a.jsonl", "recipe.yaml"}


@pytest.mark.slow
def test_prints_no_colour_to_a_pipe(data, tmp_path):
    data({"train": "a.jsonl"}, a_jsonl=lines(row(i) for i in range(8)))
    output, pipe = os.pipe()
    with os.fdopen(output) as reader:
        with os.fdopen(pipe, "w") as writer, contextlib.redirect_stdout(writer):
            code = main(["data", str(tmp_path / "recipe.yaml"), "--show", "2"])
        shown = reader.read()
    assert code == 0
    assert "\x1b" not in shown
    assert "[[an answer" in shown


def test_shows_loss_on_prompts_and_counts_it(data):
    contents = {"a_jsonl": lines(row(i) for i in range(8))}
    code, out, _ = data({"train": "a.jsonl", "loss": "all"}, "--json", **contents)
    total = json.loads(out)["total"]
    assert code == 0
    assert total["supervised_tokens"] == total["tokens"]
    assert (total["loss_on_prompts"], total["stops"], total["replies"]) == (8, 8, 8)
    assert "on prompts too in 8 dialogues" in data({"train": "a.jsonl", "loss": "all"}, **contents)[1]
    code, _, err = data({"train": "a.jsonl", "loss": "all", "turns": "last"}, **contents)
    assert (code, "contradicts" in err) == (2, True)


def test_says_how_many_tokens_the_rows_of_a_rewriting_template_have(data):
    long = [{"messages": [message for j in range(8) for message in row(10 * i + j)["messages"]]} for i in range(8)]
    template = (
        "{% for m in messages %}{% set is_old = m.role == 'assistant' and not loop.last %}"
        "{% set text = m.content[:1] if is_old else m.content %}"
        "{{ '### ' + m.role + ': ' + text + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant: ' }}{% endif %}"
    )
    section = {"train": "a.jsonl", "template": "t.jinja", "max_length": 4000}
    contents = {"a_jsonl": lines(long), "t_jinja": template}
    code, out, _ = data(section, **contents)
    assert code == 0
    total = json.loads(data(section, "--json", **contents)[1])["total"]
    assert total["rows"] == 64
    assert f"{total['tokens']:,} tokens in rows, {total['dialogue_tokens']:,} in the longest row of each" in out
    assert "data.turns=last" in out
    assert "times as many" not in data(section | {"turns": "last"}, **contents)[1]
