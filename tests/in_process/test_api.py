"""The Python API: the examples of its page, and a process that its calls leave unchanged."""

import asyncio
import contextlib
import doctest
import io
import json
import logging
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import lora_chat
from lora_chat.system.library_settings import CHATTY_LIBRARIES, ENVIRONMENT

ROOT = Path(__file__).parents[2]
SMALL = {
    "data.validation_share": 0.0,
    "evaluation.samples": 0,
    "evaluation.replies": 0,
    "checkpoint.every_steps": 1,
    "quantization.dtype": "float32",  # another precision than that of the examples
}


def process_state():
    """Return everything that a call may change in the process, in a form that can be compared."""
    import accelerate.state
    import datasets  # noqa: F401 - each library gives its logger a handler when it is imported
    import huggingface_hub.constants as hub
    import matplotlib
    import numpy as np
    import torch
    import transformers.utils.logging

    umask = os.umask(0o022)
    os.umask(umask)
    return {
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "path": list(sys.path),
        "kernels": sys.modules.get("kernels", "absent"),
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr, warnings.showwarning),
        "warnings": list(warnings.filters),
        "loggers": {
            name: (
                logging.getLogger(name).level,
                logging.getLogger(name).handlers[:],
                logging.getLogger(name).propagate,
            )
            for name in (None, "lora_chat", *CHATTY_LIBRARIES)
        },
        "disabled": logging.root.manager.disable,
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": (
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.is_autocast_enabled("cpu"),
        ),
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "umask": umask,
        "folder": Path.cwd(),
        "matplotlib": dict(matplotlib.rcParams),
        "hub": (hub.HF_HUB_DISABLE_TELEMETRY, hub.HF_HUB_DISABLE_XET, hub.HF_HUB_DISABLE_PROGRESS_BARS),
        "bars": transformers.utils.logging.is_progress_bar_enabled(),
        "accelerate": dict(accelerate.state.AcceleratorState._shared_state),
        "partial state": dict(accelerate.state.PartialState._shared_state),
        "limits": resource.getrlimit(resource.RLIMIT_DATA),
    }


@pytest.fixture(autouse=True, scope="module")
def ordinary_signals():
    """Give signals the handlers of an ordinary program, because tests that ran commands have left others."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="module")
def ordinary_logger():
    """Take the handlers from the logger of the package, because tests that ran commands have left one that prints."""
    logger = logging.getLogger("lora_chat")
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers[:] = True, [logging.NullHandler()]
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]


@pytest.fixture(scope="module")
def examples(cache_home, warm_exporters, tmp_path_factory):
    """Run the examples of docs/api.md in an ordinary process; return its state before and after, and their names."""
    import huggingface_hub.constants
    import matplotlib
    import transformers.integrations.hub_kernels
    import transformers.utils.logging

    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(output):
        patch.chdir(tmp_path_factory.mktemp("work"))
        for name in (*ENVIRONMENT, "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            patch.delenv(name, raising=False)
        patch.delitem(sys.modules, "kernels", raising=False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
        patch.setattr(transformers.utils.logging, "_tqdm_active", True)
        patch.setattr(transformers.integrations.hub_kernels, "_kernels_enabled", True)
        patch.setitem(matplotlib.rcParams, "backend", "svg")
        test = doctest.DocTestParser().get_doctest(
            (ROOT / "docs/api.md").read_text(encoding="utf-8"), {}, "docs/api.md", None, 0
        )
        report = io.StringIO()
        runner = doctest.DocTestRunner()
        before = process_state()
        failures = runner.run(test, out=report.write, clear_globs=False).failed
        after = process_state()
        yield SimpleNamespace(
            names=test.globs,
            failures=failures,
            report=report.getvalue(),
            before=before,
            after=after,
            output=output,
            count=len(test.examples),
        )


def test_examples_of_the_page_run(examples):
    assert examples.failures == 0, examples.report
    assert examples.count > 25


def test_every_public_name_exists_and_is_typed():
    source = (ROOT / "lora_chat/__init__.py").read_text(encoding="utf-8")
    typed = re.findall(r"^    from \S+ import (\w+) as \1$", source, re.MULTILINE)
    assert sorted(["__version__", *typed]) == sorted(lora_chat.__all__)
    assert {name: callable(getattr(lora_chat, name)) for name in typed} == dict.fromkeys(typed, True)
    assert set(lora_chat.__all__) <= set(dir(lora_chat))
    with pytest.raises(AttributeError, match="no attribute 'fine_tunes'"):
        lora_chat.fine_tunes  # noqa: B018


def test_import_is_quick_and_imports_no_library():
    code = "import lora_chat, sys, time; print(time.process_time(), {'torch', 'pydantic', 'numpy'} & {*sys.modules})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout
    seconds, modules = printed.split(" ", 1)
    assert modules == "set()\n"
    assert float(seconds) < 1.0  # of the whole process, with other programs on the machine; 0.03 s without them


def test_calls_leave_the_process_unchanged(examples):
    for name, before in examples.before.items():
        assert examples.after[name] == before, name
    assert examples.output.getvalue() == ""


def test_a_call_computes_in_the_default_modes_of_pytorch(examples, tmp_path):
    """The modes of the user's program would change weights (float64), or make the run fail (all others)."""
    import torch

    recipe = lora_chat.Recipe.read("smoke", {"output.directory": tmp_path})
    modes = torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta")
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        for mode in modes:
            stack.enter_context(mode)
        result = lora_chat.fine_tune(recipe)
        assert torch.get_default_dtype() is torch.float64
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        assert torch.empty(1).device.type == "meta"
    loss = examples.names["result"].figures["validation_loss"]
    assert result.figures["validation_loss"]["adapted"] == loss["adapted"]


