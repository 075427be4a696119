"""An endpoint passes only if it answers as the adapted model, and nothing that it sends does harm."""

import copy
import gzip
import json
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from endpoint_server import ServedModel, serving

from lora_chat.cli import main
from lora_chat.errors import UnavailableError, UsageError
from lora_chat.models.adapter import without_adapter
from lora_chat.models.bound_adapter import BoundAdapter
from lora_chat.pipeline.endpoint import endpoint_prompts, local_replies, verify_endpoint
from lora_chat.pipeline.endpoint.ask_endpoint import EndpointClient, EndpointReply, TokenProbabilities
from lora_chat.pipeline.endpoint.compare_endpoint import IS_ADAPTER, IS_BASE, IS_OTHER, IS_UNCLEAR
from lora_chat.pipeline.endpoint.judge_reply import ReplyJudge
from lora_chat.pipeline.endpoint.local_replies import LocalReply
from lora_chat.pipeline.endpoint.token_forms import TokenForms
from lora_chat.pipeline.endpoint.verify_endpoint import EndpointOptions
from lora_chat.pipeline.open_adapter import TrustOptions, open_adapter
from lora_chat.system.http_client import open_endpoint

pytestmark = pytest.mark.slow  # many models are loaded

REPLY_TOKENS = 6


@pytest.fixture
def adapter(make_adapter, tmp_path, monkeypatch):
    """Return the folder of an adapter that changes its base much, its model and its tokenizer."""
    monkeypatch.setattr(endpoint_prompts, "DEFAULT_QUESTIONS", endpoint_prompts.DEFAULT_QUESTIONS[1:3])
    for module in (local_replies, verify_endpoint):
        monkeypatch.setattr(module, "MAX_REPLY_TOKENS", REPLY_TOKENS)
    make_adapter("tiny-random", tmp_path / "adapter")
    opened = open_adapter(str(tmp_path / "adapter"))
    model, tokenizer = opened.adapter.load(opened.precision).eval().float(), opened.adapter.tokenizer
    model.get_base_model().register_forward_hook(write_letters)
    untouched = copy.deepcopy(model)
    monkeypatch.setattr(BoundAdapter, "load", lambda *_: copy.deepcopy(untouched))
    return str(tmp_path / "adapter"), model, tokenizer


def write_letters(module, inputs, output):
    """Let the model write only letters, because most of its tokens are parts of characters."""
    letters = torch.zeros(output.logits.shape[-1], dtype=torch.bool)
    letters[65:91] = True
    output.logits[..., ~letters] -= 50
    return output


def verify(source, served, export=verify_endpoint.DEFAULT_EXPORT):
    with serving(served.answer) as url:
        return verify_endpoint.verify_endpoint(
            source, EndpointOptions(url, export=export), TrustOptions(), None, None
        ).comparison


def test_tells_the_adapter_from_its_base_and_from_other_prompts(adapter):
    source, model, tokenizer = adapter
    for tells in (True, False):
        served = ServedModel(model, tokenizer, tells_logprobs=tells, tells_ids=tells)
        same = verify(source, served)
        assert (same.verdict, same.failures, same.equal_replies) == (IS_ADAPTER, (), 1.0)
        assert (same.kl_tokens > 0, same.prompts.compared_ids, same.prompts.other_lengths) == (tells, 2 * tells, 0)
        with without_adapter(model):
            assert verify(source, served).verdict == IS_BASE
    other_system = verify(source, ServedModel(model, tokenizer, tells_logprobs=False, tells_ids=False, system="Hi."))
    assert (other_system.verdict, other_system.prompts.other_lengths) == (IS_OTHER, 2)
    other_template = verify(source, ServedModel(model, tokenizer, tells_logprobs=False, prefix=[9]))
    assert (other_template.verdict, other_template.prompts.other_ids) == (IS_OTHER, 2)


