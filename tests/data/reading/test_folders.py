"""Files of a folder: its splits, subfolders, files that are not data, and paths without a file."""

import json

import pytest

from lora_chat.config.data import DataSection
from lora_chat.data.reading.find_files import choose_files
from lora_chat.data.reading.folders import SplitChoice
from lora_chat.data.sources import find_sources
from lora_chat.errors import DataError

CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
- config_name: short
  data_files:
  - {split: train, path: short.jsonl}
---
# Words
"""
SHARDS = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"]


@pytest.fixture
def folder(tmp_path):
    def make(*names, **contents):
        for name in names:
            path = tmp_path / "talk" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(contents.get(name.split(".")[0], "{}"), encoding="utf-8")
        return tmp_path / "talk"

    return make


def chosen_names(folder, split="train", subset=None, *, is_default=True, plain_text=False):
    chosen = choose_files(str(folder), SplitChoice(split, subset, is_default), plain_text=plain_text)
    return [path.relative_to(folder).as_posix() for path in chosen.paths], chosen


LAYOUTS = {
    "mlx-lm": (
        ["train.jsonl", "valid.jsonl", "test.jsonl", "README.md"],
        ["train.jsonl"],
        ["valid.jsonl", "test.jsonl"],
    ),
    "hub copy": (["README.md", ".gitattributes", *SHARDS], SHARDS[:2], SHARDS[2:]),
    "subfolders": (["train/a.json", "train/b.json", "test/a.json"], ["train/a.json", "train/b.json"], ["test/a.json"]),
    "words in names": (["shop_train_v2.csv", "shop-dev.csv"], ["shop_train_v2.csv"], ["shop-dev.csv"]),
    "two formats": (["train.csv", "train.jsonl", "test.csv"], ["train.jsonl"], ["train.csv", "test.csv"]),
    "no train split": (["shop.jsonl", "faq.jsonl", "test.jsonl"], ["faq.jsonl", "shop.jsonl"], ["test.jsonl"]),
    "no splits": (["b.jsonl", "a.json", "LICENSE", "notes.md", "load.py"], ["a.json", "b.jsonl"], []),
    "only subfolders": (["x/b.jsonl", "y/z/a.jsonl", ".git/c.jsonl"], ["x/b.jsonl", "y/z/a.jsonl"], []),
    "one split": (["test.jsonl"], ["test.jsonl"], []),
    "harmless words": (
        ["latest.jsonl", "contest.jsonl", "trainers.jsonl"],
        ["contest.jsonl", "latest.jsonl", "trainers.jsonl"],
        [],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_takes_the_training_split_and_names_the_others(folder, name):
    files, expected, unused = LAYOUTS[name]
    names, chosen = chosen_names(folder(*files))
    assert names == expected
    assert all(any(file in note for note in chosen.notes) for file in unused)
    assert bool(chosen.notes) == bool(unused)


def test_a_source_can_name_the_split_of_a_folder(folder):
    talk = folder("train.jsonl", "valid.jsonl", "test.jsonl")
    for split, expected in {"test": "test.jsonl", "validation": "valid.jsonl"}.items():
        (source,) = find_sources(DataSection(train={"path": str(talk), "split": split}).train_sources)
        assert [path.name for path in source.paths] == [expected]
    (source,) = find_sources(DataSection(train=str(talk)).train_sources, "validation")
    assert [path.name for path in source.paths] == ["valid.jsonl"]
    (source,) = find_sources(DataSection(train=str(talk)).train_sources, offered_splits=["validation"])
    assert "split: validation}" in source.notes[-1]


def test_refuses_a_split_that_the_folder_does_not_have(folder):
    talk = folder("train.jsonl", "valid.jsonl")
    with pytest.raises(DataError, match=r"no split test; its splits: train, validation"):
        chosen_names(talk, "test", is_default=False)
    with pytest.raises(DataError, match="has several splits: train, validation"):
        chosen_names(talk, "")
    with pytest.raises(DataError, match="no split dev"):
        chosen_names(folder("more/a.jsonl") / "more", "dev", is_default=False)
    with pytest.raises(DataError, match="no subset x"):
        chosen_names(talk, subset="x")


def test_custom_splits_of_a_hub_copy_are_named_when_train_is_missing(folder):
    talk = folder(*(f"data/{split}-00000-of-00001-0a1b.parquet" for split in ("train_sft", "test_sft")))
    with pytest.raises(DataError, match=r"its splits: test_sft, train_sft"):
        chosen_names(talk)
    assert chosen_names(talk, "train_sft", is_default=False)[0] == ["data/train_sft-00000-of-00001-0a1b.parquet"]


def test_follows_the_configs_of_a_local_card(folder):
    talk = folder("README.md", "short.jsonl", *SHARDS, README=CARD)
    names, chosen = chosen_names(talk)
    assert names == SHARDS[:2]
    assert SHARDS[2] in chosen.notes[0]
    assert chosen_names(talk, subset="short")[0] == ["short.jsonl"]
    with pytest.raises(DataError, match="no split validation"):
        chosen_names(talk, "validation", is_default=False)


def test_reads_notes_of_a_folder_as_plain_text_when_asked(folder):
    assert chosen_names(folder("README.md", "a.txt", "b.md"), plain_text=True)[0] == ["README.md", "a.txt", "b.md"]


def saved(folder, name):
    state = {"_data_files": [{"filename": f"data-0000{n}-of-00002.arrow"} for n in (0, 1)]}
    files = [f"{name}{entry['filename']}" for entry in state["_data_files"]]
    folder(*files, f"{name}dataset_info.json")
    return folder(f"{name}state.json", **{f"{name}state": json.dumps(state)})


def test_takes_the_files_that_save_to_disk_lists(folder):
    talk = saved(folder, "")
    (talk / "data-left-over.arrow").write_text("x")
    assert chosen_names(talk)[0] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    (talk / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"incomplete: it has no file data-00001"):
        chosen_names(talk)


def test_takes_one_split_of_a_saved_dataset_dict(folder):
    for name in ("train/", "test/"):
        talk = saved(folder, name)
    folder("dataset_dict.json", dataset_dict=json.dumps({"splits": ["train", "test"]}))
    names, chosen = chosen_names(talk)
    assert names == ["train/data-00000-of-00002.arrow", "train/data-00001-of-00002.arrow"]
    assert "not used: test" in chosen.notes[0]
    for bad in ("../train", "/etc", "none"):
        folder("dataset_dict.json", dataset_dict=json.dumps({"splits": [bad]}))
        with pytest.raises(DataError):
            chosen_names(talk, bad, is_default=False)


def test_a_missing_path_gets_advice(folder, monkeypatch, tmp_path):
    talk = folder("train.jsonl", "answers.csv")
    wrong = {
        talk / "trian.jsonl": f"did you mean {talk / 'train.jsonl'}",
        talk / "answers.jsonl": f"did you mean {talk / 'answers.csv'}",
        tmp_path / "tolk" / "train.jsonl": f"did you mean {talk / 'train.jsonl'}",
        tmp_path / "HuggingFaceH4" / "ultrachat_200k": "hub: HuggingFaceH4/ultrachat_200k, split: train",
        tmp_path / "none" / "deeper" / "x.jsonl": f"There is no folder {tmp_path / 'none'}",
    }
    for path, advice in wrong.items():
        with pytest.raises(DataError) as error:
            choose_files(str(path))
        assert advice in str(error.value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"starts at the folder of the recipe(.|\n)*train\.jsonl"):
        choose_files(str(tmp_path / "recipes" / "talk" / "train.jsonl"))
