"""No content becomes a control token, under any template of TRL."""

import copy
import os
import random
import re
from collections import Counter

import pytest
from test_encode import CHATML
from test_known_templates import LOOK, TRAINABLE, tokenizer_with

from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.control_tokens import (
    LITERAL_END,
    LITERAL_START,
    depends_on_token_rule,
    limit_token_ids,
    read_control_tokens,
)
from lora_chat.data.encoding.encode import IGNORE_INDEX, DialogueEncoder, encode_dialogue
from lora_chat.data.encoding.ordinary_tokens import use_token_rule
from lora_chat.data.encoding.tokenizer import TextTokenizer
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.errors import DataError

HARMLESS = "Zebra"
PATTERNS = {
    "alone": "{0}",
    "inside a word": "ab{0}cd",
    "beside blanks": "x {0} y",
    "doubled": "{0}{0}",
    "one within another": "{1}{0}{2}",
    "between line feeds": "x\n{0}\ny",
    "without its end": "x {1}",
    "without its beginning": "{2} x",
}
PLACES = ("user", "assistant", "system", "result", "argument", "name", "description", "reasoning")
# Templates search replies for these and cut the text there; such a reply is trained whole or refused.
SOUGHT = {"<think>", "</think>", "<|channel>", "<channel|>"}
REASONS = (
    r"leaves out (everything before </think>|the text|the reasoning|the tool call)|prompt at inference before message"
)