def test_a_library_that_a_call_imports_gets_the_values_of_the_user(monkeypatch):
    from lora_chat.in_process.call import api_call

    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delitem(sys.modules, "huggingface_hub.constants", raising=False)
    monkeypatch.setattr("lora_chat.in_process.library_state.CHATTY_LIBRARIES", ("chatty_library",))
    with api_call("plan"):
        constants = SimpleNamespace(HF_HUB_DISABLE_TELEMETRY=os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1")
        monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
        monkeypatch.setitem(sys.modules, "chatty_library", constants)
        logging.getLogger("chatty_library").setLevel(logging.WARNING)
        assert constants.HF_HUB_DISABLE_TELEMETRY
    assert not constants.HF_HUB_DISABLE_TELEMETRY
    assert logging.getLogger("chatty_library").level == logging.WARNING


def test_a_public_name_imports_libraries_as_a_call_does(monkeypatch):
    """`from lora_chat import MergeResult` imports bitsandbytes, which would download code with `kernels`."""
    seen = []

    def import_module(name):
        seen.append((name, sys.modules.get("kernels", "absent"), os.environ.get("USE_HUB_KERNELS")))
        return sys.modules[name] if name in sys.modules else __import__(name, fromlist=["*"])

    monkeypatch.delenv("USE_HUB_KERNELS", raising=False)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    monkeypatch.setattr(lora_chat, "import_module", import_module)
    assert lora_chat.__getattr__("MergeResult").__name__ == "MergeResult"
    assert seen[-1] == ("lora_chat.pipeline.merge_adapters", None, "0")
    assert "kernels" not in sys.modules
    assert "USE_HUB_KERNELS" not in os.environ


def test_errors_reach_another_process():
    errors = [
        lora_chat.StoppedError("stopped", 15),
        lora_chat.ConsentError("a template", "adopt=True"),
        lora_chat.OutOfMemoryError("too large", "a smaller batch"),
        lora_chat.DataError("data"),
    ]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.exit_code) == (type(error), str(error), error.exit_code)


def test_a_changed_recipe_is_validated_again():
    recipe = lora_chat.Recipe.read("smoke")
    for changes in ({"epochs": -5}, {"epochs": "2"}):
        changed = recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})
        with pytest.raises(lora_chat.RecipeError, match="epochs"):
            lora_chat.plan(changed)
    with pytest.raises(lora_chat.RecipeError, match="training"):
        lora_chat.plan(recipe.model_copy(update={"training": None}))


class CallbackError(Exception):
    """An error of the user's function."""


def test_a_stopped_run_continues_in_a_thread_and_in_an_event_loop(examples, tmp_path, monkeypatch):
    """Ctrl-C, an error of the user's function in a thread, and the rest of the run inside a running event loop."""
    from lora_chat.training.callbacks.metrics import MetricsCallback

    monkeypatch.chdir(tmp_path)
    recipe = lora_chat.Recipe.read("smoke", {"output.directory": tmp_path, "output.name": "small", **SMALL})
    seen = {}

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsCallback, "on_step_end", interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"checkpoint of step 1 is saved.*\n?.*resume='small-1'") as stopped:
            lora_chat.fine_tune(recipe)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".part", ".tmp"))]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert stopped.value.__cause__ is None

    def fail_at_the_third_step(event):
        seen.setdefault("kernels", sys.modules["kernels"])
        seen.setdefault("telemetry", os.environ["HF_HUB_DISABLE_TELEMETRY"])
        if event.step == 2:
            with pytest.raises(lora_chat.InUseError, match="plan cannot start"):
                lora_chat.plan(recipe)
            raise CallbackError("enough")

    async def run_in_a_thread():
        with pytest.raises(CallbackError, match="enough") as failed:
            await asyncio.to_thread(
                lora_chat.fine_tune, recipe, resume=str(tmp_path / "small-1"), on_progress=fail_at_the_third_step
            )
        return failed.value

    error = asyncio.run(run_in_a_thread())
    assert "its checkpoint is saved" in str(error.__cause__)
    assert "Continue: fine_tune(recipe, resume='small-1')" in str(error.__cause__)
    assert seen == {"kernels": None, "telemetry": "1"}

    async def finish():
        return lora_chat.fine_tune(recipe, resume=tmp_path / "small-1")

    result = asyncio.run(finish())
    assert result.steps == 4
    assert result.verdict.word == "not measured"
    assert lora_chat.fine_tune(recipe, resume=result.run).figures == result.figures  # it is finished


