"""The official client and curl against a server with scripted replies."""

import asyncio
import json
import shutil
import subprocess
import time

import pytest

openai = pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "How is the weather?"}]
LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Return the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"city": "Zürich"}}\n</tool_call>'


@pytest.fixture(scope="module")
def client(scripted_server):
    with openai.OpenAI(base_url=f"{scripted_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def _ask(client, model="plain", messages=QUESTION, **fields):
    return client.chat.completions.create(model=model, messages=messages, **fields)


def _join(chunks):
    """Return the content, reasoning and finish reasons of a stream of one reply."""
    choices = [choice for chunk in chunks for choice in chunk.choices]
    content = "".join(choice.delta.content or "" for choice in choices)
    reasoning = "".join(getattr(choice.delta, "reasoning_content", None) or "" for choice in choices)
    return content, reasoning, [choice.finish_reason for choice in choices if choice.finish_reason]


def test_whole_reply(client, generator):
    answer = _ask(client)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"
    prompt, tokens = generator.tickets[0].request.prompt, len("Hello there.")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), tokens)
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.usage.total_tokens == len(prompt) + tokens
    assert generator.tickets[0].request.generation.is_greedy


def test_streamed_reply_has_openais_form(client, generator):
    generator.replies = [" Grüezi, 世界 👋 \n"]
    with _ask(client, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert _join(chunks) == ("Grüezi, 世界 👋", "", ["stop"])
    assert chunks[-2].choices[0].delta.model_dump(exclude_none=True) == {}
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == len(" Grüezi, 世界 👋 \n".encode())
    assert len({chunk.id for chunk in chunks}) == 1


def test_asynchronous_client(scripted_server, generator):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{scripted_server.url}/v1", api_key="none") as client:
            stream = await _ask(client, stream=True)
            return [chunk async for chunk in stream], await _ask(client)

    chunks, answer = asyncio.run(ask())
    assert _join(chunks)[0] == answer.choices[0].message.content == "Hello there."


def test_tool_calls_and_their_results(client, generator):
    generator.replies = [f"I look.\n{CALL}", "It rains in Zürich."]
    answer = _ask(client, "tools", tools=[LOOK_UP], tool_choice="auto").choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content == "I look."
    (call,) = answer.message.tool_calls
    assert (call.type, call.function.name) == ("function", "look_up")
    assert json.loads(call.function.arguments) == {"city": "Zürich"}
    assert call.id.startswith("call_")
    history = [*QUESTION, answer.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert _ask(client, "tools", history, tools=[LOOK_UP]).choices[0].message.content == "It rains in Zürich."
    prompt = generator._tokenizer.decode(generator.tickets[1].request.prompt)
    assert "Be brief." in prompt  # the system message of training
    assert prompt.index("I look.") < prompt.index("<tool_call>", prompt.index("I look.")) < prompt.index("rain")


def test_streamed_tool_calls(client, generator):
    generator.replies = [f"I look.\n{CALL}"]
    chunks = list(_ask(client, "tools", tools=[LOOK_UP], stream=True))
    assert _join(chunks) == ("I look.", "", ["tool_calls"])
    (call,) = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    assert (call.index, call.function.name) == (0, "look_up")
    assert json.loads(call.function.arguments) == {"city": "Zürich"}


def test_without_tools_a_call_is_text(client, generator):
    generator.replies = [CALL]
    assert _ask(client, "tools").choices[0].message.content == CALL
    answer = _ask(client, "tools", tools=[LOOK_UP], tool_choice="none").choices[0]
    assert (answer.message.content, answer.message.tool_calls, answer.finish_reason) == (CALL, None, "stop")
    assert generator.tickets[0].request.prompt == generator.tickets[1].request.prompt


@pytest.mark.parametrize(
    ("model", "reply"), [("thinking", "<think>\nIt may.\n</think>\n\nYes."), ("opening", "It may.\n</think>\n\nYes.")]
)
def test_reasoning_is_separate(client, generator, model, reply):
    generator.replies = [reply]
    answer = _ask(client, model)
    assert answer.choices[0].message.content == "Yes."
    assert answer.choices[0].message.reasoning_content == "It may."
    reasoning = len(reply.partition("</think>")[0]) + len("</think>")
    assert answer.usage.completion_tokens_details.reasoning_tokens == reasoning
    assert _join(list(_ask(client, model, stream=True))) == ("Yes.", "It may.", ["stop"])


def test_switch_for_thoughts(client, generator):
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    _ask(client, "thinking", extra_body=off)
    _ask(client, "thinking", reasoning_effort="none")
    _ask(client, "thinking", reasoning_effort="high")
    _ask(client, "thinking")
    first, second, third, default = (ticket.request.prompt for ticket in generator.tickets)
    assert first == second
    assert third == default == first[: len(default)]
    for fields in ({"extra_body": off}, {"reasoning_effort": "high"}):
        with pytest.raises(openai.BadRequestError, match="no switch"):
            _ask(client, "plain", **fields)
    with pytest.raises(openai.BadRequestError, match="only none and high"):
        _ask(client, "thinking", reasoning_effort="medium")


def test_stop_text_ends_the_reply(client, generator):
    generator.replies = ["one two three four " * 20]
    generator.pause = 0.002
    for fields in ({"stop": "o th"}, {"stop": ["nothing", "three"]}):
        expected = "one tw" if "o th" in fields["stop"] else "one two"
        answer = _ask(client, **fields)
        assert answer.choices[0].message.content == expected
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens < 20
        chunks = list(_ask(client, stream=True, **fields))
        assert _join(chunks) == (expected, "", ["stop"])
    time.sleep(0.1)
    assert all(ticket.cancelled.is_set() for ticket in generator.tickets)


def test_log_probabilities(client, generator):
    generator.replies = ["Ü n"]
    answer = _ask(client, logprobs=True, top_logprobs=2).choices[0]
    tokens = answer.logprobs.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode() == "Ü n"
    assert all(token.logprob == -0.25 and [t.logprob for t in token.top_logprobs] == [-0.25, -2.5] for token in tokens)
    chunks = list(_ask(client, logprobs=True, stream=True))
    streamed = [t for c in chunks for choice in c.choices if choice.logprobs for t in choice.logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in tokens]
    assert all(token.top_logprobs == [] for token in streamed)
    cut = _ask(client, logprobs=True, stop=" ").choices[0]
    assert (cut.message.content, len(cut.logprobs.content)) == ("Ü", 2)


def test_several_replies_draw_other_numbers(client, generator):
    generator.replies = ["first", "second"]
    answer = _ask(client, n=2, temperature=0.7, top_p=0.9, seed=5)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "first"), (1, "second")]
    requests = [ticket.request for ticket in generator.tickets]
    assert [request.number for request in requests] == [0, 1]
    assert all(request.generation.seed == 5 and request.generation.top_p == 0.9 for request in requests)
    assert answer.usage.completion_tokens == len("firstsecond")
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    _ask(client, temperature=0.7)
    assert generator.tickets[2].request.generation.seed != generator.tickets[0].request.generation.seed


