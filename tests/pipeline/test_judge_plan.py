"""The prompts and models of a judgement are found before weights load, in an order that is always the same."""

import contextlib
import copy
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.data.dialogue import Dialogue, Message, ToolCall
from lora_chat.errors import IntegrityError, UnavailableError, UsageError
from lora_chat.models.bundled import find_bundled_base
from lora_chat.pipeline import judge_prompts
from lora_chat.pipeline.judge_plan import JudgeSettings, check_judge_options, plan_judgement
from lora_chat.pipeline.judge_prompts import select_prompts
from lora_chat.pipeline.open_adapter import TrustOptions

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Dialogues:
    """A held-out set in memory."""

    def __init__(self, units):
        self.units = units

    def __len__(self):
        return len(self.units)

    def read(self):
        return iter(self.units)


def make_dialogue(number, answered=True):
    messages = [Message("system", "Be brief."), Message("user", f"Question {number}")]
    return Dialogue((*messages, *([Message("assistant", f"Answer {number}")] if answered else [])))


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache_home):
    """Return a copy of a finished run of an earlier version."""
    folder = tmp_path_factory.mktemp("runs") / "smoke-1"
    shutil.copytree(FIXTURES / "run-of-version-2" / "smoke-1", folder)
    find_bundled_base("tiny-random")
    return folder


def chat_tokenizer(tokenizer):
    """Return a copy with a chat template."""
    from lora_chat.data.encoding.chat_template import install_template

    tokenizer = copy.deepcopy(tokenizer)
    install_template(tokenizer)
    return tokenizer


def test_the_order_is_random_and_the_same_for_every_number_of_prompts(tiny_tokenizer):
    tokenizer = chat_tokenizer(tiny_tokenizer)
    units = [make_dialogue(number, answered=number % 3 != 0) for number in range(60)]
    few, many = (select_prompts(Dialogues(units), [tokenizer] * 3, count) for count in (7, 30))
    assert [prompt.index for prompt in few] == [prompt.index for prompt in many[:7]]
    assert len(many) == 30
    assert [prompt.index for prompt in many] != sorted(prompt.index for prompt in many)
    assert all(prompt.index % 3 for prompt in many)  # the others have no reply
    assert few[0].ids == few[0].ids_a == few[0].ids_b
    assert few[0].context[1].text == f"Question {few[0].index}"


def test_the_whole_context_of_a_reply_is_shown(tiny_tokenizer):
    tokenizer = chat_tokenizer(tiny_tokenizer)
    call = ToolCall("find", '{"city": "Köln"}')
    messages = (
        Message("user", "First"),
        Message("assistant", "", tool_calls=(call,), trained=False),
        Message("user", "Second"),
        Message("assistant", "Reply"),
    )
    tools = json.dumps([{"type": "function", "function": {"name": "find", "parameters": {}}}])
    prompt = judge_prompts._make_prompt(3, Dialogue(messages, tools=tools), [tokenizer] * 3)
    shown = [(message.role, message.text) for message in prompt.context]
    assert shown[0] == ("tools", "find")
    assert shown[1][1] == "First"
    (text,) = select_prompts(Dialogues([[5, 6, 7, 8]]), [tokenizer] * 3, 1)
    assert (text.is_text, text.ids, text.context[0].role) == (True, (5, 6), "text")


def test_calls_are_shown_as_text():
    call = {"type": "function", "function": {"name": "find", "arguments": {"city": "Köln"}}}
    message = {"role": "assistant", "content": "Wait.", "tool_calls": [call]}
    assert judge_prompts.format_message(message) == 'Wait.\nfind({"city": "Köln"})'


@pytest.mark.parametrize(
    ("models", "pair"),
    [([], ("run", "base")), (["x"], ("run", "x")), (["base"], ("run", "base")), (["x", "y"], ("x", "y"))],
)
def test_models_have_defaults(models, pair):
    assert check_judge_options("run", models, JudgeSettings(), None) == pair


@pytest.mark.parametrize(
    ("models", "settings", "judge", "match"),
    [
        (["x", "y", "z"], JudgeSettings(), None, "two are compared"),
        ([], JudgeSettings(prompts=1001), None, "at most 1000"),
        ([], JudgeSettings(), "", "printable"),
        ([], JudgeSettings(), "a\nb", "printable"),
        ([], JudgeSettings(), "\u202e", "printable"),
        ([], JudgeSettings(), "x" * 65, "printable"),
    ],
)
def test_options_that_cannot_be_used_are_refused(models, settings, judge, match):
    with pytest.raises(UsageError, match=match):
        check_judge_options("run", models, settings, judge)