def test_replies_are_those_of_the_command_line(examples, monkeypatch, capsys):
    """A sampled reply, because the greedy one of random layers repeats a token."""
    from lora_chat.cli import main

    run, loaded = examples.names["result"].run, examples.names["loaded"]
    flags = ["--chat", "--temperature", "1", "--seed", "3", "--max-new-tokens", "12", "--json"]
    with command_line(monkeypatch):
        assert main(["generate", str(run), "When do you open?", *flags]) == 0
    (expected,) = json.loads(capsys.readouterr().out)["texts"]
    settings = {"temperature": 1.0, "seed": 3, "max_new_tokens": 12}
    pieces = []
    assert lora_chat.generate(loaded, "When do you open?", **settings, on_text=pieces.append) == expected
    assert "".join(pieces).strip() == expected
    assert lora_chat.generate(loaded, "When do you open?", **settings | {"seed": 4}) != expected
    monkeypatch.setattr("lora_chat.in_process.reply.write_texts", lambda model, weights, prompt, *rest: [prompt])
    decode = loaded.tokenizer.decode
    assert decode(lora_chat.generate(loaded, "When do", chat=False)) == "When do"
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    asked = lora_chat.generate(loaded, messages)
    assert asked == lora_chat.generate(loaded, "U", system="S")
    assert asked == loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_a_model_in_training_replies_as_in_evaluation(examples, monkeypatch):
    """In training mode, dropout changes tokens, and gradient checkpointing generates other tokens without a cache."""
    loaded = lora_chat.load(examples.names["result"].run)
    loaded.model.train()
    loaded.model.get_base_model().model.norm.eval()
    modes = [module.training for module in loaded.model.modules()]

    def write_texts(chat_model, model, *rest):
        return [[module.training for module in model.modules()]]

    monkeypatch.setattr("lora_chat.in_process.reply.write_texts", write_texts)
    assert not any(lora_chat.generate(loaded, "When do you open?"))
    assert [module.training for module in loaded.model.modules()] == modes
    assert set(modes) == {True, False}


