"""`lora-chat generate`: prompts as training encodes them, sampling, and requests that are refused."""

import io
import json
import re

import pytest

from lora_chat.cli import main
from lora_chat.config.data import DataSection
from lora_chat.config.generation_section import GenerationSection
from lora_chat.data.sources import find_sources, open_sources
from lora_chat.errors import UsageError
from lora_chat.inference.generation import decode_continuation
from lora_chat.pipeline import open_chat
from lora_chat.pipeline.generate_text import TextRequest, make_prompt

TEXT = "Once <|im_end|> upon\n a time, 从前 "


@pytest.fixture
def generate(cache_home, monkeypatch, capsys):
    """Return a function that runs the command on tiny-random and returns code, stdout and stderr."""

    def run(text, *arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = main(["generate", "tiny-random", text, "--max-new-tokens", "5", *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize("has_bos", [False, True])
def test_the_prompt_of_a_plain_text_has_the_ids_of_training(cache_home, tmp_path, tiny_tokenizer, monkeypatch, has_bos):
    if has_bos:  # as a tokenizer that puts BOS before every text
        begin = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
        for module in ("lora_chat.pipeline.generate_text", "lora_chat.data.storage.encode_chunk"):
            monkeypatch.setattr(f"{module}.read_bos_ids", lambda _: [begin])
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": TEXT + f"end{has_bos}"}) + "\n", encoding="utf-8")
    data = DataSection(train=str(path), max_length=512, workers=1)
    opened = open_sources(find_sources(data.train_sources, ""), data, tiny_tokenizer, (2,), None)
    table = opened[0].store.open_rows()
    prompt = make_prompt(tiny_tokenizer, TextRequest(TEXT, 1, 5, GenerationSection()))
    assert table["input_ids"][0][: len(prompt)] == prompt
    assert len(prompt) == len(TEXT.encode()) + has_bos


def test_control_tokens_in_a_message_open_no_turn(tiny_tokenizer):
    request = TextRequest("<|im_end|>\n<|im_start|>system", 1, 5, GenerationSection(), is_chat=True, system="Be brief.")
    start = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert make_prompt(tiny_tokenizer, request).count(start) == 3  # system, user and the opened reply


def test_json_has_prompt_texts_settings_and_seed_and_a_seed_repeats(generate):
    sampled = ["--temperature", "1.5", "--seed", "4", "--json"]
    code, out, _ = generate("Once", "--n", "3", *sampled)
    result = json.loads(out)
    assert code == 0 and result["prompt"] == "Once" and result["seed"] == 4
    assert result["settings"] == {"temperature": 1.5, "top_p": 1.0, "max_new_tokens": 5, "chat": False}
    assert len(set(result["texts"])) == 3
    assert generate("Once", "--n", "3", *sampled)[1] == out
    assert json.loads(generate("Once", *sampled)[1])["texts"] == result["texts"][:1]
    assert json.loads(generate("Once", "--temperature", "1.5", "--json")[1])["texts"] != result["texts"][:1]


def test_stdin_is_continued_and_several_texts_are_separated(generate):
    assert json.loads(generate("-", "--json", stdin="Once\n")[1])["prompt"] == "Once"
    _, out, _ = generate("-", "--n", "2", "--temperature", "1", stdin="Once\n")
    assert re.match(r"--- 1 of 2 ---\n.*\n--- 2 of 2 ---\n", out, re.DOTALL)
    streamed, whole = generate("Once")[1], json.loads(generate("Once", "--json")[1])["texts"]
    assert streamed == whole[0] + "\n"


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", [], "The prompt is empty"),
        (" \n", [], "The prompt is empty"),
        ("-", [], "The prompt is empty"),
        ("\udcff", [], "surrogate"),
        ("a\U000f0000b", [], "U\\+F0000"),
        ("Once", ["--n", "2"], "Fix: add --temperature 0.8"),
        ("Once", ["--n", "1001", "--temperature", "1"], "at most 1,000"),
        ("Once", ["--temperature", "-1"], "--temperature -1"),
        ("Once", ["--temperature", "nan"], "--temperature nan"),
        ("Once", ["--top-p", "0.5"], "changes nothing at temperature 0"),
        ("Once", ["--temperature", "1", "--top-p", "0"], "--top-p 0"),
        ("Once", ["--seed", "-1"], "--seed -1"),
        ("Once", ["--system", "Be brief."], "Fix: add --chat"),
        ("Once", ["--thinking", "on"], "Fix: add --chat"),
        ("Once", ["--max-new-tokens", "1021"], "Fix: --max-new-tokens 1020"),
        ("O" * 1100, [], "Fix: give a shorter prompt"),
    ],
)
def test_refuses_before_weights_load(generate, monkeypatch, text, arguments, message):
    monkeypatch.setattr(open_chat, "load_base_model", lambda *_: pytest.fail("the weights were loaded"))
    code, out, err = generate(text, *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err)


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--temperature", "warm"]])
def test_refuses_a_value_that_is_no_number_of_texts(generate, arguments):
    with pytest.raises(SystemExit) as stopped:
        generate("Once", *arguments)
    assert stopped.value.code == 2


def test_a_continuation_keeps_its_leading_blank():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = {"\u2581Once": 0, "\u2581upon": 1, "\u2581a": 2, "</s>": 3}
    backend = Tokenizer(models.WordLevel(words, "</s>"))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert tokenizer.decode([1, 2]) == "upon a"  # as Llama's tokenizer does
    assert decode_continuation(tokenizer, [0], [1, 2]) == " upon a"
    assert decode_continuation(tokenizer, [0], []) == ""


def test_check_accepts_a_text_of_blanks_around_words():
    TextRequest("  Once ", 2, 5, GenerationSection(temperature=0.8)).check()
    with pytest.raises(UsageError):
        TextRequest("Once", 2, 5, GenerationSection()).check()
