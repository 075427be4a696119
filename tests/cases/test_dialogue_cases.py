"""Dialogues as people have them, through the command line: read with the exact tokens, or refused in one message.

DIALOGUES.md in this folder lists the kinds of inputs, and the tests that cover each.
"""

import json
import re
from pathlib import Path

import pytest
import trl

from lora_chat.cli import main

QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
RECIPE = """
base: {name: tiny-random}
quantization: {mode: none}
data: {train: train, validation: held_out.jsonl, max_length: 4096}
evaluation: {samples: 1}
"""


def user(text, **more):
    return {"role": "user", "content": text, **more}


def reply(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def call(name, **arguments):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": f"Do {name}", "parameters": parameters}}


PLAIN = {"messages": [user("Is it open?"), reply("Until six.")]}


@pytest.fixture
def command(cache_home, tmp_path, capsys):
    """A function that writes a file of data and runs `data` on it; it returns the exit code, stdout and stderr."""

    def run(content, name="train.jsonl", **settings):
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "held_out.jsonl").write_text(json.dumps(PLAIN) + "\n")
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        chosen = {"data.train": tmp_path / name, **settings}
        arguments = [text for key, value in chosen.items() for text in ("--set", f"{key}={value}")]
        code = main(["data", str(tmp_path / "recipe.yaml"), "--json", "--show", "99", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def accepted(command, tiny_tokenizer):
    """A function that returns the rows of accepted data as (ids, text with loss), and the statistics."""

    def run(content, name="train.jsonl", **settings):
        code, out, err = command(content, name, **settings)
        assert code == 0, err
        result = json.loads(out)
        rows = []
        for row in result["shown"]:
            assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
            trained = [label for label in row["labels"] if label != -100]
            rows.append((row["input_ids"], tiny_tokenizer.decode(trained)))
        return rows, result["total"]

    return run


@pytest.fixture
def refused(command):
    """A function that returns the message for refused data."""

    def run(content, name="train.jsonl", **settings):
        code, out, err = command(content, name, **settings)
        assert code == 3, out or err
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def chat_ids(tiny_tokenizer):
    """A function that returns the ids of Transformers for messages."""

    def run(messages, tools=None, template=None):
        return tiny_tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, return_dict=False)

    return run


# Rows whose meaning is the messages beside them: the ids must be the ids of these messages.
READ = {
    "system beside messages": (
        [{"system": "Answer in Welsh.", "messages": [user("Tea?"), reply("Te.")]}],
        [[system("Answer in Welsh."), user("Tea?"), reply("Te.")]],
    ),
    "system beside conversations with roles": (
        [{"system_prompt": "Answer in Welsh.", "conversations": [user("Tea?"), reply("Te.")]}],
        [[system("Answer in Welsh."), user("Tea?"), reply("Te.")]],
    ),
    "context beside an instruction": (
        [
            {
                "instruction": "Who built it?",
                "context": "The mill was built by Ada.",
                "response": "Ada.",
                "category": "qa",
            },
            {"instruction": "Name a tree.", "context": "", "response": "Elm.", "category": "open"},
        ],
        [
            [user("Who built it?\nThe mill was built by Ada."), reply("Ada.")],
            [user("Name a tree."), reply("Elm.")],
        ],
    ),
    "weight of all parts": (
        [{"messages": [user("Two?"), reply([{"type": "text", "text": "Three.", "weight": 1}])]}],
        [[user("Two?"), reply("Three.")]],
    ),
    "assistant first": (
        [{"messages": [system("You are Bo."), reply("Come in."), user("Where to?"), reply("Up.")]}],
        [[system("You are Bo."), reply("Come in."), user("Where to?"), reply("Up.")]],
    ),
    "open end": (
        [
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                    {"from": "human", "value": "c"},
                ]
            }
        ],
        [[user("a"), reply("b")]],
    ),
    "other names of roles": (
        [{"messages": [{"role": "Human", "content": "a"}, {"role": "GPT", "content": "b"}]}],
        [[user("a"), reply("b")]],
    ),
    "messages as JSON text": (
        [{"messages": json.dumps([user("Tea?"), reply("Te.")])}],
        [[user("Tea?"), reply("Te.")]],
    ),
    "parts with value": (
        [
            {
                "messages": [
                    user([{"type": "text", "value": "Tea?"}], loss_weight=0.0),
                    reply([{"type": "text", "value": "Te."}], loss_weight=1.0),
                ]
            }
        ],
        [[user("Tea?"), reply("Te.")]],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_reads_the_meaning_of_each_row(accepted, chat_ids, name):
    rows, meanings = READ[name]
    read, _ = accepted(rows)
    expected = [chat_ids(messages)[:-1] for messages in meanings]  # the line feed after the last reply is not trained
    assert [ids for ids, _ in read] == expected
    for (_, trained), messages in zip(read, meanings, strict=True):
        assert trained == "".join(f"{m['content']}<|im_end|>" for m in messages if m["role"] == "assistant")


def test_an_open_end_is_counted(accepted):
    _, total = accepted(READ["open end"][0])
    assert total["notes"] == {"open_end": 1}


def test_numbers_are_answers(accepted, chat_ids, tmp_path):
    source = f"{{path: {tmp_path / 'train.jsonl'}, columns: {{user: q, assistant: a}}}}"
    rows, _ = accepted([{"q": "3 and 4?", "a": 7}, {"q": "Is it so?", "a": True}], **{"data.train": source})
    assert rows[0] == (chat_ids([user("3 and 4?"), reply("7")])[:-1], "7<|im_end|>")
    assert rows[1][1].lower() == "true<|im_end|>"


# Refused rows, and what the message must contain.
REFUSED = {
    "replies marked false": (
        [PLAIN | {"label": True}, {"messages": [user("Up?"), reply("Go away.")], "label": False}],
        ["preference data", "label", "data.drop_unwanted"],
    ),
    "images": ([PLAIN | {"images": ["a.png"]}], ["images"]),
    "weight of a part": (
        [
            {
                "messages": [
                    user("One?"),
                    reply(
                        [{"type": "text", "text": "No. ", "weight": 0}, {"type": "text", "text": "Yes.", "weight": 1}]
                    ),
                ]
            }
        ],
        ["weight"],
    ),
    "speakers that the template ignores": (
        [
            {
                "messages": [
                    user("Tea.", name="Ann"),
                    reply("Ok."),
                    user("Milk.", name="Cy"),
                    reply("Ann: tea, Cy: milk."),
                ]
            }
        ],
        ["leaves out", "name", "message 1"],
    ),
    "preference pairs": (
        [
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            }
        ],
        ["these are preference pairs", "to train on the chosen replies"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_would_be_lost(refused, name):
    rows, parts = REFUSED[name]
    message = refused(rows)
    for part in parts:
        assert part in message


def test_unwanted_replies_are_left_out_and_counted(accepted):
    rows, total = accepted(REFUSED["replies marked false"][0], **{"data.drop_unwanted": "true"})
    assert [trained for _, trained in rows] == ["Until six.<|im_end|>"]
    assert total["lines"] == 2
    assert total["accepted"] == 1
    assert total["unwanted"] == 1


def test_tools_beside_texts_reach_the_template(accepted, chat_ids):
    tools = [tool("weather", city={"type": "string"})]
    rows, _ = accepted(
        [{"prompt": "Rain in Ayr?", "completion": "On which day?", "tools": tools}], **{"data.template": QWEN3}
    )
    messages = [user("Rain in Ayr?"), reply("On which day?")]
    prompt = chat_ids(messages[:1], tools, QWEN3.read_text())
    assert rows[0][0][: len(prompt)] == prompt
    assert rows[0][1].endswith("On which day?<|im_end|>")


def test_nulls_of_aligned_structs_are_no_arguments(accepted, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        {
            "messages": [
                user("Turn."),
                call("turn", angle=40, speed=None),
                {"role": "tool", "content": "ok"},
                reply("Done."),
            ]
        },
        {"messages": [user("Go."), call("go", angle=None, speed=3), {"role": "tool", "content": "ok"}, reply("Done.")]},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "calls.parquet")
    read, _ = accepted(None, "calls.parquet", **{"data.template": QWEN3})
    trained = "".join(text for _, text in read)
    assert '"arguments": {"angle": 40}' in trained
    assert '"arguments": {"speed": 3}' in trained
    assert "null" not in trained


def test_splits_of_a_folder_are_not_mixed(accepted, tmp_path, capsys):
    for split in ("train", "valid", "test"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / f"{split}.jsonl").write_text(json.dumps({"messages": [user("a"), reply(split)]}) + "\n")
    (tmp_path / "folder" / "README.md").write_text("# About\n")
    rows, total = accepted(None, "folder")
    assert [trained for _, trained in rows] == ["train<|im_end|>"]
    assert [Path(file).name for file in total["files"]] == ["train.jsonl"]


def test_a_template_that_drops_a_message_is_refused(refused, tmp_path):
    template = tmp_path / "short.jinja"
    template.write_text(
        "{%- for m in messages -%}{%- if m['role'] in ['user', 'assistant'] -%}"
        "{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    message = refused(READ["assistant first"][0], **{"data.template": template})
    assert "the chat template leaves out the system message" in message


def test_a_byte_order_mark_of_a_template_is_dropped(accepted, chat_ids, tiny_tokenizer, tmp_path):
    template = tmp_path / "mark.jinja"
    template.write_text("\ufeff" + tiny_tokenizer.chat_template, encoding="utf-8")
    rows, _ = accepted([PLAIN], **{"data.template": template})
    assert rows[0][0] == chat_ids(PLAIN["messages"])[:-1]


CHATML = "<|im_start|>user\nWhat is {0}?<|im_end|>\n<|im_start|>assistant\n{0}<|im_end|>\n"


def test_rendered_chats_are_named(refused):
    message = refused([{"text": CHATML.format(number)} for number in range(30)], **{"data.max_length": 256})
    assert "rendered chats" in message
    assert "messages" in message


def test_an_assistant_says_something_and_then_calls(accepted, chat_ids):
    tools = [tool("order", id={"type": "integer"})]
    messages = [
        user("Where is 7?"),
        reply("I will look."),
        call("order", id=7),
        {"role": "tool", "content": "here"},
        reply("Here."),
    ]
    rows, _ = accepted([{"messages": messages, "tools": tools}], **{"data.template": QWEN3})
    whole = chat_ids(messages, tools, QWEN3.read_text())
    assert len(rows) >= 1
    trained = "".join(text for _, text in rows)
    assert trained.count("I will look.") == 1
    assert trained.count('{"name": "order", "arguments": {"id": 7}}') == 1
    assert trained.endswith("Here.<|im_end|>")
    last = rows[-1][0]
    assert last == whole[: len(last)] or "think" in trained


def test_calls_as_roles_are_calls(accepted):
    tools = json.dumps([tool("clock")])
    rows = [
        {
            "tools": tools,
            "messages": [
                user("Time?"),
                {"role": "tool_call", "content": '{"name": "clock", "arguments": {}}'},
                {"role": "tool_response", "content": "noon"},
                reply("Noon."),
            ],
        }
    ]
    read, _ = accepted(rows, **{"data.template": QWEN3})
    trained = "".join(text for _, text in read)
    assert '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call><|im_end|>' in trained


FILES = {
    "header": ("faq.csv", b'question,answer\nWhat is oak?,"A tree, mostly."\n', ["data.columns", "question", "answer"]),
    "utf-16": ("chats.jsonl", (json.dumps(PLAIN) + "\n").encode("utf-16"), ["UTF-16", "UTF-8"]),
    "git-lfs": (
        "chats.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n",
        ["git lfs pull"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_other_kinds_of_files_are_named_in_one_message(refused, name):
    file, content, parts = FILES[name]
    message = refused(content, file)
    assert "is not valid JSON" not in message
    assert len(message.strip().splitlines()) <= 4
    for part in parts:
        assert part in message


def test_one_object_on_many_lines_is_one_dialogue(accepted, chat_ids):
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    rows, _ = accepted(json.dumps(row, indent=2), "one.json")
    assert [ids for ids, _ in rows] == [chat_ids([user("a"), reply("b")])[:-1]]


def test_elements_of_a_list_on_one_line_have_their_numbers(refused):
    rows = [PLAIN] * 57 + [{"messages": [user("a"), reply("")]}] + [PLAIN] * 3
    message = refused(json.dumps(rows), "list.json")
    assert "58" in message.split("message 2")[0]


def test_ordinary_added_tokens_stay_tokens(accepted, random_base, tmp_path):
    import shutil

    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(random_base("llama"), base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    names = ["<div>", "</div>", "<b>", "</b>"]
    assert tokenizer.add_tokens([AddedToken(name, special=False) for name in names]) == 4
    tokenizer.save_pretrained(base)
    widen_embeddings(base, len(tokenizer))
    messages = [user("Write a box."), reply("<div>\n  <b>clay</b>\n</div>")]
    rows, total = accepted([{"messages": messages}], **{"base.name": base})
    assert rows[0][0] == tokenizer.apply_chat_template(messages, return_dict=False)[:-1]
    assert total["plain_tokens"] == {}


def widen_embeddings(folder, size):
    """Give a base random embeddings for more tokens."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if value.shape[0] == config["vocab_size"]:
            weights[name] = torch.cat([value, value[: size - len(value)]]) if size > len(value) else value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": max(size, config["vocab_size"])}))


def test_named_tests_exist():
    tests = Path(__file__).parents[1]
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", Path(__file__).with_name("DIALOGUES.md").read_text("utf-8"))
    assert len(named) > 20
    absent = [(file, name) for file, name in named if f"def {name}".rstrip() not in (tests / file).read_text("utf-8")]
    assert absent == []
