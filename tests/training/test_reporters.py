"""Services that receive the metrics: what they need, what they get, and what happens when they fail."""

import json
import os
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback

from lora_chat.cli import main
from lora_chat.config.recipe import OutputSection
from lora_chat.errors import IntegrityError, MissingPackageError, UnavailableError
from lora_chat.training import reporters
from lora_chat.training.callbacks.reporter_guard import ReporterGuard, guard_integrations
from lora_chat.training.reporter_session import ReporterSession, finished_reporters, start_reporters
from lora_chat.training.reporters import REPORTERS, check_reporters

NAMES = [reporter.name for reporter in REPORTERS]
FAKE = """
import json, os, sys, types
RECEIVED = []
run = None
class Run:
    id, name, url, summary = "1", "fake", "", {}
    def _label(self, **options): pass
class Config(dict):
    def update(self, values, allow_val_change=False): RECEIVED.append(["config", str(values)])
config = Config()
def init(**options):
    global run
    print("a message on stdout")
    RECEIVED.append(["init", options, {n: v for n, v in os.environ.items() if n.startswith("WANDB")}])
    if options.get("id") == "deleted":
        raise ValueError("no such run")
    run = Run()
    return run
def log(values): RECEIVED.append(["log", dict(values)])
def finish(exit_code=0): RECEIVED.append(["finish", exit_code])
def define_metric(*names, **options): pass
def termwarn(*words, **options): pass
"""


@pytest.fixture
def fake_wandb(tmp_path, monkeypatch):
    """Install a package that records its calls, as if it were wandb."""
    package = tmp_path / "site" / "wandb"
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    for folder in ("sdk", "sdk/lib"):
        (package / folder / "__init__.py").write_text("")
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): pass\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("WANDB") or name == "NETRC"]:
        monkeypatch.delenv(name)
    yield tmp_path / "home"
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        del sys.modules[name]


def test_tensorboard_true_is_the_same_as_naming_it():
    assert OutputSection(tensorboard=True).reporters == OutputSection(report_to=("tensorboard",)).reporters
    assert OutputSection(tensorboard=True, report_to=("tensorboard", "mlflow")).reporters == ("tensorboard", "mlflow")
    assert OutputSection(tensorboard=True, report_to=("wandb",)).reporters == ("tensorboard", "wandb")
    assert OutputSection().reporters == ()
    with pytest.raises(ValueError, match="twice"):
        OutputSection(report_to=("wandb", "wandb"))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_one_line_before_training(name, monkeypatch):
    monkeypatch.setattr(reporters, "find_spec", lambda module: None)
    with pytest.raises(MissingPackageError, match=f"^output.report_to names {name}, .* Fix: pip install {name}$"):
        check_reporters([name])


def test_sft_stops_before_it_makes_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporters, "find_spec", lambda module: None)
    settings = [f"output.directory={tmp_path}/runs", "output.report_to=[mlflow]"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["sft", "recipes/smoke.yaml", *words]) == 8
    assert "Fix: pip install mlflow" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("file", "text", "environment", "is_ready"),
    [
        ("", "", {}, False),
        ("", "", {"WANDB_MODE": "online"}, False),
        ("", "", {"WANDB_MODE": "offline"}, True),
        ("", "", {"WANDB_API_KEY": "x"}, True),
        (".netrc", "machine api.wandb.ai login user password x\n", {}, True),
        (".netrc", "machine example.com login user password x\n", {}, False),
        (".netrc", "machine api.wandb.ai login user password x\n", {"WANDB_BASE_URL": "https://w.example.com"}, False),
        (".netrc", "machine w.example.com login u password x\n", {"WANDB_BASE_URL": "https://w.example.com"}, True),
        (".netrc", "machine", {}, False),
        (".config/wandb/settings", "[default]\nmode = offline\n", {}, True),
        (".config/wandb/settings", "[default]\nmode = online\n", {}, False),
        (".config/wandb/settings", "no section", {}, False),
    ],
)
def test_wandb_needs_a_login_or_offline_mode(fake_wandb, monkeypatch, file, text, environment, is_ready):
    if file:
        (fake_wandb / file).parent.mkdir(parents=True)
        (fake_wandb / file).write_text(text)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if is_ready:
        check_reporters(["wandb"])
    else:
        with pytest.raises(UnavailableError, match="WANDB_MODE=offline"):
            check_reporters(["wandb"])


