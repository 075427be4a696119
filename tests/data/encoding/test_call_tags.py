"""Calls and results in tags are tool calls where the chat template writes the same tags, and text everywhere else."""

import copy
import json

import pytest
from transformers import PreTrainedTokenizerBase

from lora_chat.data.encoding.call_tags import CallTagReader
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.parsing.rows import ReadingOptions, RowChunk
from lora_chat.data.reading.raw_row import RawRow
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodingOptions

TAGGED = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'tool' %}{{ '<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- else %}{{ m.content }}{% endif %}
{%- for c in m.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' + c.function.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def tokenizer_with(tiny_tokenizer, template):
    tokenizer: PreTrainedTokenizerBase = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"])
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tagged(tiny_tokenizer):
    return tokenizer_with(tiny_tokenizer, TAGGED)


@pytest.fixture(scope="module")
def reader(tagged):
    return CallTagReader(tagged)


def message(role, content, **keys):
    return {"role": role, "content": content, **keys}


def tags(tag, *contents):
    return "\n".join(f"<{tag}>\n{content}\n</{tag}>" for content in contents)


CALL, OTHER = '{"arguments": {"at": "sky"}, "name": "look"}', '{"name": "wait", "arguments": {}}'
Q, A = message("user", "q"), message("assistant", "a")


def tool_calls(*texts):
    return [{"type": "function", "function": json.loads(text)} for text in texts]


@pytest.mark.parametrize("role", ["tool", "user"])
@pytest.mark.parametrize("text", ["", "Let me see.\n"])
def test_exact_tags_are_calls_and_results(reader, role, text):
    rows = [
        [
            Q,
            message("assistant", text + tags("tool_call", CALL, OTHER)),
            message(role, tags("tool_response", "1", "2")),
            A,
        ],
        [
            Q,
            message("assistant", text.strip(), tool_calls=tool_calls(CALL, OTHER)),
            message("tool", "1"),
            message("tool", "2"),
            A,
        ],
    ]
    in_tags, meant = (parse_dialogue({"messages": messages}) for messages in rows)
    assert reader.read(in_tags) == (meant, 2)
    assert reader.read(meant) == (meant, 0)


@pytest.mark.parametrize(
    "messages",
    [
        [Q, message("assistant", tags("tool_call", "{'name': 'look', 'arguments': {}}"))],
        [Q, message("assistant", tags("tool_call", '{"name": "look", "arguments": {}, "why": "x"}'))],
        [Q, message("assistant", tags("tool_call", '{"name": "look", "arguments": "{}"}'))],
        [Q, message("assistant", tags("tool_call", "<tool_call>" + CALL))],
        [Q, message("assistant", tags("tool_call", CALL) + "\nand then")],
        [Q, message("assistant", "Write <tool_call> before a call.")],
        [Q, message("assistant", tags("tool_call", CALL)), message("user", "no <tool_response>x</tool_response>"), A],
        [message("user", tags("tool_call", CALL)), message("assistant", tags("tool_call", CALL))],
        [Q, A],
    ],
)
def test_other_tags_stay_text(reader, messages):
    dialogue = parse_dialogue({"messages": messages})
    assert reader.read(dialogue) == (dialogue, 0)


def test_tags_stay_text_under_a_template_without_them(tiny_tokenizer):
    tokenizer = tokenizer_with(tiny_tokenizer, None)
    install_template(tokenizer)
    dialogue = parse_dialogue({"messages": [Q, message("assistant", tags("tool_call", CALL))]})
    assert CallTagReader(tokenizer).read(dialogue) == (dialogue, 0)


def test_tags_are_trained_as_the_tokens_of_the_template(tagged):
    messages = [Q, message("assistant", tags("tool_call", CALL)), message("tool", tags("tool_response", "blue")), A]
    encoder = ChunkEncoder(tagged, [tagged.convert_tokens_to_ids("<|im_end|>")], EncodingOptions(ReadingOptions(), 500))
    chunk = encoder(RowChunk("rows.jsonl", "messages", (RawRow(1, {"messages": messages}),)))
    ((_, (row,)),) = chunk.dialogues
    meant = [Q, message("assistant", "", tool_calls=tool_calls(CALL)), message("tool", "blue"), A]
    expected = tagged.apply_chat_template(meant, tokenize=True, return_dict=False)
    assert row.input_ids == expected[: len(row.input_ids)]
    assert tagged.convert_tokens_to_ids("<tool_call>") in row.labels
    assert chunk.ledger.notes == {"call_tags": 1}


def test_long_texts_of_tags_take_little_time(reader):
    for text in ("<tool_call>" * 200_000, " " * 1_000_000 + "<tool_call>", "<tool_call>{}</tool_call>" * 50_000 + "x"):
        dialogue = parse_dialogue({"messages": [Q, message("assistant", text)]})
        assert reader.read(dialogue) == (dialogue, 0)
