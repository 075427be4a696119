"""Wrong input gives one message with the exit code of its kind, and leaves no run."""

import contextlib
import io
import json
import runpy
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.config.load import format_recipe_yaml, read_recipe
from lora_chat.config.plan import make_plan
from lora_chat.system.hardware import Hardware

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def row(question="q", answer="a"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def lines(*rows):
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


GOOD = [row(str(i)) for i in range(8)]
TOO_LONG = [row(str(i), "word " * 40) for i in range(4)]
BEYOND_POSITIONS = [*GOOD, row("long", "x" * 1500)]


@dataclass
class Case:
    code: int
    messages: list[str]
    data: str | None = lines(*GOOD)
    sets: list[str] = field(default_factory=list)
    questions: str | None = None


CASES = {
    "missing data": Case(3, ["There is no file {data}"], None),
    "empty data": Case(3, ["{data} contains no dialogue"], ""),
    "blank data": Case(3, ["{data} contains no dialogue"], "\n \n"),
    "malformed line": Case(3, ["{data}:3: ", "JSON", "data.skip_bad"], lines(*GOOD[:2], '{"messages": [', GOOD[3])),
    "speaker left out": Case(
        3,
        ["{data}:2: ", "leaves out", "name"],
        lines(GOOD[0], {"messages": [m | {"name": "Ann"} for m in row()["messages"]]}),
    ),
    "no assistant": Case(3, ["{data}:1: ", "no assistant message"], lines({"messages": row()["messages"][:1]}, *GOOD)),
    "one dialogue": Case(3, ["At least 2 different dialogues"], lines(GOOD[0], GOOD[0])),
    "all too long": Case(3, ["All dialogues", "{data}:", "data.max_length"], lines(*TOO_LONG), ["data.max_length=64"]),
    "all too long to drop": Case(
        3, ["All dialogues", "data.max_length"], lines(*TOO_LONG), ["data.max_length=64", "data.over_long=drop"]
    ),
    "beyond positions": Case(3, ["{data}:9: ", "1024 tokens"], lines(*BEYOND_POSITIONS), ["data.max_length=4000"]),
    "missing validation": Case(3, ["no file", "nowhere.jsonl"], sets=["data.validation=nowhere.jsonl"]),
    "missing questions": Case(3, ["no file", "nowhere.jsonl"], sets=["evaluation.questions=nowhere.jsonl"]),
    "faulty question": Case(
        3, ["{questions}:2: ", "accept"], questions=lines({"question": "a?", "accept": ["b"]}, {"question": "c?"})
    ),
    "unknown base": Case(8, ["There is no base smolm", "tiny-random"], sets=["base.name=smolm"]),
    "base without config": Case(8, ["no config.json"], sets=["base.name=."]),
    "hub out of reach": Case(
        8,
        ["nobody/no-such-model-here", "cannot be reached", "embedded base, smollm2-135m-instruct"],
        sets=["base.name=nobody/no-such-model-here"],
    ),
    "output inside a file": Case(
        2, ["Cannot write", "{data}/runs", "--set output.directory="], sets=["output.directory={data}/runs"]
    ),
    "unknown key": Case(2, ["--set adapter.rang=3", "Did you mean rank?"], sets=["adapter.rang=3"]),
    "micro batch": Case(2, ["training.micro_batch_size", "1, 2, 4."], sets=["training.micro_batch_size=3"]),
    "adapter on the head": Case(2, ["lm_head", "all-linear"], sets=["adapter.target_modules=[lm_head]"]),
    "unknown target": Case(2, ["no q_porj", "q_proj"], sets=["adapter.target_modules=[q_porj]"]),
}
OTHERS = {
    "missing recipe": (["sft", "nowhere.yaml"], 2, "nowhere.yaml"),
    "missing recipe to print": (["recipe", "nowhere.yaml", "--json"], 2, "nowhere.yaml"),
    "eval of nothing": (["eval", "runs/none-1", "--json"], 2, "There is no run runs/none-1"),
    "eval of a folder": (["eval", "folder", "--json"], 2, "folder is not a run"),
    "eval of a run without adapter": (["eval", "early-1"], 2, "early-1 has no adapter"),
    "merge of nothing": (["merge", "runs/none-1", "--to", "merged"], 2, "There is no run runs/none-1"),
    "merge of a folder": (["merge", "folder", "--to", "merged"], 2, "folder is not a run"),
    "chat with nothing": (["chat", "nothing"], 8, "There is no base nothing"),
    "chat with a missing path": (["chat", "./runs/none-1"], 8, "./runs/none-1"),
    "chat with a missing run": (["chat", "runs/none-1"], 8, "runs/none-1"),
    "chat with a folder": (["chat", "folder"], 8, "folder is not a model folder"),
    "chat with a run without adapter": (["chat", "early-1"], 2, "early-1 has no adapter"),
}

MALFORMED = Case(3, [], lines(*GOOD, "{", *GOOD))


def make_case(folder, case):
    folder.mkdir()
    data, recipe, questions = folder / "chats.jsonl", folder / "mine.yaml", folder / "questions.jsonl"
    if case.data is not None:
        data.write_text(case.data)
    text = SMOKE.read_text()
    assert text.count("smoke/dialogues.jsonl") == 1
    recipe.write_text(text.replace("smoke/dialogues.jsonl", data.name))
    sets = [f"output.directory={folder / 'runs'}", *(filled(setting, folder) for setting in case.sets)]
    if case.questions is not None:
        questions.write_text(case.questions)
        sets.append(f"evaluation.questions={questions}")
    return ["sft", str(recipe), "--json", *(word for setting in sets for word in ("--set", setting))]


def filled(text, folder):
    return text.replace("{data}", f"{folder}/chats.jsonl").replace("{questions}", f"{folder}/questions.jsonl")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    (work / "folder").mkdir()
    (work / "folder" / "notes.txt").write_text("not a run")
    (work / "early-1").mkdir()
    # The files of a run that ended before its adapter was saved.
    recipe = read_recipe(SMOKE)
    (work / "early-1" / "recipe.yaml").write_text(format_recipe_yaml(recipe))
    plan = make_plan(recipe, Hardware("cpu", "", 0, False, 1))
    (work / "early-1" / "plan.json").write_text(plan.model_dump_json())
    return work


@pytest.fixture(scope="module")
def outcomes(cache_home, work):
    commands = {name: make_case(work / name.replace(" ", "-"), case) for name, case in CASES.items()}
    commands |= {name: arguments for name, (arguments, _, _) in OTHERS.items()}
    outcomes = {name: call(work, lambda words=words: main(words)) for name, words in commands.items()}
    return outcomes | {"shell": call(work, lambda: run_module(make_case(work / "shell", MALFORMED)))}


def run_module(words):
    """Run a command as `python -m lora_chat` would, which ends with its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lora_chat", *words])
        patch.setattr(sys, "path", ["", *sys.path])
        runpy.run_module("lora_chat", run_name="__main__")


def call(folder, run):
    """Run a command in this process, in a folder and without the hub. Return its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        try:
            code = run()
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 1
    return code, out.getvalue(), err.getvalue()


def check(code, out, err, expected_code, messages):
    assert "Traceback" not in err
    assert code == expected_code, err
    assert out == ""
    assert err.count("Error: ") == 1
    message = err[err.index("Error: ") :]
    for text in messages:
        assert text in message
    return message


@pytest.mark.parametrize("name", CASES)
def test_wrong_recipe_or_data_gives_one_message(outcomes, work, name):
    folder, case = work / name.replace(" ", "-"), CASES[name]
    message = check(*outcomes[name], case.code, [filled(text, folder) for text in case.messages])
    assert len(message.splitlines()) <= 9


@pytest.mark.parametrize(
    "name",
    [pytest.param(name) for name in CASES],
)
def test_wrong_recipe_or_data_leaves_no_run(outcomes, work, name):
    folder = work / name.replace(" ", "-")
    assert name in outcomes
    assert {p.name for p in folder.iterdir()} <= {"chats.jsonl", "mine.yaml", "questions.jsonl"}
    assert not (work / "runs").exists()


@pytest.mark.parametrize("name", OTHERS)
def test_wrong_argument_gives_one_message(outcomes, work, name):
    _, code, message = OTHERS[name]
    check(*outcomes[name], code, [message])
    assert not (work / "merged").exists()


def test_does_not_advise_max_length_beyond_the_positions_of_the_base(outcomes):
    assert "--set data.max_length" not in outcomes["beyond positions"][2]


def test_chat_names_a_missing_run(outcomes):
    assert "no run" in outcomes["chat with a missing run"][2]


def test_shell_exits_with_3_for_a_malformed_line(outcomes, work):
    check(*outcomes["shell"], 3, [f"{work / 'shell' / 'chats.jsonl'}:9: "])
    assert not (work / "shell" / "runs").exists()