def test_services_cannot_upload_more_than_metrics(fake_wandb, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run 1"
    run.mkdir()
    start_reporters(["wandb"], run)
    with finished_reporters(["wandb"]):
        print("printed by a service")
    assert capsys.readouterr().out == ""
    _, options, environment = sys.modules["wandb"].RECEIVED[0]
    assert options == {"project": "mine", "name": "run 1"}
    assert environment["WANDB_DIR"] == str(tmp_path)  # wandb writes links, and a run with links is refused
    for name in ("WANDB_LOG_MODEL", "WANDB_WATCH", "WANDB_SAVE_CODE"):
        assert environment[name] == "false"
    for name in ("WANDB_DISABLE_CODE", "WANDB_DISABLE_GIT", "WANDB__DISABLE_META"):
        assert environment[name] == "true"
    assert environment["WANDB_CONSOLE"] == "off"
    assert sys.modules["wandb"].RECEIVED[-1] == ["finish", 0]


def test_files_stay_in_the_run_unless_the_user_names_a_server(tmp_path, monkeypatch):
    by_name = {reporter.name: reporter for reporter in REPORTERS}
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    variables = {**by_name["mlflow"].defaults(tmp_path), **by_name["trackio"].defaults(tmp_path)}
    assert variables["MLFLOW_TRACKING_URI"].split(":", 1)[1].startswith("///")
    assert all(str(tmp_path) in value for value in variables.values())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")
    assert by_name["mlflow"].defaults(tmp_path) == {}


def test_a_service_that_cannot_start_stops_before_weights_load(fake_wandb, tmp_path, monkeypatch):
    import wandb

    def refuse(**options):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UnavailableError, match=r"wandb could not start: no route to host\. Fix"):
        start_reporters(["wandb"], tmp_path / "run-1")


def test_refuses_settings_of_a_service_from_anybody(fake_wandb, tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = https://evil.example.com\n")
    with pytest.raises(IntegrityError, match="Fix: delete it"):
        start_reporters(["wandb"], tmp_path / "run-1")


def test_a_failing_service_is_left_out_and_training_continues(messages):
    class MLflowCallback(TrainerCallback):
        calls = 0

        def on_log(self, args, state, control, **extra):
            self.calls += 1
            raise ConnectionError("server gone")

    class Handler:
        callbacks = [MLflowCallback(), TrainerCallback()]  # noqa: RUF012

    class StandIn:
        callback_handler = Handler()

    service = Handler.callbacks[0]
    (guard,) = guard_integrations(StandIn())
    assert guard is Handler.callbacks[0]
    assert isinstance(guard, ReporterGuard)
    assert type(Handler.callbacks[1]) is TrainerCallback
    for _ in range(3):
        guard.on_log(None, None, None, logs={})
    assert service.calls == 1
    assert len(messages) == 1
    assert "server gone" in messages[0]


class FakeIntegration(TrainerCallback):
    """Record the events of an integration."""

    def __init__(self):
        self.events = []

    def on_train_begin(self, args, state, control, model=None, **extra):
        self.events.append("begin")

    def on_log(self, args, state, control, logs=None, model=None, **extra):
        self.events.append((state, logs))

    def on_train_end(self, args, state, control, model=None, **extra):
        self.events.append("end")


class WandbCallback(FakeIntegration):
    pass


class MLflowCallback(FakeIntegration):
    pass


class StandInTrainer:
    """A trainer with integrations."""

    def __init__(self, *callbacks):
        self.callback_handler = type("Handler", (), {"callbacks": list(callbacks)})

    def train(self, step):
        for event in ("on_train_begin", "on_log", "on_train_end"):
            extra = {"logs": {"loss": 2.0}} if event == "on_log" else {}
            for callback in self.callback_handler.callbacks:
                getattr(callback, event)(None, step, None, model=object(), **extra)


def test_figures_of_the_comparison_follow_before_the_end_of_training(monkeypatch):
    tags = {}
    module = type("mlflow", (), {"set_tag": tags.__setitem__, "end_run": lambda status: tags.update(status=status)})
    monkeypatch.setitem(sys.modules, "mlflow", module)
    too_large, service, mlflow = WandbCallback(), WandbCallback(), MLflowCallback()
    with finished_reporters(["wandb", "mlflow"]) as session:
        first, second = StandInTrainer(too_large), StandInTrainer(service, mlflow)
        session.guard(first)
        first.train(1)
        assert "end" not in too_large.events
        session.guard(second)
        assert too_large.events[-1] == "end"
        second.train(4)
        session.log_final({"eval_validation_loss_adapted": 1.25}, {"verdict": "better"})
        assert tags == {"verdict": "better"}
    figures = {"eval_validation_loss_adapted": 1.25}
    assert service.events == ["begin", (4, {"loss": 2.0}), (4, figures | {"eval_verdict": "better"}), "end"]
    assert mlflow.events == ["begin", (4, {"loss": 2.0}), (4, figures), "end"]
    assert tags["status"] == "FINISHED"
    assert len(too_large.events) == 3


def test_a_failed_run_fails_in_the_services_too(fake_wandb, tmp_path):
    start_reporters(["wandb"], tmp_path)
    with pytest.raises(ZeroDivisionError), finished_reporters(["wandb"]):
        raise ZeroDivisionError
    assert sys.modules["wandb"].RECEIVED[-1] == ["finish", 1]


def test_a_service_that_fails_after_training_is_a_warning(messages):
    class Broken(WandbCallback):
        def on_log(self, args, state, control, logs=None, model=None, **extra):
            if "eval_verdict" in logs:
                raise ConnectionError("server gone")

    Broken.__name__ = "WandbCallback"
    session, trainer = ReporterSession(["wandb"]), StandInTrainer(broken := Broken())
    session.guard(trainer)
    trainer.train(1)
    session.log_final({}, {"verdict": "better"})
    session.close(failed=False)
    assert [message for message in messages if "server gone" in message] == messages
    assert broken.events == ["begin"]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ('{"wandb": "abc-1"}', [{"id": "abc-1", "resume": "allow"}]),
        ('{"wandb": "deleted"}', [{"id": "deleted", "resume": "allow"}, {}]),
        ('{"wandb": "../x y"}', [{}]),
        ('{"wandb": 7}', [{}]),
        ("[]", [{}]),
        ("{", [{}]),
        (None, [{}]),
    ],
)
def test_a_continued_run_continues_the_run_of_the_service(fake_wandb, tmp_path, content, options):
    run = tmp_path / "run-1"
    run.mkdir()
    if content is not None:
        (run / "reporters.json").write_text(content)
    start_reporters(["wandb"], run, continues=True)
    received = sys.modules["wandb"].RECEIVED
    plain = {"project": os.environ["WANDB_PROJECT"], "name": "run-1"}
    assert [entry[1] for entry in received] == [plain | more for more in options]
    assert json.loads((run / "reporters.json").read_text()) == {"wandb": "1"}


