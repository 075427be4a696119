import os
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.config.load import format_recipe_yaml, read_recipe
from lora_chat.config.recipe import Recipe
from lora_chat.errors import RecipeError

DATA = "data: {train: dialogues.jsonl}\n"


@pytest.fixture
def read_error(tmp_path):
    def read(text, *sets, name="mine.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        with pytest.raises(RecipeError) as caught:
            read_recipe(path, sets)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return read


@pytest.fixture
def read_text(tmp_path):
    def read(text, *sets):
        path = tmp_path / "mine.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return read_recipe(path, sets)

    return read


def test_recipe_with_only_data_has_every_default(read_text, tmp_path):
    recipe = read_text(DATA)
    assert recipe.training.learning_rate == 2e-4
    assert recipe.adapter.rank == 16
    assert recipe.data.train == str(tmp_path / "dialogues.jsonl")
    assert recipe.output.name == "mine"


def test_unknown_key_is_reported_with_line_and_similar_key(read_error):
    message = read_error(
        """\
        data:
          train: dialogues.jsonl
        training:
          epochs: 1
          learning_rat: 1e-3
        """
    )
    assert "mine.yaml:5:" in message
    assert "training.learning_rat" in message
    assert "Did you mean learning_rate?" in message


def test_unknown_key_without_similar_key_lists_known_keys(read_error):
    message = read_error(DATA + "quantization: {bits: 4}\n")
    assert "mine.yaml:2:" in message
    assert "mode" in message
    assert "double_quantization" in message


def test_unknown_section_is_reported_with_similar_section(read_error):
    message = read_error(DATA + "\ntrainign:\n  epochs: 1\n")
    assert "mine.yaml:3:" in message
    assert "Did you mean training?" in message


def test_reports_all_errors_with_their_lines(read_error):
    message = read_error(DATA + "adapter:\n  rank: 0\n  variant: loha\ntraining:\n  epoch: 1\n")
    lines = message.splitlines()
    assert len(lines) == 3
    assert [re.search(r"mine\.yaml:(\d+):", line)[1] for line in lines] == ["3", "4", "6"]


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("adapter: {rank: many}", "adapter.rank"),
        ("adapter: {rank: 1.5}", "adapter.rank"),
        ("adapter: {rank: '8'}", "adapter.rank"),
        ("training: {epochs: yes}", "training.epochs"),
        ("base: {name: 7}", "base.name"),
        ("base: {name: [a]}", "base.name"),
        ("output: {tensorboard: 1}", "output.tensorboard"),
        ("output: {tensorboard: 'true'}", "output.tensorboard"),
        ("training: {micro_batch_size: some}", "training.micro_batch_size"),
        ("training: {gradient_checkpointing: 0}", "training.gradient_checkpointing"),
        ("adapter: {target_modules: q_proj}", "adapter.target_modules"),
        ("adapter: {target_modules: [1]}", "adapter.target_modules"),
        ("adapter: 16", "adapter"),
        ("training:", "training"),
    ],
)
def test_rejects_value_of_wrong_type(read_error, setting, key):
    message = read_error(DATA + "# a comment\n" + setting + "\n")
    assert "mine.yaml:3:" in message
    assert key in message
    assert "given:" in message


@pytest.mark.parametrize(
    "setting",
    [
        "adapter: {rank: 0}",
        "adapter: {rank: 2000}",
        "adapter: {alpha: -1}",
        "adapter: {alpha: .nan}",
        "adapter: {dropout: 1.0}",
        "adapter: {target_modules: []}",
        "adapter: {target_modules: ['']}",
        "adapter: {variant: loha}",
        "base: {name: ''}",
        "quantization: {mode: 3bit}",
        "data: {train: a.jsonl, validation_share: -0.1}",
        "data: {train: a.jsonl, validation_share: 1}",
        "data: {train: a.jsonl, max_length: 7}",
        "data: {train: a.jsonl, skip_bad: -1}",
        "data: {train: a.jsonl, over_long: shorten}",
        "training: {epochs: 0}",
        "training: {max_steps: 0}",
        "training: {learning_rate: 0}",
        "training: {learning_rate: 1}",
        "training: {learning_rate: .nan}",
        "training: {schedule: step}",
        "training: {warmup_share: 1}",
        "training: {effective_batch_size: 0}",
        "training: {micro_batch_size: 0}",
        "evaluation: {max_new_tokens: 0}",
        "output: {name: ../up}",
        "output: {name: .hidden}",
    ],
)
def test_rejects_value_out_of_range_with_line(read_error, setting):
    text = setting if setting.startswith("data:") else DATA.rstrip() + "\n" + setting
    line = len(text.splitlines())
    message = read_error(text + "\n")
    assert f"mine.yaml:{line}:" in message
    assert re.search(r"(base|quantization|adapter|data|training|evaluation|output)\.\w+", message)


