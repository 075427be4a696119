"""The pieces of a streamed reply are, joined, the text of the whole reply, and end before a stop text."""

import os
import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lora_chat.inference.generation import decode_continuation, decode_reply
from lora_chat.inference.text_decoder import TextDecoder
from lora_chat.models.bundled import bundled_base_names, find_bundled_base
from lora_chat.serving.openai.text_stream import StopSearch, TextStream
from lora_chat.serving.openai.token_texts import TokenTexts

_ALL = bool(os.environ.get("LORA_CHAT_ALL_BASES"))
_TRIALS = 3000 if _ALL else 60
_BASES = bundled_base_names() if _ALL else ("tiny-random",)
_TEXTS = (
    "Hello, world! How are you?",
    " leading and trailing \n\n",
    "Größe naïve façade",
    "日本語のテキスト。中文，한국어",
    "emoji 👩‍👩‍👧 🇩🇪 😀😀",
    "<think>\nwell</think>\n\nyes",
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
    "a\ufffdb\u2028\u00a0c",
    "don't , do n't ! it 's",
)


def _sentencepiece_like() -> PreTrainedTokenizerFast:
    """Return a tokenizer with byte fallback and a blank before each text, as those of Llama 2 and Mistral."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzABH.,!?'<>/{}:\"", "▁a", "▁Hello", "▁wor", "ld", "▁▁", "\n"]
    backend = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _word_pieces() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose decoding removes blanks before signs."""
    words = [
        "[UNK]",
        "[SEP]",
        "do",
        "n",
        "##'",
        "n't",
        "'",
        "'s",
        ".",
        ",",
        "!",
        "?",
        "a",
        "##b",
        "it",
        "##t",
        "ve",
        "'m",
    ]
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[SEP]", clean_up_tokenization_spaces=True
    )


def _with_kept_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens([AddedToken("<item>", special=True)])
    tokenizer.init_kwargs["lora_chat_kept_tokens"] = ["<item>"]
    return tokenizer


def _load(name: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(find_bundled_base(name))


TOKENIZERS = {
    **{name: lambda name=name: _load(name) for name in _BASES},
    "kept": lambda: _with_kept_token(_load("tiny-random")),
    "sentencepiece": _sentencepiece_like,
    "wordpiece": _word_pieces,
}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]()


def _draw_ids(tokenizer, draw: random.Random) -> list[int]:
    """Return ids that a model may generate: texts, parts of characters, special tokens, and noise."""
    ids = []
    for _ in range(draw.randint(1, 6)):
        part = tokenizer.encode(draw.choice(_TEXTS), add_special_tokens=False)
        cut = draw.randint(0, len(part))
        ids += draw.choice([part, part[:cut], part[cut:], [draw.randrange(len(tokenizer)) for _ in range(8)]])
        ids += draw.choice([[], tokenizer.all_special_ids[-1:]])
    return ids


def _stream(tokenizer, ids, prompt=(), stops=()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, TextDecoder(tokenizer, prompt), stops)
    pieces = []
    for token in ids:
        pieces.append(stream.feed(token))
        if stream.stopped:
            break
    return [*pieces, stream.close()], stream


def test_pieces_are_the_text_of_the_reply(tokenizer, caplog):
    draw = random.Random(1)
    for _ in range(_TRIALS):
        ids = _draw_ids(tokenizer, draw)
        pieces, _ = _stream(tokenizer, ids)
        assert "".join(pieces).strip() == decode_reply(tokenizer, ids), ids
    assert not caplog.records


def test_pieces_continue_a_text(tokenizer, caplog):
    draw = random.Random(2)
    for _ in range(_TRIALS):
        prompt, ids = _draw_ids(tokenizer, draw), _draw_ids(tokenizer, draw)
        pieces, _ = _stream(tokenizer, ids, prompt)
        assert "".join(pieces) == decode_continuation(tokenizer, prompt, ids), (prompt, ids)
    assert not caplog.records


def test_text_ends_before_the_stop_text_that_is_complete_first(tokenizer):
    draw = random.Random(3)
    for _ in range(_TRIALS):
        ids = _draw_ids(tokenizer, draw)
        whole = TextDecoder(tokenizer).decode(ids)
        if len(whole) < 5:
            continue
        begin = draw.randrange(len(whole) - 3)
        stops = [whole[begin : begin + draw.randint(1, 4)], whole[-3:], "never"]
        ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
        pieces, stream = _stream(tokenizer, ids, stops=stops)
        assert "".join(pieces) == whole[: min(ends)[1]]
        assert stream.stopped
        assert stream.length == min(ends)[1]


def test_most_text_is_passed_on_at_once():
    tokenizer = _load("tiny-random")
    ids = tokenizer.encode("A plain answer with some words. " * 40, add_special_tokens=False)
    pieces, _ = _stream(tokenizer, ids)
    assert all(pieces[:-1])
    assert pieces[-1] == ""


def test_starts_are_the_offsets_of_tokens():
    tokenizer = _load("tiny-random")
    ids = tokenizer.encode("One two", add_special_tokens=False)
    _, stream = _stream(tokenizer, ids)
    texts = [tokenizer.decode([token]) for token in ids]
    assert stream.starts == [len("".join(texts[:n])) for n in range(len(texts))]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stop_text_does_not_depend_on_the_pieces(size):
    for text, stops, expected in [
        ("xabcdy", ("abcd", "bc"), "xa"),
        ("xabc", ("abcd",), "xabc"),
        ("aab", ("ab",), "a"),
        ("abab!", ("abab", "ab"), ""),
        ("no", ("stop",), "no"),
        ("", ("a",), ""),
    ]:
        search = StopSearch(stops)
        pieces = [search.feed(text[n : n + size]) for n in range(0, len(text), size)]
        assert "".join(pieces) + search.close() == expected
        assert search.length == len(expected)


def test_ids_without_a_token_have_no_text():
    tokenizer = _load("tiny-random")
    ids = [*tokenizer.encode("a b", add_special_tokens=False), len(tokenizer) + 7, tokenizer.eos_token_id]
    pieces, stream = _stream(tokenizer, ids)
    assert "".join(pieces) == "a b"
    assert len(stream.starts) == len(ids)
    assert TokenTexts(tokenizer).read_bytes(len(tokenizer) + 7) == b""


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_bytes_of_tokens_are_the_text(name):
    tokenizer = TOKENIZERS[name]()
    texts = TokenTexts(tokenizer)
    for text in ("Hello wor", "é 世界 👋", "a\nb") if name != "wordpiece" else ("a",):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(map(texts.read_bytes, ids)).decode().strip() == tokenizer.decode(ids).strip()
