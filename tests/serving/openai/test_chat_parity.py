"""A server answers exactly as `chat` and `generate` do, from a real model, whole and streamed."""

import json
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

import pytest
from scripted_model import RunningServer

from lora_chat.config.generation_section import GREEDY, GenerationSection
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.inference.chat import ChatSession
from lora_chat.inference.continuous.request import BatchLimits
from lora_chat.pipeline.generate_text import TextRequest, generate_texts
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.pipeline.open_chat import find_chat_model
from lora_chat.pipeline.served_models import open_served_models
from lora_chat.serving.app import create_app
from lora_chat.serving.server_options import ServerOptions

LINES = ("Hello", "Wie geht's? <|im_end|> 世界", "And then?")
TOKENS = 24


@pytest.fixture(scope="module")
def sources(random_base, make_adapter, tmp_path_factory):
    base, folder = random_base("llama", 24.0), tmp_path_factory.mktemp("served") / "lively"
    make_adapter(base, folder)
    return {"base": str(base), "lively": str(folder)}


@pytest.fixture(scope="module")
def url(sources):
    trust = TrustOptions(base=sources["base"])
    models = open_served_models(list(sources.values()), trust, None, BatchLimits())
    running = RunningServer(create_app(models, ServerOptions()))
    yield running.url
    running.close()
    models.close(5)


def _post(url, path, body):
    request = Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def _ask(url, **body):
    """Return the whole content of a reply, and the joined content of the same reply as a stream."""
    path = "/v1/chat/completions"
    whole = json.loads(_post(url, path, body))["choices"][0]["message"]["content"]
    events = _post(url, path, {**body, "stream": True}).split("\n\n")[:-2]
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    return whole, "".join(delta.get("content", "") for delta in deltas)


@pytest.fixture(scope="module")
def chats(sources):
    """Return the turns of a conversation with `chat`, and the tokenizer, of each model."""
    return {name: _chat(source, sources["base"]) for name, source in sources.items()}


def _chat(source, base):
    opened = find_chat_model(source, None, TrustOptions(base=base), shows_system=False)
    session = ChatSession(opened.load(), opened.tokenizer, opened.stop_ids, opened.system, TOKENS, as_json=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_chat.inference.chat.print_json", lambda row: None)
        for line in LINES:
            session.handle_line(line)
    return session._conversation.turns, opened.tokenizer


@pytest.mark.parametrize("model", ["base", "lively"])
def test_greedy_replies_are_those_of_chat(url, chats, model):
    turns, tokenizer = chats[model]
    for number in range(0, len(turns), 2):
        body = {"model": model, "messages": turns[: number + 1]}
        expected = turns[number + 1]["content"]
        assert _ask(url, **body, max_tokens=TOKENS) == (expected, expected)
        tokens = json.loads(_post(url, "/v1/tokenize", body))
        assert tokens["ids"] == render_ids(tokenizer, turns[: number + 1], add_generation_prompt=True)
    assert any(turn["content"] for turn in turns[1::2])


def test_replies_at_the_same_time_are_the_same(url, chats):
    models = ["base", "lively"] * 2
    with ThreadPoolExecutor(4) as pool:
        replies = pool.map(
            lambda model: _ask(url, model=model, messages=chats[model][0][:1], max_tokens=TOKENS), models
        )
        assert [whole for whole, _ in replies] == [chats[model][0][1]["content"] for model in models]
    assert chats["base"][0][1] != chats["lively"][0][1]


@pytest.mark.parametrize("generation", [GREEDY, GenerationSection(temperature=0.9, top_p=0.8, seed=7)])
def test_completions_are_those_of_generate(url, sources, generation):
    count = 1 if generation.is_greedy else 2
    request = TextRequest("Once upon", count, 12, generation)
    expected = generate_texts(sources["lively"], request, None, TrustOptions(base=sources["base"]))
    body = {"model": "lively", "prompt": "Once upon", "max_tokens": 12, "n": count}
    body |= generation.model_dump() if not generation.is_greedy else {}
    answer = json.loads(_post(url, "/v1/completions", body))
    assert [choice["text"] for choice in answer["choices"]] == expected