@pytest.mark.parametrize(
    "setting",
    [
        "training: {seed: -1}",
        "training: {seed: 100000000000000000000000000}",
        "adapter: {alpha: .inf}",
        "training: {epochs: .inf}",
        "training: {weight_decay: .inf}",
    ],
)
def test_rejects_unusable_numbers(read_error, setting):
    assert "mine.yaml:2:" in read_error(DATA + setting + "\n")


def test_rejects_repeated_key_at_its_second_line(read_error):
    message = read_error("data:\n  train: a.jsonl\n  seed: 1\n  train: b.jsonl\n")
    assert "mine.yaml:4:" in message
    assert "train" in message
    assert "twice" in message


def test_rejects_repeated_section(read_error):
    message = read_error(DATA + "training: {epochs: 1}\ntraining: {seed: 1}\n")
    assert "mine.yaml:3:" in message
    assert "training is given twice" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data:\n  train: a.jsonl\ntraining:\n  epochs: [1\n", 5),
        ("data:\n\ttrain: a.jsonl\n", 2),
        ("data: {train: a: b}\n", 1),
        (DATA + "base: {name: *nobody}\n", 2),
        (DATA + "---\n" + DATA, 2),
    ],
)
def test_reports_yaml_error_with_line(read_error, text, line):
    message = read_error(text)
    assert f"mine.yaml:{line}:" in message
    assert "YAML" in message


def test_rejects_recipe_that_is_not_utf8(read_error):
    message = read_error(b"data: {train: caf\xe9.jsonl}\n")
    assert "mine.yaml" in message
    assert "UTF-8" in message


def test_rejects_control_characters(read_error):
    assert "mine.yaml" in read_error(b"data: {train: \x00\x01}\n")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "7\n"])
def test_rejects_recipe_without_sections(read_error, text):
    message = read_error(text)
    assert "mine.yaml:1:" in message
    assert "sections" in message


def test_missing_recipe_suggests_similar_name(tmp_path):
    (tmp_path / "quickstart.yaml").write_text(DATA)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "quikstart.yaml")
    assert f"Did you mean {tmp_path / 'quickstart.yaml'}?" in str(caught.value)
    assert "quikstart.yaml" in str(caught.value)


def test_missing_recipe_without_similar_name_suggests_nothing(tmp_path):
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "none" / "mine.yaml")
    assert "Did you mean" not in str(caught.value)


def test_rejects_folder_as_recipe(tmp_path):
    with pytest.raises(RecipeError, match="directory"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "training: {epochs: 1}\n"])
def test_rejects_recipe_without_data(read_error, text):
    message = read_error(text)
    assert "mine.yaml" in message
    assert "data is needed" in message


def test_rejects_data_without_training_file(read_error):
    message = read_error("training: {epochs: 1}\ndata:\n  seed: 1\n")
    assert "mine.yaml:2:" in message
    assert "data.train is needed" in message


def test_applies_settings_after_the_file_in_order(read_text):
    recipe = read_text(DATA + "training: {epochs: 1, seed: 5}\n", "training.epochs=2", "training.epochs=7")
    assert recipe.training.epochs == 7
    assert recipe.training.seed == 5


def test_setting_can_replace_invalid_value_and_add_section(read_text):
    recipe = read_text(DATA + "adapter: {rank: 0}\n", "adapter.rank=4", "base.name=tiny-random")
    assert recipe.adapter.rank == 4
    assert recipe.base.name == "tiny-random"


def test_setting_can_supply_the_data(read_text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_text("", "data.train=d.jsonl").data.train == str(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.learning_rat=1e-3", "Did you mean learning_rate?"),
        ("trainign.epochs=1", "Did you mean training?"),
        ("training.epochs=0", "training.epochs"),
        ("training.epochs=many", "training.epochs"),
        ("training.epochs=[1", "not valid YAML"),
        ("training.epochs", "section.key=value"),
        ("=1", "section.key=value"),
        ("training.=1", "section.key=value"),
        (".epochs=1", "section.key=value"),
        ("epochs=1", "epochs"),
        ("training=1", "section and a key"),
        ("training.optimizer.eps=1", "section and a key"),
        ("data.train=", "data.train"),
        ("base.name=!mine x", "!mine"),
        ("adapter.target_modules=[q_proj, 3]", "adapter.target_modules"),
    ],
)
def test_rejects_invalid_setting_and_names_it(read_error, setting, expected):
    message = read_error(DATA, setting)
    assert "--set" in message
    assert expected in message
    assert "mine.yaml" not in message


