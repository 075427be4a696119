"""The example data of a task, copied beside a new recipe if the user names no data."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_chat.config.bundled_recipes import find_recipe
from lora_chat.config.load import read_recipe
from lora_chat.errors import UsageError, explain_write_errors
from lora_chat.pipeline.new.task_kinds import TASKS
from lora_chat.system.atomic_write import atomic_folder


@dataclass(frozen=True)
class ExampleData:
    """Example data of lora_chat, for a folder that does not exist yet."""

    train: Path
    test: Path | None

    def copy_to(self, folder: Path) -> None:
        """Copy the files into a new folder. Raise UsageError if it exists."""
        if os.path.lexists(folder):
            raise UsageError(f"{folder.name} exists, so the example data is not copied. Fix: choose another name.")
        with explain_write_errors(folder, "the example data"), atomic_folder(folder, "the example data") as beside:
            for path in (self.train, self.test):
                if path is not None:
                    shutil.copyfile(path, beside / path.name)


def find_example(task: str) -> ExampleData:
    """Return the example data of a task. Raise UsageError if the task has none."""
    name = TASKS[task].example
    if name is None:
        have = ", ".join(name for name, kind in TASKS.items() if kind.example is not None)
        raise UsageError(
            f"--task {task}: no example data exists for it. Fix: name a file with --data, or one of {have}."
        )
    data = read_recipe(find_recipe(name)).data
    assert isinstance(data.train, str)
    return ExampleData(Path(data.train), Path(data.test) if isinstance(data.test, str) else None)
