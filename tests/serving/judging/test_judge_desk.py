"""`serve` offers the judge page for a run of this user, as long as the run has the weights that were loaded."""

from types import SimpleNamespace

import pytest

pytest.importorskip("starlette")

from judge_models import ScriptedGenerator, ScriptedModels, make_plan

from lora_chat.errors import IntegrityError
from lora_chat.pipeline.judge_plan import JudgeSettings
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.runs.run_folder import RunFolder
from lora_chat.serving import run_judge
from lora_chat.serving.judging import served_desk
from lora_chat.serving.judging.judge_desk import JudgeDesk, JudgeUnavailableError
from lora_chat.serving.judging.judge_session import JudgeSession
from lora_chat.serving.judging.served_desk import make_served_desk
from lora_chat.system.hashing import digest_file


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path)
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return run


@pytest.fixture
def make_desk(run, tiny_tokenizer, monkeypatch):
    def make(*, is_own=True, plan_weights=None):
        weights = run.adapter / "adapter_model.safetensors"
        monkeypatch.setattr(served_desk, "find_foreign_reason", lambda run: None if is_own else "not signed")

        def plan(*arguments):
            made = make_plan(run.path, tiny_tokenizer)
            a = made.comparison.a.model_copy(update={"adapter": plan_weights or digest_file(weights)})
            object.__setattr__(made, "comparison", made.comparison.model_copy(update={"a": a}))
            return made

        monkeypatch.setattr(served_desk, "plan_judgement", plan)
        models = ScriptedModels(ScriptedGenerator(tiny_tokenizer), run)
        return make_served_desk(models, TrustOptions(), JudgeSettings())

    return make


def test_the_first_run_of_this_user_is_judged_against_the_base(make_desk):
    desk = make_desk()
    assert desk.is_available and not desk.is_only_page
    session = desk.find_session()
    assert session is desk.find_session()
    assert session.plan.comparison.b.adapter is None


def test_a_run_of_somebody_else_is_not_judged(make_desk):
    desk = make_desk(is_own=False)
    assert not desk.is_available
    with pytest.raises(JudgeUnavailableError, match="none of the served models is a run of yours"):
        desk.find_session()


def test_a_run_that_was_trained_again_is_not_judged_with_the_loaded_weights(make_desk, run):
    desk = make_desk()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(JudgeUnavailableError, match="other weights"):
        desk.find_session()


def test_a_model_that_is_not_loaded_is_not_judged(run, tiny_tokenizer):
    models = SimpleNamespace(
        generator=ScriptedGenerator(tiny_tokenizer), list=lambda: (), refused={"run-1": "another base"}
    )
    with pytest.raises(IntegrityError, match="cannot be judged: another base"):
        JudgeSession(make_plan(run.path, tiny_tokenizer), models)


@pytest.mark.parametrize(
    ("platform", "display", "is_opened"), [("linux", "", False), ("linux", ":0", True), ("darwin", "", True)]
)
def test_a_browser_opens_only_where_there_is_a_display(monkeypatch, platform, display, is_opened):
    opened = []
    monkeypatch.setattr(run_judge.sys, "platform", platform)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(run_judge.webbrowser, "open", opened.append)
    monkeypatch.setattr(run_judge.threading.Thread, "start", lambda thread: thread._target(*thread._args))
    desk = JudgeDesk(lambda: None, opens_page=run_judge.open_page)
    desk.announce("http://127.0.0.1:8001/")
    assert opened == ([desk.link] if is_opened else [])
