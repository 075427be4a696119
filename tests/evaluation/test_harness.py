"""`eval --tasks`: tasks that could run code are refused, and both models' figures stand beside each other."""

import importlib.util
import json
import math
import os

import pytest

from lora_chat.cli import main
from lora_chat.errors import UsageError
from lora_chat.evaluation.harness_figures import format_figures, pair_figures
from lora_chat.evaluation.harness_tasks import parse_tasks

GOOD = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
INSTALLED = importlib.util.find_spec("lm_eval") is not None
ON_DEMAND = pytest.mark.skipif(
    os.environ.get("LORA_CHAT_ALL_BASES") != "1" or not INSTALLED, reason="on demand, with lm-eval installed"
)


@pytest.fixture
def write(tmp_path):
    def write(changes=(), text=None):
        (tmp_path / "items.jsonl").write_text(
            "".join(
                json.dumps({"question": f"{n}?", "choices": ["red", "blue sky"], "label": n % 2}) + "\n"
                for n in range(6)
            )
        )
        path = tmp_path / "task.yaml"
        path.write_text(json.dumps(GOOD | dict(changes)) if text is None else text)  # JSON is YAML
        return path

    return write


def test_task_file_has_absolute_data_files(write, tmp_path):
    (task,) = parse_tasks(str(write()), allow_code=False)
    assert task.config["dataset_kwargs"] == {"data_files": {"test": [str(tmp_path / "items.jsonl")]}}
    assert [task.name for task in parse_tasks("arc_easy, piqa", allow_code=False)] == ["arc_easy", "piqa"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": "evil.Task"}, "class is not accepted"),
        ({"include": "other.yaml"}, "include is not accepted"),
        ({"use_prompt": "promptsource:*"}, "use_prompt is not accepted"),
        ({"fewshot_config": {"sampler": "x"}}, "fewshot_config is not accepted"),
        ({"unsafe_code": True}, "unsafe_code is not accepted"),
        ({"metric_list": [{"metric": "evil/metric"}]}, "the metric evil/metric is not one of the harness"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "hf_evaluate is not accepted"),
        ({"metric_list": []}, "has no metric_list"),
        ({"generation_kwargs": {"custom_generate": "evil/repo"}}, "generation_kwargs.custom_generate is not accepted"),
        ({"generation_kwargs": ["x"]}, "is not a mapping"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "custom"}]}]}, "the filter custom is not accepted"),
        ({"dataset_path": "pandas"}, "dataset_path is not one of"),
        ({"dataset_path": "evil/data"}, "dataset_path is not one of"),
        ({"dataset_name": "x"}, "dataset_path is not one of"),
        ({"dataset_kwargs": {"data_files": "items.jsonl", "trust_remote_code": True}}, "trust_remote_code is not"),
        ({"dataset_kwargs": {"data_files": "https://evil.example/x.jsonl"}}, "there is no file https://evil.example"),
        ({"dataset_kwargs": {}}, "names no data_files"),
        ({"dataset_kwargs": None}, "is not a mapping"),
        ({"task": ["x"]}, "it has no name"),
    ],
    ids=str,
)
def test_refuses_a_field_that_could_run_code(write, changes, message):
    path = write(changes)
    with pytest.raises(UsageError) as caught:
        parse_tasks(str(path), allow_code=False)
    assert message in str(caught.value)
    assert parse_tasks(str(path), allow_code=True)[0].config is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: x\nprocess_docs: !function utils.run\n", "names a function"),
        ("task: !!python/name:os.system\n", "is not the file of a task"),
        ("a: &a [1]\nb: *a\n", "is not the file of a task"),
        ("- task", "it has no name"),
        ("", "it has no name"),
        ("{", "is not the file of a task"),
    ],
)
def test_refuses_code_and_damage_in_yaml(write, text, message):
    with pytest.raises(UsageError, match=message):
        parse_tasks(str(write(text=text)), allow_code=False)


@pytest.mark.parametrize("tasks", ["", "arc_easy,", "arc_easy,arc_easy", "folder/task", "none.yaml"])
def test_refuses_names_that_are_no_tasks(tasks):
    with pytest.raises(UsageError, match="--tasks"):
        parse_tasks(tasks, allow_code=False)