def test_length_and_default_of_max_tokens(client, generator):
    answer = _ask(client, max_tokens=4).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("Hell", "length")
    assert _ask(client, max_completion_tokens=4).choices[0].message.content == "Hell"
    _ask(client)
    request = generator.tickets[-1].request
    assert len(request.prompt) + request.max_new_tokens == 1024
    with pytest.raises(openai.BadRequestError) as caught:
        _ask(client, messages=[{"role": "user", "content": "x" * 1100}])
    assert caught.value.code == "context_length_exceeded"
    assert "1,024 tokens" in caught.value.message


def test_completions(client, generator):
    generator.replies = [" and on "]
    answer = client.completions.create(model="plain", prompt="On", echo=True)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("On and on ", "stop")
    ids = list(generator.tickets[0].request.prompt)
    assert generator._tokenizer.decode(ids) == "On"
    again = client.completions.create(model="plain", prompt=ids, logprobs=1).choices[0]
    assert again.text == "".join(again.logprobs.tokens) == " and on "
    assert again.logprobs.text_offset == list(range(len(" and on ")))
    chunks = list(client.completions.create(model="plain", prompt=["On", "Up"], stream=True, max_tokens=3))
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.text for choice in choices) == " an"
        assert choices[-1].finish_reason == "length"
    assert generator.tickets[0].request.max_new_tokens == 16
    with pytest.raises(openai.BadRequestError, match="token ids are from 0"):
        client.completions.create(model="plain", prompt=[1, 10**6])


