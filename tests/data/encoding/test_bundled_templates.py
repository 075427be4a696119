import copy

import pytest

from lora_chat.config.data import BUNDLED_TEMPLATES, DataSection
from lora_chat.data.encoding.bundled_templates import (
    BOS_PREFIX,
    CHAT_TEMPLATES,
    DEFAULT_TEMPLATE,
    EMBEDDED_TEMPLATE_DIGESTS,
    find_bundled_template,
)
from lora_chat.data.encoding.chat_template import install_template, is_trusted_template, render_ids, render_texts
from lora_chat.data.encoding.encode import encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.errors import DataError
from lora_chat.system.hashing import digest_text

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]


def test_recipes_can_choose_exactly_the_bundled_templates():
    assert tuple(template.name for template in CHAT_TEMPLATES) == BUNDLED_TEMPLATES
    assert DEFAULT_TEMPLATE in CHAT_TEMPLATES


def test_help_of_the_setting_names_every_bundled_template():
    description = DataSection.model_fields["template"].description
    assert all(f"`{name}`" in description for name in BUNDLED_TEMPLATES)


@pytest.mark.parametrize("template", CHAT_TEMPLATES, ids=lambda template: template.name)
def test_bundled_template_is_trusted_and_found_by_its_digest(template):
    for text in template.variants:
        assert is_trusted_template(text)
        assert find_bundled_template(digest_text(text)) is template
        assert not is_trusted_template(text + " ")
        assert find_bundled_template(digest_text(text + " ")) is None


def test_template_of_an_embedded_base_is_trusted_but_not_bundled():
    assert not any(find_bundled_template(digest) for digest in EMBEDDED_TEMPLATE_DIGESTS)


@pytest.mark.parametrize("template", CHAT_TEMPLATES, ids=lambda template: template.name)
def test_prompt_of_a_bundled_template_is_the_beginning_of_the_whole_chat(tiny_tokenizer, template):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    assert install_template(tokenizer, template.name) in template.variants
    (prompt,) = render_texts(tokenizer, [CHAT[:1]], add_generation_prompt=True)
    (whole,) = render_texts(tokenizer, [CHAT], add_generation_prompt=False)
    assert whole.startswith(prompt + "hello there")


def test_only_a_template_that_adds_bos_has_a_variant_with_it():
    for template in CHAT_TEMPLATES:
        assert (BOS_PREFIX + template.text in template.variants) is template.adds_bos


@pytest.mark.parametrize("template", [t for t in CHAT_TEMPLATES if t.required_tokens], ids=lambda t: t.name)
def test_refuses_a_template_whose_tokens_the_base_lacks(tiny_tokenizer, template):
    class WithoutTokens:
        chat_template = None

        def get_vocab(self):
            return dict.fromkeys(template.required_tokens[1:], 0)

    with pytest.raises(DataError, match="vocabulary"):
        install_template(WithoutTokens(), template.name)


@pytest.mark.parametrize("name", ["plain_tools", "chatml_tools"])
def test_template_with_tools_trains_calls_after_the_prompt_of_inference(tiny_tokenizer, name):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    install_template(tokenizer, name)
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky", "é": [1, {"x": None}]}}}
    tools = [{"type": "function", "function": {"name": "look", "description": "See", "parameters": {}}}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "look up"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "blue"},
        {"role": "tool", "content": "dark"},
        {"role": "assistant", "content": "It is blue.", "tool_calls": [call]},
        {"role": "tool", "content": "grey"},
        {"role": "assistant", "content": "Grey now."},
    ]
    dialogue = parse_dialogue({"messages": messages, "tools": tools})
    (row,) = encode_dialogue(dialogue, tokenizer, [tokenizer.eos_token_id])
    text = tokenizer.decode(row.input_ids)
    assert tokenizer.apply_chat_template(messages, tools=tools, tokenize=False).startswith(text)
    written = '<tool_call>\n{"name": "look", "arguments": {"at": "sky", "é": [1, {"x": null}]}}\n</tool_call>'
    trained = tokenizer.decode([label for label in row.labels if label >= 0])
    assert trained == f"{written}\n{written}<|im_end|>It is blue.\n{written}<|im_end|>Grey now.<|im_end|>"
    assert text.count("Be brief.") == text.count('"description": "See"') == 1
    assert all(result in text for result in ("blue", "dark", "grey"))
    begin = next(i for i, label in enumerate(row.labels) if label >= 0)
    assert row.input_ids[:begin] == render_ids(tokenizer, messages[:2], add_generation_prompt=True, tools=tools)
    plain = DEFAULT_TEMPLATE.name if name == "plain_tools" else "chatml"
    without = copy.deepcopy(tiny_tokenizer)
    install_template(without, plain)
    chats = [CHAT, [messages[0], *CHAT]]
    assert render_texts(tokenizer, chats, add_generation_prompt=True) == render_texts(
        without, chats, add_generation_prompt=True
    )
    with pytest.raises(DataError, match=r"leaves out the tools; data\.template=chatml_tools writes them"):
        encode_dialogue(dialogue, without, [without.eos_token_id])


def test_drops_the_byte_order_mark_of_a_template_file(tiny_tokenizer, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_bytes(b"\xef\xbb\xbf{% for m in messages %}\r\n{{ m.content }}{% endfor %}")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    assert install_template(tokenizer, str(file)) == "{% for m in messages %}\r\n{{ m.content }}{% endfor %}"
