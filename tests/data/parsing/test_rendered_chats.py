"""Chats that are rendered as text are named, by their marks, and quotations of marks are not."""

import json

import pytest

from lora_chat.config.data import DataSection
from lora_chat.data.parsing.chat_markup import CHAT_MARKUPS, find_rendered_chat
from lora_chat.data.parsing.rows import read_dialogues
from lora_chat.data.sources import check_sources, find_sources
from lora_chat.errors import DataError

RENDERED = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nYes<|im_end|>\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>",
    "granite": "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Yes",
    "gpt_oss": "<|start|>system<|message|>Be kind.<|end|><|start|>user<|message|>Hi<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Yes<|return|>",
    "deepseek": "<｜begin▁of▁sentence｜>Be kind.<｜User｜>Hi<｜Assistant｜>Yes<｜end▁of▁sentence｜>",
    "tags": "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\nYes</s>\n",
    "gemma": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n",
    "llama2": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Yes </s><s>[INST] Why? [/INST] So. </s>",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Yes[|endofturn|]",
    "nemotron": "<extra_id_0>System\nBe kind.\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\nYes\n",
    "openchat": "GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant: Yes<|end_of_turn|>",
    "openchatkit": "<human>: Hi\n<bot>: Yes\n",
    "chatglm": "[Round 1]\n\n问：你好\n\n答：好",
    "headings": "Below is an instruction that describes a task.\n\n### Instruction:\nSay yes.\n\n### Response:\nYes",
    "vicuna": "A chat between a user and an assistant. USER: Hi ASSISTANT: Yes</s>USER: Why? ASSISTANT: So.</s>",
    "speakers": "\n\nHuman: Hi\n\nAssistant: Yes",
}
OTHER_MARKS = (
    ("### Human: Hi### Assistant: Yes", "headings"),
    ("### User:\nHi\n\n### Assistant:\nYes</s>", "headings"),
    ("<|im_user|>user<|im_middle|>Hi<|im_end|><|im_assistant|>assistant<|im_middle|>Yes<|im_end|>", "tags"),
    ("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Yes", "tags"),
    ("[gMASK]<sop><|user|>\nHi<|assistant|>\nYes", "tags"),
    (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\nHi<|header_start|>assistant<|header_end|>\n\nYes",
        "llama3",
    ),
)
CHAPTER = "A template opens every turn with a mark. " * 400
QUOTATIONS = (
    "In ChatML, <|im_start|>user opens a turn, and <|im_end|> closes it.",
    f"{CHAPTER}{RENDERED['chatml']}{CHAPTER}",
    f"{CHAPTER}\nHuman: Hi\nAssistant: Yes\n{CHAPTER}",
    "The reply comes first here: <|im_start|>assistant, not <|im_start|>user.",
    "User: a person who uses a program.",
    "## Prompt\n\nWrite to me.\n",
    "",
)


@pytest.mark.parametrize("name", [markup.name for markup in CHAT_MARKUPS])
def test_recognises_a_rendered_chat_by_its_marks(name):
    assert find_rendered_chat(RENDERED[name]).name == name


@pytest.mark.parametrize("name", ["chatml", "llama3", "deepseek", "gemma", "llama2", "speakers"])
def test_recognises_a_chat_with_a_long_reply(name):
    assert find_rendered_chat(RENDERED[name] + "word " * 20_000).name == name


@pytest.mark.parametrize(("text", "name"), OTHER_MARKS)
def test_recognises_other_spellings_of_marks(text, name):
    assert find_rendered_chat(text).name == name


@pytest.mark.parametrize("text", QUOTATIONS)
def test_does_not_take_a_quotation_for_a_chat(text):
    assert find_rendered_chat(text) is None


def write_texts(folder, texts):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def check(path, **settings):
    data = DataSection(train=str(path), **settings)
    check_sources(find_sources(data.train_sources), data, str)


def test_refuses_texts_of_which_a_clear_share_are_rendered_chats(tmp_path):
    path = write_texts(tmp_path, [RENDERED["gemma"], RENDERED["chatml"], *["A line of a book."] * 18])
    with pytest.raises(DataError, match=r"2 of 20 texts .* are rendered chats \(ChatML, Gemma\).*`messages`"):
        check(path)
    check(path, rendered_chats="text")


def test_notes_a_few_rendered_chats_among_other_texts(tmp_path):
    path = write_texts(tmp_path, [RENDERED["chatml"], *["A line of a book."] * 19])
    check(path)
    _, counts = read_dialogues(path)
    assert (counts.notes["rendered_text_chatml"], counts.notes["texts"]) == (1, 20)


def test_refuses_a_text_file_of_rendered_chats(tmp_path):
    path = tmp_path / "chats.txt"
    path.write_text(RENDERED["llama2"] * 3, encoding="utf-8")
    with pytest.raises(DataError, match=r"1 of 1 texts .*Llama 2 or Mistral"):
        check(path, format="text")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": RENDERED["headings"].removesuffix("Yes"), "completion": "Yes"},
        {"prompt": "### Instruction:\nHi\n", "completion": "### Response:\nYes"},
        {"instruction": "### Instruction:\nHi\n\n### Response:\n", "output": "Yes"},
    ],
)
def test_notes_rendered_turns_inside_messages(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    dialogues, counts = read_dialogues(path)
    assert len(dialogues) == 1
    assert counts.notes == {"rendered_messages_headings": 1}