def test_a_received_run_does_not_choose_the_run_of_the_service(fake_wandb, tmp_path):
    (tmp_path / "reporters.json").write_text('{"wandb": "victim"}')
    start_reporters(["wandb"], tmp_path)
    assert "id" not in sys.modules["wandb"].RECEIVED[-1][1]


@pytest.mark.parametrize("has_database", [True, False])
def test_a_relative_run_folder_has_absolute_addresses(tmp_path, monkeypatch, has_database):
    (tmp_path / "runs" / "k-1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run = type("Run", (), {"info": type("Info", (), {"run_id": "m1"})})
    monkeypatch.setitem(sys.modules, "mlflow", type("mlflow", (), {"start_run": lambda **options: run}))
    monkeypatch.setattr(reporters, "find_spec", lambda module: has_database or None)
    for name in ("MLFLOW_TRACKING_URI", "_MLFLOW_SERVER_ARTIFACT_ROOT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    start_reporters(["mlflow"], Path("runs/k-1"))
    assert f"{tmp_path}/runs/k-1/mlflow" in os.environ["MLFLOW_TRACKING_URI"]
    assert os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] == (tmp_path / "runs/k-1/mlflow/artifacts").as_uri()


class Recorder:
    """A package that records the options of its functions."""

    def __init__(self, **attributes):
        self.calls = []
        self.__dict__.update(attributes)

    def record(self, name, result=None):
        def call(**options):
            self.calls.append((name, options))
            return result if result is not None else options

        return call


def start_fake(name, module, tmp_path, monkeypatch, continues=False):
    """Start a service with a fake package, and return the ids of its run."""
    run = tmp_path / "run-1"
    run.mkdir(exist_ok=True)
    monkeypatch.setitem(sys.modules, name, module)
    for variable in next(reporter for reporter in REPORTERS if reporter.name == name).required(run):
        monkeypatch.setenv(variable, "changed by the user")
    start_reporters([name], run, continues=continues)
    return json.loads((run / "reporters.json").read_text())


def test_comet_stays_offline_and_gets_no_facts_about_the_machine(tmp_path, monkeypatch):
    comet = Recorder()
    comet.ExperimentConfig = comet.record("config")
    comet.start = comet.record("start", type("Experiment", (), {"get_key": lambda self: "k1"})())
    assert start_fake("comet_ml", comet, tmp_path, monkeypatch) == {"comet_ml": "k1"}
    (_, config), (_, start) = comet.calls
    assert config["offline_directory"] == str(tmp_path / "run-1" / "comet_ml")
    named = {name for name in config if name.startswith(("log_", "auto_", "parse_"))}
    assert len(named) == 15
    assert not any(config[name] for name in named)
    assert start["online"] is False
    assert "experiment_key" not in start
    start_fake("comet_ml", comet, tmp_path, monkeypatch, continues=True)
    assert comet.calls[-1][1]["experiment_key"] == "k1"


def test_swanlab_stays_offline_and_gets_no_facts_about_the_machine(tmp_path, monkeypatch):
    swanlab = Recorder()
    swanlab.Settings = lambda **options: options
    swanlab.Settings.Probe = swanlab.Settings.Terminal = dict
    swanlab.init = swanlab.record("init", type("Run", (), {"id": "s1"})())
    assert start_fake("swanlab", swanlab, tmp_path, monkeypatch) == {"swanlab": "s1"}
    ((_, init),) = swanlab.calls
    assert (init["mode"], init["log_dir"]) == ("offline", str(tmp_path / "run-1" / "swanlab"))
    assert not any(init["settings"]["probe"].values())
    assert init["settings"]["terminal"] == {"proxy_type": "none"}
    start_fake("swanlab", swanlab, tmp_path, monkeypatch, continues=True)
    assert (swanlab.calls[-1][1]["id"], swanlab.calls[-1][1]["resume"]) == ("s1", "allow")


def test_every_service_is_guarded_and_can_be_named_together():
    from lora_chat.training.callbacks.reporter_guard import GUARDED

    assert sorted(GUARDED.values()) == sorted(NAMES)
    assert OutputSection(report_to=tuple(NAMES)).reporters == tuple(NAMES)


@pytest.mark.skipif(not os.environ.get("LORA_CHAT_ALL_BASES"), reason="on demand, with the packages that are installed")
@pytest.mark.parametrize("reporter", REPORTERS, ids=NAMES)
def test_a_real_package_records_the_run_without_dialogues(reporter, cache_home, tmp_path, monkeypatch, capsys):
    for name in reporter.modules[:1]:
        pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = [f"output.directory={tmp_path}/runs", f"output.report_to=[{reporter.name}]"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["sft", "recipes/smoke.yaml", "--json", *words]) == 0
    out = capsys.readouterr()
    assert len(out.out.splitlines()) == 1
    assert "failed and gets no more metrics" not in out.err
    files = [path for path in reporter.locate(tmp_path / "runs" / "smoke-1").rglob("*") if path.is_file()]
    assert files
    raw = b"".join(path.read_bytes() for path in files)
    for line in open("recipes/smoke/dialogues.jsonl", encoding="utf-8"):  # noqa: PTH123, SIM115
        for message in json.loads(line)["messages"]:
            assert len(message["content"]) < 12 or message["content"].encode() not in raw


@pytest.mark.skipif(not os.environ.get("LORA_CHAT_ALL_BASES"), reason="on demand")
def test_a_run_sends_metrics_and_settings_but_no_dialogue(fake_wandb, cache_home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = [f"output.directory={tmp_path}/runs", "output.report_to=[wandb]"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["sft", "recipes/smoke.yaml", "--json", *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    received = sys.modules["wandb"].RECEIVED
    kinds = [entry[0] for entry in received]
    assert kinds[0] == "init"
    assert received[-1] == ["finish", 0]
    assert kinds.count("log") >= 4
    final = received[-2][1]
    assert final["eval/verdict"] in ("better", "worse", "no difference shown")
    comparison = json.loads((tmp_path / "runs" / "smoke-1" / "comparison.json").read_text())
    assert final["eval/validation_loss_adapted"] == comparison["validation_loss"]["adapted"]
    text = json.dumps(received, default=str)
    assert "learning_rate" in text
    for line in open("recipes/smoke/dialogues.jsonl", encoding="utf-8"):  # noqa: PTH123, SIM115
        for message in json.loads(line)["messages"]:
            assert len(message["content"]) < 12 or message["content"] not in text


def test_metrics_are_not_sent_to_kubeflow_unasked(monkeypatch):
    from transformers.integrations.integration_utils import is_kubeflow_available

    from lora_chat.cli import ENVIRONMENT

    monkeypatch.delenv("DISABLE_KUBEFLOW_INTEGRATION", raising=False)
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "http://127.0.0.1:9")
    assert is_kubeflow_available()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert not is_kubeflow_available()