def test_models_and_tokens(client, generator):
    assert [model.id for model in client.models.list()] == ["plain", "tools", "thinking", "own_calls", "opening"]
    model = client.models.retrieve("tools")
    assert (model.system, model.context_length, model.checks[0]["passed"]) == ("Be brief.", 1024, True)
    capabilities = {row.id: row.capabilities for row in client.models.list()}
    nothing = {"tools": False, "reasoning": False, "enable_thinking": False}
    assert capabilities == {
        "plain": nothing,
        "tools": {**nothing, "tools": True},
        "thinking": {**nothing, "reasoning": True, "enable_thinking": True},
        "own_calls": nothing,
        "opening": {**nothing, "reasoning": True, "enable_thinking": True},
    }
    with pytest.raises(openai.NotFoundError, match="its weights were changed"):
        client.models.retrieve("broken")
    tokens = client.post("/tokenize", body={"model": "tools", "messages": QUESTION}, cast_to=object)
    _ask(client, "tools")
    assert tokens["ids"] == list(generator.tickets[0].request.prompt)
    assert "".join(token["text"] for token in tokens["tokens"]) == tokens["prompt"]
    assert tokens["count"] == len(tokens["ids"])


ERRORS = [
    ({"model": "missing"}, openai.NotFoundError, "model", "model_not_found"),
    ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
    ({"extra_body": {"unheard_of": 1}}, openai.BadRequestError, "unheard_of", "unknown_parameter"),
    ({"presence_penalty": 0.5}, openai.BadRequestError, "presence_penalty", "unsupported_parameter"),
    ({"tool_choice": "required", "tools": [LOOK_UP]}, openai.BadRequestError, "tool_choice", "unsupported_parameter"),
    ({"tools": [LOOK_UP]}, openai.BadRequestError, "tools", "unsupported_parameter"),
    ({"n": 5}, openai.BadRequestError, "n", "too_many_choices"),
]


@pytest.mark.parametrize(("fields", "kind", "parameter", "code"), ERRORS)
def test_errors_become_exceptions_of_the_client(client, generator, fields, kind, parameter, code):
    with pytest.raises(kind) as caught:
        _ask(client, **fields)
    assert (caught.value.param, caught.value.code) == (parameter, code)
    assert not generator.tickets


def test_full_queue_and_failures(client, generator):
    generator.is_full = True
    with pytest.raises(openai.RateLimitError) as caught:
        _ask(client)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    generator.is_full = False
    for reason in ("failed", "removed"):
        generator.finish = reason
        with pytest.raises(openai.InternalServerError) as failed:
            _ask(client)
        assert failed.value.status_code == 503
        with pytest.raises(openai.APIError):
            list(_ask(client, stream=True))
    generator.finish = "deadline"
    assert _ask(client).choices[0].finish_reason == "length"


def test_work_stops_when_the_client_leaves(client, generator):
    generator.replies, generator.pause = ["a" * 400], 0.005
    with _ask(client, stream=True) as stream:
        next(iter(stream))
    with pytest.raises(openai.APITimeoutError):
        _ask(client.with_options(timeout=0.2))
    end = time.monotonic() + 5
    while not all(ticket.cancelled.is_set() for ticket in generator.tickets) and time.monotonic() < end:
        time.sleep(0.01)
    assert [ticket.cancelled.is_set() for ticket in generator.tickets] == [True, True]


def test_curl(scripted_server, generator):
    if shutil.which("curl") is None:
        pytest.skip("needs curl")

    def curl(path, body):
        command = ["curl", "-sN", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
        return subprocess.run([*command, scripted_server.url + path], capture_output=True, text=True, check=True).stdout

    body = {"model": "plain", "messages": QUESTION}
    whole = json.loads(curl("/v1/chat/completions", body))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "Hello there.", "refusal": None}
    events = curl("/v1/chat/completions", {**body, "stream": True}).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello there."
    assert json.loads(curl("/v1/tokenize", {"model": "plain", "prompt": "ab"}))["count"] == 2