def test_a_run_is_judged_against_its_base(run):
    plan = plan_judgement(str(run), str(run), "base", TrustOptions())
    assert (plan.comparison.a.name, plan.comparison.b.name, plan.comparison.b.adapter) == ("smoke-1", "base", None)
    assert plan.sources == [f"judged-1={run}"]
    assert plan.prompts
    assert plan.comparison.settings.max_new_tokens == 12
    reverse = plan_judgement(str(run), "base", str(run), TrustOptions())
    assert reverse.comparison == plan.comparison  # the run is A
    weights = run / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    plan.check_weights_unchanged()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(IntegrityError, match="changed while it was being loaded"):
            plan.check_weights_unchanged()
    finally:
        weights.write_bytes(before)


def test_another_adapter_of_the_same_base_is_a_model(run, make_adapter, tmp_path):
    make_adapter("tiny-random", tmp_path / "other")
    plan = plan_judgement(str(run), str(tmp_path / "other"), "base", TrustOptions())
    assert plan.sources == [f"judged-1={run}", f"judged-2={tmp_path / 'other'}"]
    assert plan.comparison.a.name == "other"


def test_models_that_cannot_be_compared_are_refused(run, make_adapter, random_base, tmp_path):
    with pytest.raises(UsageError, match="same weights"):
        plan_judgement(str(run), "base", "base", TrustOptions())
    with pytest.raises(UsageError, match="same weights"):
        plan_judgement(str(run), str(run), str(run / "adapter"), TrustOptions())
    with pytest.raises(UsageError, match=r"No prompt .* fits the .* Fix: --max-new-tokens \d+ or fewer"):
        plan_judgement(str(run), str(run), "base", TrustOptions(), JudgeSettings(max_new_tokens=10**6))
    with pytest.raises(UsageError, match="is not a run"):
        plan_judgement(str(run / "adapter"), "base", str(run), TrustOptions())
    make_adapter(random_base("llama"), tmp_path / "foreign")
    with pytest.raises(UnavailableError, match="belongs to the base"):
        plan_judgement(str(run), str(tmp_path / "foreign"), "base", TrustOptions())


def call(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def test_a_missing_package_is_named(run, monkeypatch):
    for name in ("lora_chat.serving.run_judge", "lora_chat.serving.run_server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, notices = call("judge", run)
    assert code == 8 and "pip install 'lora-chat[serve]'" in notices


def test_the_result_needs_no_server(run, make_adapter, tmp_path):
    from judgement_records import make_comparison, make_vote

    from lora_chat.runs.judgement_log import append_judgement
    from lora_chat.runs.run_folder import RunFolder
    from lora_chat.system.hashing import digest_file

    code, out, _ = call("judge", run, "--result")
    assert code == 0 and "No votes yet" in out
    base = json.loads((run / "adapter" / "lora_chat.json").read_text())["weights"]
    own = make_comparison(digest_file(run / "adapter" / "adapter_model.safetensors"), base=base)
    for number in range(8):
        append_judgement(RunFolder(run).judgements, make_vote(number, comparison=own))
    append_judgement(RunFolder(run).judgements, make_vote(9))
    code, out, _ = call("judge", run, "--result")
    assert code == 0 and "in 8 of 8 decided pairs" in out and "1 record on other adapter weights" in out
    code, out, _ = call("judge", run, "--result", "--json")
    assert json.loads(out)["results"][0]["wins"] == 8
    for models in (["base"], [run, "base"], ["base", run]):
        code, out, _ = call("judge", run, *models, "--result")
        assert code == 0 and "smoke-1" not in out and "in 8 of 8 decided pairs" in out
    other = make_adapter("tiny-random", tmp_path / "other") and tmp_path / "other"
    assert "No votes yet" in call("judge", run, other, "--result")[1]
    digest = digest_file(other / "adapter_model.safetensors")
    append_judgement(RunFolder(run).judgements, make_vote(3, comparison=make_comparison(None, digest, base=base)))
    assert "run-" in call("judge", run, other, "base", "--result")[1]
    assert "in 0 of 1 decided pair " in call("judge", run, other, "base", "--result")[1]
    assert call("judge", run.parent / "none", "--result")[0] == 2
    assert call("judge", run, "a", "b", "c")[0] == 2