@contextlib.contextmanager
def command_line(monkeypatch):
    """Undo the changes of the process that the command line makes."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    filters, hooks = warnings.filters[:], (sys.excepthook, threading.excepthook)
    streams = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        sys.excepthook, threading.excepthook = hooks
        warnings.filters[:] = filters
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda run: lora_chat.Recipe.read("smoke", {"training.epoch": 1}), "RecipeError", "Did you mean epochs"),
        (
            lambda run: lora_chat.Recipe.read("smoke", {"training.epochs": object()}),
            "RecipeError",
            "object is not text",
        ),
        (lambda run: lora_chat.Recipe.from_dict({"data": {"train": 3}}), "RecipeError", "data.train"),
        (lambda run: lora_chat.Recipe.from_dict({}), "RecipeError", "data is needed"),
        (lambda run: lora_chat.plan(7), "UsageError", "not int"),
        (lambda run: lora_chat.generate(run, []), "UsageError", "at least one message"),
        (lambda run: lora_chat.generate(run, [{"role": "x", "content": "y"}]), "UsageError", "role"),
        (
            lambda run: lora_chat.generate(run, [{"role": r, "content": "y"} for r in ("user", "assistant")]),
            "UsageError",
            "end with a reply",
        ),
        (lambda run: lora_chat.generate(run, "x", top_p=0.5), "UsageError", "top_p"),
        (lambda run: lora_chat.export(run, "onnx"), "UsageError", "choose from gguf"),
        (lambda run: lora_chat.verify(run, signr="key.pub"), "UsageError", "signr: unknown argument.*signer"),
        (lambda run: lora_chat.generate(run, "x", max_tokens=3), "UsageError", "max_tokens: unknown argument"),
        (lambda run: lora_chat.merge(run, "m", into="orignal"), "UsageError", "into='orignal'.*trained, original"),
        (lambda run: lora_chat.merge([], "m"), "UsageError", "No adapter"),
        (lambda run: lora_chat.merge(run, "m", [float("nan")]), "UsageError", "not all finite"),
        (lambda run: lora_chat.export(run, None), "UsageError", "choose from gguf"),
        (lambda run: lora_chat.inspect_data("smoke", -1), "UsageError", "count=-1"),
        (lambda run: lora_chat.load(run, quantization="fp4"), "UsageError", "quantization='fp4'"),
        (lambda run: lora_chat.export(run, "gguf", types="q8_0"), "UsageError", r"types=\['q8_0'\]"),
        (lambda run: lora_chat.fine_tune("smoke", resume=""), "UsageError", "resume=''"),
        (lambda run: lora_chat.generate(run, {"role": "user", "content": "x"}), "UsageError", "list of messages"),
        (lambda run: lora_chat.generate(run, "x", max_new_tokens=2.5), "UsageError", "whole number"),
        (
            lambda run: lora_chat.generate(run, [{"role": r, "content": "y"} for r in ("system", "user")], system="z"),
            "UsageError",
            "leave one out",
        ),
        (lambda run: lora_chat.plan("smoke", memory=12), "UsageError", "memory=12"),
        (lambda run: lora_chat.load(run / "nothing"), "UnavailableError", "no run, parcel"),
    ],
)
def test_mistakes_are_errors_of_lora_chat(examples, call, error, message):
    with pytest.raises(getattr(lora_chat, error), match=message):
        call(examples.names["result"].run)


def test_a_refused_parcel_raises_unless_the_caller_looks_at_it(examples, tmp_path):
    parcel = bytearray(Path(examples.names["packed"].parcel).read_bytes())
    parcel[len(parcel) // 2] ^= 1
    damaged = tmp_path / "damaged.lorachat"
    damaged.write_bytes(parcel)
    with pytest.raises(lora_chat.IntegrityError, match="is refused"):
        lora_chat.verify(damaged)
    assert not lora_chat.verify(damaged, raises=False).passed


def test_consent_names_the_argument(examples, monkeypatch, tmp_path):
    """A run of another person is one whose signature is not by this user's key."""
    run = tmp_path / "run-1"
    shutil.copytree(examples.names["result"].run, run)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (run / "result.json").unlink()
    with pytest.raises(lora_chat.ConsentError, match=r"If you trust it, add adopt=True$"):
        lora_chat.fine_tune(examples.names["recipe"], resume=run)


def test_several_processes_are_refused_and_keep_their_variables(examples, monkeypatch):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (variables | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(lora_chat.UsageError, match="fine_tune uses one process"):
        lora_chat.fine_tune("smoke")
    assert {name: os.environ[name] for name in variables} == variables


def test_caught_signals_stop_after_a_checkpoint(examples, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def stop(event):
        if event.step == 1:
            signal.raise_signal(signal.SIGTERM)

    recipe = lora_chat.Recipe.read("smoke", {"output.directory": tmp_path, **SMALL})
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(lora_chat.StoppedError, match=r"its checkpoint is saved\.\nContinue: fine_tune"):
        lora_chat.fine_tune(recipe, on_progress=stop, catch_signals=True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_printed_progress_is_plain_and_rare(capsys):
    show = lora_chat.ProgressPrinter(seconds_between_steps=60)
    show(lora_chat.ProgressEvent("training"))
    for step in range(1, 11):
        show(
            lora_chat.ProgressEvent(
                "training", step=step, steps=10, loss=1.5, tokens_per_second=20.0, seconds_left=70.0
            )
        )
    show(lora_chat.ProgressEvent("training", step=10, steps=10, validation_loss=2.0))
    show(lora_chat.ProgressEvent("training", message="evil \x1b[31m text"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training ..."
    assert lines[1] == "step 1/10  loss 1.500  20 supervised tokens/s  1m 10s left"
    assert [line.split()[1] for line in lines[1:]] == ["1/10", "2/10", "10/10", "10/10", lines[-1].split()[1]]
    assert "\x1b" not in lines[-1]


def test_a_notebook_cell_gets_plain_lines(monkeypatch):
    from lora_chat.training import progress_bar

    monkeypatch.setattr(progress_bar, "is_terminal", lambda stream: True)
    monkeypatch.setattr(progress_bar, "BarView", lambda: "bar")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert progress_bar.open_progress_view() == "bar"
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert isinstance(progress_bar.open_progress_view(), progress_bar.LineView)
