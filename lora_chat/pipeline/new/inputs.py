"""The data, the task and the device of a new recipe, chosen by the user or recognised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_chat.config.load import parse_recipe, read_settings
from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import DataError, UsageError
from lora_chat.pipeline.load_data import find_data_files
from lora_chat.pipeline.new.column_roles import ColumnRoles
from lora_chat.pipeline.new.example_data import ExampleData, find_example
from lora_chat.pipeline.new.find_source import FoundSource, find_source, list_columns, with_roles
from lora_chat.pipeline.new.profile import DataProfile, read_profile
from lora_chat.pipeline.new.recipe_name import choose_recipe_path
from lora_chat.pipeline.new.recipe_text import RecipeDraft, format_recipe
from lora_chat.pipeline.new.target import RecipeTarget, find_recipe_target
from lora_chat.pipeline.new.task_kinds import TASKS, TaskKind, detect_task
from lora_chat.pipeline.new.user_questions import UserQuestions


@dataclass(frozen=True)
class NewRecipeRequest:
    """The wishes of the user."""

    name: str | None = None
    data: str | None = None
    gpu: str | None = None
    memory: str | None = None
    base: str | None = None
    task: str | None = None
    settings: Sequence[str] = ()
    """Settings in the form of `--set`, which replace proposals."""


@dataclass(frozen=True)
class RecipeLocation:
    """The path of a new recipe and its data."""

    path: Path
    data: str
    example: ExampleData | None = None
    """Example data that is copied beside the recipe."""

    @property
    def folder(self) -> Path:
        """Return the folder of the example data."""
        return self.path.with_suffix("")


@dataclass(frozen=True)
class RecipeInputs:
    """Everything that decides on a recipe before its data is measured."""

    path: Path
    data: str
    settings: Mapping[str, Mapping[str, object]]
    """Values of the user by section."""
    target: RecipeTarget
    source: FoundSource
    profile: DataProfile
    task_name: str
    task_reason: str

    @property
    def task(self) -> TaskKind:
        """Return the task."""
        return TASKS[self.task_name]

    @property
    def roles(self) -> ColumnRoles | None:
        """Return the columns that were chosen, if any."""
        return self.source.roles

    def build(self, draft: RecipeDraft) -> Recipe:
        """Return a draft with the user's settings as a recipe. Raises RecipeError."""
        return parse_recipe(format_recipe(with_settings(draft, self.settings)), self.path)

    def check_files(self, draft: RecipeDraft) -> None:
        """Raise DataError if a file of a draft has faulty rows."""
        find_data_files(make_plan(self.build(draft), self.target.hardware)).check()


def find_location(request: NewRecipeRequest, questions: UserQuestions) -> RecipeLocation:
    """Return the path of the recipe and its data: the named file, or the example data of the task.

    Raises UsageError without any of them, or if a file of this name exists.
    """
    if request.data is None and request.task is not None:
        example = find_example(request.task)
        path = choose_recipe_path(request.name, request.task)
        return RecipeLocation(path, str(Path(path.stem) / example.train.name), example)
    data = request.data or questions.ask("Your data: a file such as my.jsonl, data.csv or text.txt, or a folder?", None)
    if not data:
        raise UsageError(
            "No data is named. Fix: lora-chat new mine --data my.jsonl, or begin with example data: "
            f"lora-chat new mine --task TASK, with one of {', '.join(n for n, t in TASKS.items() if t.example)}."
        )
    return RecipeLocation(choose_recipe_path(request.name, Path(data).name.split(".")[0]), data)


def read_inputs(request: NewRecipeRequest, location: RecipeLocation, questions: UserQuestions) -> RecipeInputs:
    """Read the first rows of the data and recognise its format, columns and task. Raises DataError as `sft` does."""
    settings: dict[str, dict[str, object]] = {}
    for name, keys in read_settings(request.settings).items():
        settings[name] = dict(keys) if isinstance(keys, dict) else {}
    if "train" in settings.get("data", {}):
        raise UsageError("--set data.train: the data of a new recipe is named with --data FILE.")
    draft = RecipeDraft("")
    draft.set("data", "train", location.data)
    data = {key: value for key, value in settings.get("data", {}).items() if key not in ("validation", "test")}
    section = parse_recipe(format_recipe(with_settings(draft, {"data": data})), location.path).data
    source = _ask_columns(find_source(section), questions)
    profile = read_profile(source)
    task_name, reason = detect_task(profile, source.roles.task if source.roles else None)
    if request.task is not None:
        task_name, reason = request.task, "you chose it"
    else:
        answer = questions.ask(f"Task, one of {', '.join(TASKS)}? ({reason})", task_name, TASKS)
        if answer is not None and answer != task_name:
            task_name, reason = answer, "you chose it"
    if TASKS[task_name].is_text != profile.is_text:
        wanted, has = ("plain text", "dialogues") if TASKS[task_name].is_text else ("dialogues", "plain text")
        raise UsageError(f"--task {task_name}: this task needs {wanted}, and the data is {has}. Fix: leave it out.")
    target = find_recipe_target(request.gpu, request.memory, questions)
    return RecipeInputs(location.path, location.data, settings, target, source, profile, task_name, reason)


def with_settings(draft: RecipeDraft, settings: Mapping[str, Mapping[str, object]]) -> RecipeDraft:
    """Return a draft in which the user's settings replace proposals."""
    result = RecipeDraft(draft.summary, draft.introduction, {name: dict(keys) for name, keys in draft.sections.items()})
    for section, keys in settings.items():
        for key, value in keys.items():
            result.set(section, key, value, "your setting")
    return result


def _ask_columns(source: FoundSource, questions: UserQuestions) -> FoundSource:
    """Return the source with the columns that the user confirms or names, if they are a guess or not clear."""
    roles, section = source.roles, source.section
    if section.format is not None or (roles is not None and not roles.is_guess) or not questions.is_asking:
        return source
    if roles is None and section.columns is not None:
        return source
    names = list_columns(section.model_copy(update={"columns": None}))
    if not names or (roles is not None and roles.text is not None):
        return source
    user = roles.user if roles is not None and isinstance(roles.user, str) else None
    question = questions.ask(f"Column of the question, one of {', '.join(names)}?", user, names)
    answer = questions.ask("Column of the answer?", roles.assistant if roles is not None else None, names)
    if question is None or answer is None:
        return source
    if question == answer:
        raise DataError("Question and answer are the same column. Fix: name two columns, and nothing was written.")
    if roles is not None and (question, answer) == (roles.user, roles.assistant):
        return source
    return with_roles(section, ColumnRoles(question, answer, reason="as you chose"))