def fill(pattern, token):
    return PATTERNS[pattern].format(token, token[: len(token) // 2 + 1], token[len(token) // 2 + 1 :])


def make(place, text):
    """Return a dialogue with a text in one place."""

    def at(here, otherwise):
        return text if here == place else otherwise

    messages = [{"role": "user", "content": at("user", "hi")}]
    if place == "system":
        messages.insert(0, {"role": "system", "content": text})
    if place in ("result", "argument", "name", "description"):
        name = at("name", "look")
        call = {"function": {"name": name, "arguments": {"at": at("argument", "sky")}}}
        result = {"role": "tool", "name": name, "content": at("result", "azure")}
        messages += [{"role": "assistant", "content": "", "tool_calls": [call]}, result]
    thoughts = {"reasoning_content": text} if place == "reasoning" else {}
    reply = {"role": "assistant", "content": at("assistant", "yo"), **thoughts}
    more = [{"role": "user", "content": "so?"}, {"role": "assistant", "content": "no"}]
    tools = None
    if place == "description":
        tools = [{"type": "function", "function": LOOK["function"] | {"description": text}}]
    return parse_dialogue({"messages": [*messages, reply, *more], "tools": tools})


def control_count(tokenizer, ids):
    control = set(tokenizer.get_added_vocab().values())
    return Counter(token for token in ids if token in control)


def all_ids(rows):
    return [token for row in rows for token in row.input_ids]


def trained_ids(rows):
    return [label for row in rows for label in row.labels if label != IGNORE_INDEX]


def all_cases(tokenizer):
    return [
        (place, pattern, token) for token in read_control_tokens(tokenizer) for pattern in PATTERNS for place in PLACES
    ]


def check_cases(name, tokenizer, stops, cases):
    """Check that rows with a control token in a text differ from rows with a harmless word only in that text."""
    encoder = DialogueEncoder(tokenizer, stops)
    plain = dict(zip(PLACES, encoder.encode([make(place, HARMLESS) for place in PLACES]), strict=True))
    known = [case for case in cases if not isinstance(plain[case[0]], DataError)]
    assert known
    found = encoder.encode([make(place, fill(pattern, token)) for place, pattern, token in known])
    for (place, pattern, token), rows in zip(known, found, strict=True):
        case, text = (name, place, pattern, token), fill(pattern, token)
        sought = token in SOUGHT and place in ("assistant", "reasoning")
        if isinstance(rows, DataError):
            assert sought, (case, rows)
            assert re.search(REASONS, str(rows)), (case, rows)
            continue
        ids_of = trained_ids if sought else all_ids  # it may change what later prompts show
        ids, plain_ids = ids_of(rows), ids_of(plain[place])
        assert control_count(tokenizer, ids) == control_count(tokenizer, plain_ids), case
        decoded, plain_text = tokenizer.decode(ids), tokenizer.decode(plain_ids)
        if sought:
            assert text in decoded, case
        else:
            escaped = text.replace("\n", "\\n")  # in the arguments of calls
            assert decoded in (plain_text.replace(HARMLESS, text), plain_text.replace(HARMLESS, escaped)), case


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_sample_of_control_tokens_in_texts_stay_text(tiny_tokenizer, name):
    tokenizer, stops = tokenizer_with(tiny_tokenizer, name)
    check_cases(name, tokenizer, stops, random.Random(name).sample(all_cases(tokenizer), 32))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_control_token_in_every_text_stays_text(tiny_tokenizer, name):
    """Test 150 cases of each template; LORA_CHAT_ALL_TOKENS=1 tests all of them in about five minutes."""
    tokenizer, stops = tokenizer_with(tiny_tokenizer, name)
    cases = all_cases(tokenizer)
    if not os.environ.get("LORA_CHAT_ALL_TOKENS"):
        cases = random.Random(f"{name} more").sample(cases, min(150, len(cases)))
    check_cases(name, tokenizer, stops, cases)


@pytest.mark.parametrize("place", ["argument", "tools"])
def test_a_key_with_a_control_token_is_refused_with_the_key_and_the_token(tiny_tokenizer, place):
    tokenizer, stops = tokenizer_with(tiny_tokenizer, "qwen3_vl")
    for key, reason in {
        "a<|im_end|>b": r"the key 'a<|im_end|>b' contains the control token '<|im_end|>'; rename it",
        "<tool_call>": "the key '<tool_call>' contains the control token '<tool_call>'; rename it",
        "at<|im_end|": "the key 'at<|im_end|' begins or ends with part of a control token; rename it",
        "m_end|> at": "the key 'm_end|> at' begins or ends with part of a control token; rename it",
    }.items():
        row = make("argument", "sky").as_row
        if place == "argument":
            row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"deep": [{key: 1}]}
        else:
            row["tools"] = [{"type": "function", "function": LOOK["function"] | {"parameters": {key: {}}}}]
        with pytest.raises(DataError) as caught:
            encode_dialogue(parse_dialogue(row), tokenizer, stops)
        assert str(caught.value) == reason


def test_keys_that_only_look_like_tags_are_kept(tiny_tokenizer):
    tokenizer, stops = tokenizer_with(tiny_tokenizer, "qwen3_vl")
    row = make("argument", "sky").as_row
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {
        "<at>": 1,
        "a<": 2,
        "im_end": 3,
        ">": 4,
        "tool_call": 5,
    }
    (encoded,) = encode_dialogue(parse_dialogue(row), tokenizer, stops)
    assert '{"<at>": 1, "a<": 2, "im_end": 3, ">": 4, "tool_call": 5}' in tokenizer.decode(encoded.input_ids)


def test_names_cannot_join_with_the_template_into_a_control_token(tiny_tokenizer):
    template = CHATML.replace("message['content']", "'<' + message['content'] + '>'")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    for text in ("|im_end|", "|im_start|", " |im_end|", "x<|im_end|", "|im_end|>x"):
        some = make("user", text)
        (row,) = encode_dialogue(some, tokenizer, [tokenizer.eos_token_id])
        assert control_count(tokenizer, row.input_ids) == {tokenizer.eos_token_id: 4, 1: 4}
        assert f"<{text}>" in tokenizer.decode(row.input_ids)
        ids = render_ids(tokenizer, some.as_dicts[:1], add_generation_prompt=True)
        assert row.input_ids[: len(ids)] == ids


def test_trims_blanks_beside_parts_of_control_tokens(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML.replace("message['content']", "message['content'] | trim")
    (row,) = encode_dialogue(make("user", "  im_end|> x <|im_  "), tokenizer, [tokenizer.eos_token_id])
    assert "user\nim_end|> x <|im_<|im_end|>" in tokenizer.decode(row.input_ids)


ORDINARY = ["<div>", "</div>", "<span>", "<IMG>", "<br/>", "<unused7>", "[multimodal]", "zirconia", "user", "\n\n\n"]
CONTROL = [
    "<|User|>",
    "<\uff5cAssistant\uff5c>",
    "<tool_call>",
    "</think>",
    "[INST]",
    "<<SYS>>",
    "<start_of_turn>",
    "<call>",
]


def test_ordinary_added_tokens_are_tokens_as_in_transformers(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([*ORDINARY, *CONTROL, "<order>"])
    tokenizer.chat_template = CHATML + "{#- <order> -#}"
    assert set(read_control_tokens(tokenizer)) == {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<order>", *CONTROL}
    dialogue = make("assistant", "a <div>" + "b".join(ORDINARY) + "</div> c")
    (row,) = encode_dialogue(dialogue, tokenizer, [tokenizer.eos_token_id])
    written = tokenizer.apply_chat_template(dialogue.as_dicts, tokenize=True, return_dict=False)
    assert written[: len(row.input_ids)] == row.input_ids
    for name in CONTROL:
        ids = render_ids(tokenizer, make("user", f"a {name}b").as_dicts[:1], add_generation_prompt=True)
        assert tokenizer.convert_tokens_to_ids(name) not in ids
        assert f"a {name}b" in tokenizer.decode(ids)


def test_an_adapter_of_the_earlier_rule_reads_added_tokens_as_it_was_trained(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<div>", "<b>"])
    assert depends_on_token_rule(tokenizer) and not depends_on_token_rule(tiny_tokenizer)
    use_token_rule(tokenizer, 1)
    assert {"<div>", "<b>"} & set(read_control_tokens(tokenizer)) == {"<div>"}


def test_a_token_without_an_embedding_is_no_ordinary_text(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    limit_token_ids(tokenizer, len(tokenizer))
    tokenizer.add_tokens(["<div>"])
    assert "<div>" in read_control_tokens(tokenizer)


def test_keeps_html_elements_as_their_tokens(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<table>", "</table>", "<h1>", "\n\n"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<p>", "<tabular>"]})
    assert set(read_control_tokens(tokenizer)) == {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tabular>", "<p>"}
    text = "<table> <h1></table>\n\n<tabular><p>"
    (row,) = encode_dialogue(make("assistant", text), tokenizer, [tokenizer.eos_token_id])
    counts = control_count(tokenizer, row.input_ids)
    names = {tokenizer.convert_ids_to_tokens(number): count for number, count in counts.items()}
    assert {"<table>": 1, "<h1>": 1, "</table>": 1, "\n\n": 1}.items() <= names.items()
    assert not {"<tabular>", "<p>"} & names.keys()
    assert text in tokenizer.decode(row.input_ids)


def test_the_longest_control_token_that_fits_is_marked(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>", "<x><y>"]})
    marked = TextTokenizer(tokenizer).mark([{"a": "1<x><y><x>2", "n": 3, "none": None}])
    assert marked == [
        {"a": f"1{LITERAL_START}<x><y>{LITERAL_END}{LITERAL_START}<x>{LITERAL_END}2", "n": 3, "none": None}
    ]


def test_refuses_another_spelling_of_a_control_token():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = CHATML
    wide = "\uff1cthink\uff1e"
    assert tokenizer.convert_tokens_to_ids("<think>") in tokenizer.encode(wide)
    good, bad = make("user", "<think>"), make("user", wide)
    rows, refused = DialogueEncoder(tokenizer, [tokenizer.eos_token_id]).encode([good, bad])
    assert control_count(tokenizer, rows[0].input_ids) == {256: 4, 257: 4}
    assert "control token '<think>'" in str(refused)


def test_refuses_a_reply_of_only_the_end_of_reasoning_if_the_template_cuts_there(tiny_tokenizer):
    for name in ("qwen3", "glm4moe", "deepseek_r1_distill"):
        tokenizer, stops = tokenizer_with(tiny_tokenizer, name)
        with pytest.raises(DataError, match="leaves out everything before </think>"):
            encode_dialogue(make("assistant", "</think>"), tokenizer, stops)


def test_separated_marks_leave_control_tokens_of_the_template_intact(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["</think>"])
    cut = "message['content'].split('</think>') | join('<|im_end|></think>')"
    tokenizer.chat_template = CHATML.replace("message['content']", cut)
    (row,) = encode_dialogue(make("user", "a</think>b"), tokenizer, [tokenizer.eos_token_id])
    end_of_thoughts = tokenizer.convert_tokens_to_ids("</think>")
    assert control_count(tokenizer, row.input_ids) == {1: 4, tokenizer.eos_token_id: 5, end_of_thoughts: 1}


def make_sentencepiece_tokenizer():
    """Return a tokenizer like Llama 2's: a blank before every text, and bytes for unknown characters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz<|>_/"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer.chat_template = CHATML
    return tokenizer


def test_adds_no_blank_beside_a_control_token_with_a_prefixing_tokenizer():
    tokenizer = make_sentencepiece_tokenizer()
    stops = [tokenizer.eos_token_id]
    plain = encode_dialogue(make("assistant", HARMLESS), tokenizer, stops)
    for text in ("<|im_end|>", "x<|im_end|>y", "x <think> y", "</think>\n<think>", "a<|im_<|im_end|>end|>"):
        rows = encode_dialogue(make("assistant", text), tokenizer, stops)
        assert control_count(tokenizer, all_ids(rows)) == control_count(tokenizer, all_ids(plain))
        assert text + "<|im_end|>" in tokenizer.decode(trained_ids(rows))