def test_rejects_setting_in_a_value_that_is_not_a_section(read_error):
    message = read_error(DATA + "training: 3\n", "training.epochs=1")
    assert "mine.yaml:2:" in message


@pytest.mark.parametrize(
    ("text", "number"),
    [("2e-4", 2e-4), ("1e-3", 1e-3), ("5E-5", 5e-5), ("1.5e-3", 1.5e-3), ("0.01", 0.01), ("+1e-2", 1e-2)],
)
def test_accepts_numbers_with_exponents(read_text, text, number):
    assert read_text(DATA + f"training: {{learning_rate: {text}}}\n").training.learning_rate == number
    assert read_text(DATA, f"training.learning_rate={text}").training.learning_rate == number


@pytest.mark.parametrize("text", ["e", "e-4", "1e", "1e-", "--1e3", "1e2e3"])
def test_rejects_malformed_numbers(read_error, text):
    assert "training.learning_rate" in read_error(DATA + f"training: {{learning_rate: {text}}}\n")


def test_quoted_digits_are_text(read_text):
    assert read_text(DATA + 'base: {revision: "12e4567"}\n').base.revision == "12e4567"


@pytest.mark.parametrize("written", ["[q_proj, v_proj]", "\n  - q_proj\n  - v_proj"])
def test_target_modules_can_be_a_list(read_text, written):
    recipe = read_text(DATA + f"adapter:\n target_modules: {written}\n")
    assert recipe.adapter.target_modules == ("q_proj", "v_proj")


def test_target_modules_can_be_a_list_in_a_setting(read_text):
    assert read_text(DATA, "adapter.target_modules=[q_proj]").adapter.target_modules == ("q_proj",)


def test_paths_start_at_the_recipe_and_paths_of_settings_at_the_working_directory(tmp_path, monkeypatch):
    folder, here = tmp_path / "recipes", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    recipe = folder / "mine.yaml"
    recipe.write_text("data: {train: a.jsonl, validation: ../v.jsonl}\nevaluation: {questions: q.jsonl}\n")
    monkeypatch.chdir(here)
    plain = read_recipe(os.path.relpath(recipe))
    assert plain.data.train == str(folder / "a.jsonl")
    assert plain.data.validation == str(tmp_path / "v.jsonl")
    assert plain.evaluation.questions == str(folder / "q.jsonl")
    changed = read_recipe(recipe, ["data.train=b.jsonl", "evaluation.questions=sub/q.jsonl"])
    assert changed.data.train == str(here / "b.jsonl")
    assert changed.data.validation == str(tmp_path / "v.jsonl")
    assert changed.evaluation.questions == str(here / "sub" / "q.jsonl")


def test_resolves_absolute_paths_and_home_folder(read_text, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert read_text("data: {train: /data/a.jsonl}\n").data.train == "/data/a.jsonl"
    assert read_text("data: {train: ~/a.jsonl}\n").data.train == str(tmp_path / "home" / "a.jsonl")


@pytest.mark.parametrize("path", ["~nobody-of-this-name/a.jsonl", '"a\\0b"'])
def test_rejects_impossible_paths_with_line(read_error, path):
    assert "mine.yaml:1:" in read_error(f"data: {{train: {path}}}\n")


def test_accepts_byte_order_mark(read_text):
    assert read_text("\ufeff" + DATA + "training: {seed: 3}\n").training.seed == 3


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch PLANTED']",
        "!!python/object/new:os.system ['touch PLANTED']",
        "!!python/object:os.PathLike {name: x}",
        pytest.param("!!python/name:os.system ''"),
        pytest.param("!!python/module:os ''"),
        "!mine x",
        "!<tag:example.org,2002:x> y",
    ],
)
def test_rejects_tags_that_would_run_code(read_error, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    assert "mine.yaml:2:" in read_error(DATA + f"base: {{name: {value}}}\n")
    assert not (tmp_path / "PLANTED").exists()


def test_rejects_section_with_python_tag(read_error):
    assert "mine.yaml:2:" in read_error(DATA + "base: !!python/object:os.PathLike {name: tiny-random}\n")


@pytest.mark.parametrize("value", ["!!int x", "!!float x", "!!bool maybe", "2024-02-30"])
def test_rejects_value_that_contradicts_its_tag(read_error, value):
    assert "mine.yaml:2:" in read_error(DATA + f"base: {{name: {value}}}\n")


def test_rejects_alias_bomb_with_short_message(read_error):
    bomb = "&a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"
    for i in range(1, 4):
        bomb = f"&a{i} [{bomb}{f', *a{i - 1}' * 9}]"
    assert len(read_error(DATA + f"training: {{epochs: {bomb}}}\n")) < 2000


@pytest.mark.parametrize("text", ["base: &a {name: *a}\n", "base: " + "[" * 1500 + "\n"])
def test_rejects_endless_nesting(read_error, text):
    assert "mine.yaml" in read_error(DATA + text)


def test_rejects_merge_keys_and_keys_that_are_not_words(read_error):
    assert "mine.yaml:2:" in read_error(DATA + "base: {<<: {name: x}}\n")
    assert "mine.yaml:2:" in read_error(DATA + "base: {[a, b]: x}\n")


NUMBERS = st.floats(min_value=1e-2, max_value=65536)
# Texts such as 1e5 and the line separator NEL have separate tests.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), min_size=1).filter(
    lambda t: not re.fullmatch(r"[-+.\d]+[eE][-+.\d]+", t)
)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    alpha=NUMBERS,
    rate=st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True),
    steps=st.none() | st.integers(1, 10**9),
    micro=st.just("auto") | st.integers(1, 512),
    checkpointing=st.sampled_from(["auto", True, False]),
    targets=st.just("all-linear") | st.lists(NAMES, min_size=1, max_size=4).map(tuple),
    base=NAMES,
    revision=st.none() | NAMES,
    mode=st.sampled_from(["4bit", "8bit", "none"]),
)
def test_resolved_recipe_can_be_read_again(
    tmp_path_factory, alpha, rate, steps, micro, checkpointing, targets, base, revision, mode
):
    folder = tmp_path_factory.getbasetemp() / "resolved"
    folder.mkdir(exist_ok=True)
    recipe = Recipe.model_validate(
        {
            "base": {"name": base, "revision": revision},
            "quantization": {"mode": mode},
            "adapter": {"alpha": alpha, "target_modules": targets},
            "data": {"train": str(folder / "d.jsonl")},
            "training": {
                "learning_rate": rate,
                "max_steps": steps,
                "micro_batch_size": micro,
                "gradient_checkpointing": checkpointing,
            },
            "output": {"name": "resolved-1.x"},
        }
    )
    path = folder / "recipe.yaml"
    path.write_text(format_recipe_yaml(recipe), encoding="utf-8")
    assert read_recipe(path) == recipe