def test_rounding_passes_only_within_the_tolerance_of_its_type(adapter):
    source, model, tokenizer = adapter
    generator = torch.Generator().manual_seed(1)
    kl = []
    for noise, verdict in ((0.003, IS_ADAPTER), (3.0, IS_OTHER)):
        for parameter in model.parameters():
            parameter.data += parameter.data.abs().mean() * noise * torch.randn(parameter.shape, generator=generator)
        comparison = verify(source, ServedModel(model, tokenizer), "GGUF q4_k_m")
        assert comparison.verdict == verdict
        kl.append(comparison.mean_kl)
    assert 0 < kl[0] < 0.15 < kl[1]


def test_cut_replies_prove_nothing(adapter):
    """Types with few bits allow that no reply is equal, so a reply without text must not agree."""
    source, model, tokenizer = adapter
    served = ServedModel(model, tokenizer, tells_logprobs=False, tells_ids=False)
    for count in (0, 1):

        def answer(path, body, count=count):
            status, headers, value = served.answer(path, body)
            if path == "/v1/chat/completions" and status == 200:
                text = value["choices"][0]["message"]["content"][:count]
                value = {"choices": [{"message": {"content": text}, "finish_reason": "length"}]}
            return status, headers, value

        with serving(answer) as url:
            options = EndpointOptions(url, export="GGUF q4_k_m")
            comparison = verify_endpoint.verify_endpoint(source, options, TrustOptions(), None, None).comparison
        assert (comparison.verdict, comparison.cut_replies) == (IS_OTHER, 2)


def test_an_adapter_without_effect_is_not_proven(adapter):
    source, model, tokenizer = adapter
    comparison = verify(source, ServedModel(model, tokenizer))
    unclear = replace(comparison, control_kl=1e-5, mean_kl=0.0, control_regret=0.0)
    assert (unclear.failures, unclear.verdict) == ((), IS_UNCLEAR)


def test_the_command_has_exit_codes_and_json(adapter, capsys):
    source, model, tokenizer = adapter
    served = ServedModel(model, tokenizer)
    with serving(served.answer) as url:
        assert main(["verify", source, "--endpoint", url, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert (printed["verdict"], printed["passed"], printed["model"]) == (IS_ADAPTER, True, "tiny")
        assert all("logprobs" in body for body in served.asked)
        with without_adapter(model):
            assert main(["verify", source, "--endpoint", f"{url}/v1"]) == 7
    assert "NOT THE ADAPTER" in capsys.readouterr().out
    assert main(["verify", source, "--endpoint", url]) == 8
    assert main(["verify", source, "--endpoint", url, "--again"]) == 2
    assert main(["verify", source, "--model", "x"]) == 2


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/v1",
        "http://127.0.0.1.example.com:1",
        "http://0x7f.1.example:1",
        "ftp://127.0.0.1",
        "http://user:pass@127.0.0.1:1",
        "http://127.0.0.1:1/?x=1",
        "http://127.0.0.1:99999",
        "127.0.0.1:8000",
        "http://127.0.0.1:1/\r\nX: y",
    ],
)
def test_refuses_other_machines_and_odd_addresses(url):
    with pytest.raises(UsageError, match="Fix:"):
        open_endpoint(url, None, allow_remote=False, sent="12 prompts")


def test_remote_endpoints_need_consent_and_encryption_for_the_key():
    assert not open_endpoint("https://example.com/v1", "k", allow_remote=True, sent="").is_local
    with pytest.raises(UsageError, match="unencrypted"):
        open_endpoint("http://example.com/v1", "k", allow_remote=True, sent="")


