"""A process that reads other inputs than the first ends all processes before weights load."""

import json
import os
from types import SimpleNamespace

import pytest
from ranks import run_ranks

from lora_chat.config.load import read_recipe
from lora_chat.data.dataset import build_block_set, build_empty_set
from lora_chat.errors import IntegrityError
from lora_chat.evaluation.general.items import GeneralItem
from lora_chat.evaluation.general.selection import GeneralSet
from lora_chat.evaluation.questions import Question
from lora_chat.pipeline import fine_tune as first_process
from lora_chat.pipeline import follow_run as later_process
from lora_chat.pipeline.held_out_digests import digest_held_out
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.processes.group import current_group

pytestmark = pytest.mark.slow  # imports libraries in a server of processes

ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
SETTINGS = {
    "data.train": "train.jsonl",
    "data.validation": "validation.jsonl",
    "data.test": "test.jsonl",
    "evaluation.questions": "questions.jsonl",
    "evaluation.general": "general.jsonl",
}


def _write(folder, name, number) -> str:
    """Write a file of the recipe, which another number changes, and return its path."""
    rows = [{"question": f"Which number follows {number + i}?", "accept": [str(number + i + 1)]} for i in range(3)]
    if name in ("train.jsonl", "validation.jsonl", "test.jsonl"):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"{name} {i}"},
                    {"role": "assistant", "content": f"{i} {number}"},
                ]
            }
            for i in range(8)
        ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


class WeightsLoad(Exception):
    pass


def _run(folder, changed) -> str:
    """Take part in a run whose second process finds another file. Return its error, or that weights load."""

    def load(*args) -> None:
        raise WeightsLoad

    first_process.load_adapted_model = later_process.load_adapted_model = load
    prepare = later_process._prepare

    def prepare_other(*args, **kwargs):
        if changed:
            _write(folder, changed, 5)
        return prepare(*args, **kwargs)

    later_process._prepare = prepare_other
    settings = {name: str(folder / file) for name, file in SETTINGS.items()} | {
        "output.directory": str(folder / "runs")
    }
    settings |= {"data.validation_share": "0", "training.memory": "unlimited"}
    recipe = read_recipe("recipes/smoke.yaml", [f"{name}={value}" for name, value in settings.items()])
    try:
        if current_group().is_first:
            first_process.fine_tune(recipe, RunProgress())
        else:
            later_process.follow_run(recipe, RunProgress())
    except IntegrityError as error:
        current_group().wait()  # for the first process, which would otherwise wait for this one
        return str(error)
    except WeightsLoad:
        return "weights load"
    return ""


@ON_DEMAND
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("train.jsonl", "data.rows"),
        ("validation.jsonl", "the validation set"),
        ("test.jsonl", "the test set"),
        ("questions.jsonl", "the questions"),
        ("general.jsonl", "the general items"),
        (None, None),
    ],
)
def test_another_file_ends_the_run(cache_home, tmp_path, file, name):
    for each in SETTINGS.values():
        _write(tmp_path, each, 1)
    first, second = run_ranks(2, _run, tmp_path, file)
    assert first == "weights load"
    if file:
        assert f"than the first: {name} differs. Fix: " in second
    else:
        assert second == first


def _make_prepared(rows=(1, 2), questions="g", general="n", system=None, stop_ids=(2,)):
    dialogues = build_block_set([[*rows], [3]])
    return SimpleNamespace(
        validation=dialogues,
        test=build_empty_set(),
        questions=[Question(questions, ("h",), "a/path", 7)],
        general=GeneralSet((GeneralItem("one", "en", "fact", general, "contains", {"accept": ("x",)}),), 1),
        identity=SimpleNamespace(system=system),
        stop_ids=stop_ids,
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rows": (1, 3)}, "the validation set"),
        ({"questions": "i"}, "the questions"),
        ({"general": "m"}, "the general items"),
        ({"system": "Be brief."}, "the system message"),
        ({"stop_ids": (2, 9)}, "the stop tokens"),
    ],
)
def test_digests_name_what_differs(change, name):
    one, same, other = (digest_held_out(_make_prepared(**each)) for each in ({}, {}, change))
    assert one == same
    assert [key for key in one if one[key] != other[key]] == [name]