NEXT_LINE = pytest.param("\x85")


@pytest.mark.parametrize("separator", [NEXT_LINE, "\u2028", "\u2029", "\n", "\r\n"])
def test_resolved_recipe_keeps_line_separators_in_names(tmp_path, separator):
    recipe = Recipe.model_validate(
        {"base": {"name": f"a{separator}b"}, "data": {"train": "/d"}, "output": {"name": "x"}}
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(format_recipe_yaml(recipe), encoding="utf-8")
    assert read_recipe(path) == recipe


def test_resolved_recipe_does_not_depend_on_its_folder(read_text, tmp_path):
    first = read_text(DATA + "evaluation: {questions: q.jsonl}\n", "training.learning_rate=3e-5")
    elsewhere = tmp_path / "runs" / "mine-1"
    elsewhere.mkdir(parents=True)
    (elsewhere / "recipe.yaml").write_text(format_recipe_yaml(first))
    assert read_recipe(elsewhere / "recipe.yaml") == first


def test_every_section_and_field_has_a_description():
    schema = Recipe.model_json_schema()
    models = {"Recipe": schema, **schema["$defs"]}
    assert len(models) == 1 + len(Recipe.model_fields) + 4  # sources of data, columns, system message, sampling
    # pydantic leaves a field's description out where it says the same as its section's.
    of = {name: model.get("description", "").strip() for name, model in models.items()}
    bare = [name for name, text in of.items() if not text]
    bare += [
        f"{name}.{key}"
        for name, model in models.items()
        for key, field in model["properties"].items()
        if not field.get("description", of.get(field.get("$ref", "").split("/")[-1]))
    ]
    assert not bare


@pytest.mark.parametrize(("file", "run"), [("my recipe.yaml", "my-recipe"), ("été.yml", "été"), ("...yaml", "run")])
def test_run_has_the_name_of_the_recipe_file(tmp_path, file, run):
    path = Path(tmp_path / file)
    path.write_text(DATA)
    assert read_recipe(path).output.name == run


def test_evaluation_files_that_a_setting_left_behind_are_named(tmp_path, caplog):
    path = tmp_path / "r.yaml"
    path.write_text("data: {train: a.jsonl, test: t.jsonl}\nevaluation: {questions: q.jsonl}\n")
    for changes, names in [
        ([], []),
        (["data.train=b.jsonl"], ["data.test", "evaluation.questions"]),
        (["data.train=b.jsonl", "data.test=null", "evaluation.questions=p.jsonl"], []),
        (["data.test=u.jsonl"], []),
    ]:
        caplog.clear()
        read_recipe(path, changes)
        assert [line.split(", but ")[1].split(" is still")[0] for line in caplog.messages] == names