REPLY = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
HOSTILE = {
    "redirect": (302, {"Location": "http://169.254.169.254/"}, b""),
    "not JSON": (200, {}, b"<html>"),
    "NaN": (200, {}, b'{"choices": NaN}'),
    "deep": (200, {}, b"[" * 100_000),
    "huge": (200, {}, b'{"a": "' + b"x" * 17_000_000 + b'"}'),
    "compressed": (200, {"Content-Encoding": "gzip"}, gzip.compress(json.dumps(REPLY).encode())),
    "no choices": (200, {}, {"choices": []}),
    "wrong types": (200, {}, {"choices": [{"message": "hi"}]}),
    "error": (500, {}, {"error": {"message": "\x1b[31mbroken"}}),
    "forbidden": (401, {}, {"error": {"message": "no key"}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_answers_of_another_form(name):
    with serving(lambda path, body: HOSTILE[name]) as url:
        client = EndpointClient(open_endpoint(url, "key", allow_remote=False, sent=""), "m")
        with pytest.raises(UnavailableError) as error:
            client.ask([{"role": "user", "content": "hi"}], 4)
    assert "\x1b" not in str(error.value)


def test_ignores_odd_fields_waits_and_goes_without_probabilities(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: waits.append(seconds))
    waits, bodies = [], []
    odd = {"token": 3, "top_logprobs": [{"token": "a", "logprob": "x"}]}
    reply = {"choices": [{**REPLY["choices"][0], "logprobs": {"content": [odd]}}], "usage": {"prompt_tokens": True}}

    def answer(path, body):
        bodies.append(body)
        if body.get("top_logprobs"):
            return 400, {}, {}
        return (429, {"Retry-After": "99999"}, {}) if len(bodies) < 5 else (200, {}, reply)

    with serving(answer) as url:
        client = EndpointClient(open_endpoint(url, None, allow_remote=False, sent=""), "m")
        got = client.ask([{"role": "user", "content": "hi"}], 4)
    assert (got.text, got.has_ended, got.prompt_tokens, got.tokens) == ("hi", True, None, ())
    assert waits and max(waits) <= 10
    assert [body.get("top_logprobs") for body in bodies] == [20, 5, None, None, None]


class Words:
    """A tokenizer of five words."""

    names = ("<end>", " a", " b", " c", " d")
    init_kwargs = MappingProxyType({})
    all_special_ids = (0,)
    added_tokens_decoder = MappingProxyType({})

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.names[i] for i in ids if i or not skip_special_tokens)

    def convert_ids_to_tokens(self, number):
        return self.names[number]


def judge(text, has_ended, tokens=(), thoughts=False):
    """Judge a reply where the adapted model certainly says "a b" and ends, and the base goes on with "c"."""
    likely = torch.full((3, 5), 0.01).double()
    likely[0, 1] = likely[1, 2] = likely[2, 0] = 0.96
    base = torch.full((3, 5), 0.2).double()
    local = LocalReply((1, 2), (3, 3), likely.log(), base.log())
    reply = EndpointReply(text, has_ended, thoughts, None, tokens)
    return ReplyJudge(local, TokenForms(Words()), [0]).judge(reply)


def test_judges_stops_and_differences():
    equal = judge("a b", True)
    assert (equal.is_equal, equal.first_difference, equal.regret, equal.tokens) == (True, None, 0.0, 3)
    longer = judge("a b c", False)
    assert (longer.passes_stop, longer.first_difference) == (True, 2)
    assert longer.regret == pytest.approx(torch.tensor(96.0).log().item())
    shorter = judge("a", True)
    assert (shorter.ends_early, shorter.passes_stop, shorter.first_difference) == (True, False, 1)
    other = judge("c c", False)
    assert (other.first_difference, other.base_agreement, other.agreement) == (0, 1.0, 0.0)
    assert (judge("a ", False).regret, judge("a ", False).is_cut) == (0.0, False)  # cut off by the endpoint
    assert (judge("", False).regret, judge("", False).is_cut) == (0.0, True)


def test_kl_is_a_lower_bound_in_the_classes_that_are_told():
    def told(*pairs):
        return (TokenProbabilities(pairs[0][0], tuple((text, torch.tensor(p).log().item()) for text, p in pairs)),)

    exact = judge("a b", True, told((" a", 0.96), (" b", 0.01)))
    assert exact.kl[0] == pytest.approx(0, abs=1e-6)
    assert exact.control_kl[0] > 0.5
    of_base = judge("a b", True, told((" a", 0.2), (" b", 0.2)))
    assert (of_base.kl[0] > 0.5, of_base.base_kl[0] < 1e-6) == (True, True)
    assert judge("a b", True, told(("?", 0.9), ("!", 0.1))).kl == ()
