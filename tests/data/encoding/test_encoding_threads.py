"""Threads that encode with one tokenizer get the same ids as one thread."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoTokenizer

from lora_chat.data.encoding.tokenizer import TextTokenizer
from lora_chat.models.bundled import find_bundled_base


@pytest.fixture
def frequent_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("frequent_switches")
def test_threads_do_not_change_each_others_ids():
    tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("tiny-random"))
    encoder = TextTokenizer(tokenizer)
    turn, text = "<|im_end|>" * 200, encoder.mark("a <|im_end|> as text " * 5)
    expected = [[encoded.ids for encoded in encoder.tokenize([part])] for part in (turn, text)]
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda part: [encoded.ids for encoded in encoder.tokenize([part])], [turn, text] * 80)
        assert list(results) == expected * 80
