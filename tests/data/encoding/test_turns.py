"""The encoding against a slow reference that asks transformers for the ids of every prefix of a dialogue."""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encode import CHATML, make_merging_tokenizer
from test_known_templates import TEMPLATES

from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.encoding.encode import IGNORE_INDEX, DialogueEncoder
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.errors import DataError

SHARED = Path(__file__).parents[4] / "shared" / "data"
STOPS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
}
TOKENS = {
    "chatml": [],
    "llama3": ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<bos>"],
    "qwen3": [],
    "gemma": ["<start_of_turn>", "<end_of_turn>", "<bos>"],
}


def with_template(base, name):
    tokenizer = copy.deepcopy(base)
    path = TEMPLATES / f"{name}.jinja"
    tokenizer.chat_template = CHATML if name == "chatml" else path.read_text(encoding="utf-8")
    if TOKENS[name]:
        tokenizer.add_special_tokens({"additional_special_tokens": TOKENS[name]})
        tokenizer.bos_token = "<bos>"
    return tokenizer


@pytest.fixture(scope="session", params=["bytes", "merging"])
def base(request, tiny_tokenizer):
    return tiny_tokenizer if request.param == "bytes" else make_merging_tokenizer()


@pytest.fixture(scope="session", params=STOPS)
def coded(request, base):
    """Return a tokenizer with a template, and its stop id."""
    tokenizer = with_template(base, request.param)
    return tokenizer, tokenizer.convert_tokens_to_ids(STOPS[request.param])


def ids_of(tokenizer, messages, *, add_generation_prompt):
    return tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=add_generation_prompt,
        tokenize=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )


def reference(some, tokenizer, stop):
    """Return rows of (ids, labels) with loss on all ids after the prompt, up to the stop token.

    Return None if the dialogue does not begin with the ids of a prompt.
    """
    messages, replies = some.as_dicts, []
    for place, message in enumerate(some.messages):
        if message.role != "assistant" or not message.trained:
            continue
        prompt = ids_of(tokenizer, messages[:place], add_generation_prompt=True)
        until = ids_of(tokenizer, messages[: place + 1], add_generation_prompt=False)
        if until[: len(prompt)] != prompt:
            return None
        replies.append((len(prompt), until[: until.index(stop, len(prompt)) + 1]))
    whole = replies[-1][1]
    together = all(whole[: len(ids)] == ids for _, ids in replies)
    rows = []
    for begin, ids in replies[-1:] if together else replies:
        labels = [IGNORE_INDEX] * len(ids)
        for start, reply in replies if together else [(begin, ids)]:
            labels[start : len(reply)] = reply[start:]
        rows.append((ids, labels))
    return rows


def encode(dialogues, tokenizer, stop):
    return [
        found if isinstance(found, DataError) else [(row.input_ids, row.labels) for row in found]
        for found in DialogueEncoder(tokenizer, [stop]).encode(dialogues)
    ]


def check(dialogues, tokenizer, stop):
    for some, rows in zip(dialogues, encode(dialogues, tokenizer, stop), strict=True):
        expected = reference(some, tokenizer, stop)
        if expected is not None:
            assert rows == expected
        elif isinstance(rows, DataError):
            assert "remove them" in str(rows)
        else:
            check_apart(some, rows, tokenizer)


def check_apart(some, rows, tokenizer):
    """Return each reply after the ids of its prompt, although tokenizing both together gives other ids."""
    places = [place for place, message in enumerate(some.messages) if message.role == "assistant" and message.trained]
    assert len(rows) == len(places)
    for (ids, labels), place in zip(rows, places, strict=True):
        prompt = ids_of(tokenizer, some.as_dicts[:place], add_generation_prompt=True)
        assert ids[: len(prompt)] == prompt
        assert labels == [IGNORE_INDEX] * len(prompt) + ids[len(prompt) :]
        until = tokenizer.apply_chat_template(some.as_dicts[: place + 1], tokenize=False)
        opened = tokenizer.apply_chat_template(some.as_dicts[:place], tokenize=False, add_generation_prompt=True)
        assert until.startswith(opened)
        assert until[len(opened) :].startswith(tokenizer.decode(ids[len(prompt) :]))


PIECES = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|im_", "\n", " ", "\n\n", "  ", "user\n", "### "]
) | st.text(st.characters(codec="utf-8", exclude_characters="\U000f0000\U000f0001"), max_size=6)
TEXTS = st.lists(PIECES, min_size=1, max_size=5).map("".join).filter(str.strip)
TURNS = st.lists(st.tuples(TEXTS, TEXTS, st.booleans()), min_size=1, max_size=4)


def as_dialogue(turns, system=None):
    messages = [Message("system", system)] if system is not None else []
    for question, answer, trained in turns:
        messages += [Message("user", question), Message("assistant", answer, trained=trained)]
    messages[-1] = Message("assistant", messages[-1].content)
    return Dialogue(tuple(messages))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(turns=TURNS, system=st.none() | TEXTS)
def test_encodes_like_each_prefix_separately(coded, turns, system):
    tokenizer, stop = coded
    system = None if "System role not supported" in tokenizer.chat_template else system
    check([as_dialogue(turns, system)], tokenizer, stop)


@settings(deadline=None, max_examples=6, derandomize=True)
@given(several=st.lists(TURNS, min_size=2, max_size=8))
def test_encodes_a_dialogue_the_same_alone_and_in_a_batch(coded, several):
    tokenizer, stop = coded
    dialogues = [as_dialogue(turns) for turns in several]
    together = encode(dialogues, tokenizer, stop)
    alone = [encode([some], tokenizer, stop)[0] for some in dialogues]
    assert [str(rows) if isinstance(rows, DataError) else rows for rows in together] == [
        str(rows) if isinstance(rows, DataError) else rows for rows in alone
    ]


@cache
def real_tokenizer():
    from transformers import AutoTokenizer

    from lora_chat.models.bundled import find_bundled_base

    return AutoTokenizer.from_pretrained(find_bundled_base("smollm2-135m-instruct"))


def files_of_dialogues():
    """Return the real files whose rows have `messages`; other files have other formats."""
    found = []
    for file in sorted(SHARED.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            if "messages" in json.loads(next(lines, "{}")):
                found.append(file)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["its own", *STOPS])
def test_encodes_real_dialogues_like_each_prefix_separately(cache_home, name):
    files = files_of_dialogues()
    if not files:
        pytest.skip("there are no dialogues beside the repository")
    tokenizer = copy.deepcopy(real_tokenizer()) if name == "its own" else with_template(real_tokenizer(), name)
    stop = tokenizer.convert_tokens_to_ids(STOPS.get(name, "<|im_end|>"))
    dialogues = []
    for file in files:
        with file.open(encoding="utf-8") as lines:
            dialogues += [parse_dialogue(json.loads(line)) for line, _ in zip(lines, range(12), strict=False)]
    if name == "gemma":
        dialogues = [some for some in dialogues if some.messages[0].role != "system"]
    assert dialogues
    # Llama's prompt ends with two line feeds, which are other tokens before a letter.
    assert all(reference(some, tokenizer, stop) for some in dialogues) == (name != "llama3")
    check(dialogues, tokenizer, stop)
