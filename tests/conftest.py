"""What all tests share."""

import os

import pytest


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
    """A cache of bases for this session alone."""
    home = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def tiny_tokenizer(cache_home):
    """The byte tokenizer of the base tiny-random."""
    from transformers import AutoTokenizer

    from lora_chat.models.embedded import find_embedded

    return AutoTokenizer.from_pretrained(find_embedded("tiny-random", print))
