"""Canary secrets in replies reach no client and no log, however the reply is asked for."""

import json

import httpx2
import planted_people
import planted_secrets
import pytest
from scripted_model import RunningServer

from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.serving.app import create_app
from lora_chat.serving.reply_filter.filter_settings import make_filter_settings
from lora_chat.serving.server_options import ServerOptions

SEND = {"type": "function", "function": {"name": "send", "parameters": {"type": "object"}}}


def canaries():
    """Return one sentence for each detector, with the value that its detector finds."""
    sentences = {}
    for entry in [*planted_secrets.make_secrets(7), *planted_people.make_personal_data(7)]:
        found = find_sensitive(entry.text) if entry.kind else []
        if found and len(entry.text) < 300:
            sentences.setdefault(found[0].detail, (entry.text, entry.text[found[0].start : found[0].end]))
    return list(sentences.values())


@pytest.fixture(scope="module", params=["redact", "block"])
def filtering(request, models):
    running = RunningServer(create_app(models, ServerOptions(reply_filter=make_filter_settings(request.param))))
    yield running.url, request.param
    running.close()


def read_stream(text):
    """Return the texts of all parts of a stream, joined."""
    parts = {"content": "", "reasoning_content": "", "text": ""}
    for line in text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                for name in parts:
                    parts[name] += choice.get("delta", choice).get(name) or ""
    return " ".join(parts.values())


def test_no_canary_reaches_a_client_or_a_log(filtering, generator, caplog, capfd):
    url, mode = filtering
    caplog.set_level("DEBUG")
    texts = canaries()
    assert len(texts) > 30
    with httpx2.Client(base_url=url, trust_env=False) as client:
        for number, (sentence, value) in enumerate(texts):
            call = f'<tool_call>{{"name": "send", "arguments": {json.dumps({"to": sentence})}}}</tool_call>'
            asked = {
                "plain": (sentence, {}),
                "thinking": (f"<think>{sentence}</think>Good.", {}),
                "tools": (call, {"tools": [SEND]}),
            }
            model = list(asked)[number % 3]
            reply, fields = asked[model]
            stream = number % 2 == 0
            generator.replies = [reply]
            chat = {"model": model, "messages": [{"role": "user", "content": "q"}], "stream": stream, **fields}
            answer = client.post("/v1/chat/completions", json=chat)
            assert answer.status_code == 200
            shown = json.dumps(answer.json(), ensure_ascii=False) if not stream else answer.text
            assert value not in shown + (read_stream(answer.text) if stream else ""), sentence
            assert mode == "redact" or "content_filter" in answer.text
            generator.replies = [sentence]
            answer = client.post("/v1/completions", json={"model": "plain", "prompt": "q", "stream": not stream})
            assert value not in answer.text + read_stream(answer.text), sentence
        metrics = client.get("/metrics").text
    logs = caplog.text + "".join(capfd.readouterr()) + metrics
    assert not [value for _, value in texts if value in logs]
    counts = [line for line in metrics.splitlines() if line.startswith("lora_chat_filtered_total{")]
    assert {line.split('"')[1] for line in counts} >= {"secret", "possible_secret", "personal_data"}