BASE = {
    "results": {"mine": {"alias": "mine", "acc,none": 0.25, "acc_stderr,none": 0.125, "f1,strict": 0.5}, "all": {}},
    "n-samples": {"mine": {"original": 9, "effective": 6}},
    "higher_is_better": {"mine": {"acc": True}},
}
ADAPTED = {"results": {"mine": {"acc,none": 0.5, "acc_stderr,none": "N/A", "f1,strict": math.nan}}}


def test_figures_of_both_models_stand_side_by_side():
    mine, group = pair_figures(BASE, ADAPTED)
    assert mine.result_fields == {
        "items": 6,
        "figures": {
            "acc": {
                "base": 0.25,
                "adapted": 0.5,
                "base_stderr": 0.125,
                "adapted_stderr": None,
                "higher_is_better": True,
            }
        },
    }
    assert group.figures == {}
    assert format_figures([mine]).splitlines() == [
        "task  metric  items  base         adapted",
        "mine  acc     6      0.25 ± 0.12  0.5",
    ]


def test_a_missing_harness_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["eval", "runs/x-1", "--tasks", "arc_easy"]) == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Fix: pip install 'lora-chat[harness]'")


@pytest.mark.parametrize(
    "words",
    [
        ["--limit", "3"],
        ["--allow-code"],
        ["--tasks", "piqa", "--data", "x"],
        ["--tasks", "piqa", "--questions", "x"],
        ["--tasks", "piqa", "--general", "off"],
        ["--tasks", "piqa", "--metric", "a.py:f"],
        ["--tasks", "piqa", "--set", "evaluation.samples=1"],
        ["--tasks", "piqa", "--parent", "x"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit_are_refused(words, capsys):
    assert main(["eval", "runs/x-1", *words]) == 2
    assert "Fix: " in capsys.readouterr().err


@ON_DEMAND
def test_harness_measures_base_and_adapted_model(cache_home, make_adapter, tmp_path, capsys, monkeypatch):
    import torch

    from lora_chat.pipeline.open_adapter import open_adapter

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    make_adapter("tiny-random", tmp_path / "adapter")
    texts = [("ab", "cde"), ("hello", "you")]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in texts))
    changes = {
        "output_type": "loglikelihood",
        "doc_to_text": "{{a}}",
        "doc_to_target": "{{b}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}],
        "target_delimiter": "",
    }
    config = {key: value for key, value in (GOOD | changes).items() if key != "doc_to_choice"}
    (tmp_path / "task.yaml").write_text(json.dumps(config))
    words = ["eval", str(tmp_path / "adapter"), "--tasks", str(tmp_path / "task.yaml"), "--json", "--accept-template"]
    assert main(words) == 0, capsys.readouterr().err
    figure = json.loads(capsys.readouterr().out)["tasks"]["mine"]["figures"]["perplexity"]
    opened = open_adapter(str(tmp_path / "adapter"))
    model, tokenizer = opened.adapter.load(opened.precision), opened.adapter.tokenizer

    def perplexity():
        sums = []
        for before, after in texts:
            start, ids = len(tokenizer(before)["input_ids"]), tokenizer(before + after)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            sums.append(sum(logits[i - 1, ids[i]].item() for i in range(start, len(ids))))
        return math.exp(-sum(sums) / len(sums))

    assert figure["adapted"] == pytest.approx(perplexity(), rel=1e-3)
    with model.disable_adapter():
        assert figure["base"] == pytest.approx(perplexity(), rel=1e-3)
    assert abs(math.log(figure["adapted"] / figure["base"])) > 0.01


@ON_DEMAND
@pytest.mark.parametrize("field", ["doc_to_text", "description"])
def test_templates_of_a_task_run_in_a_sandbox(cache_home, make_adapter, write, tmp_path, capsys, field, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    make_adapter("tiny-random", tmp_path / "adapter")
    path = write({field: "{{ question.__class__.__mro__ }}", "num_fewshot": 0})
    assert main(["eval", str(tmp_path / "adapter"), "--tasks", str(path), "--accept-template"]) in (2, 8)
    assert "unsafe" in capsys.readouterr().err


@ON_DEMAND
def test_no_metric_of_the_working_directory_runs(cache_home, make_adapter, tmp_path, capsys, monkeypatch):
    make_adapter("tiny-random", tmp_path / "adapter")
    (tmp_path / "code_eval").mkdir()
    (tmp_path / "code_eval" / "code_eval.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(tmp_path / "adapter"), "--tasks", "humaneval", "--accept-template"]) == 2
    assert "The metric code_eval is code" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()
