"""Build step of the wheel: recipes, docs and launch files lie beside the package and become folders inside it.

All other settings are in pyproject.toml. An editable install copies nothing, because `find_package_folder` looks beside
the package too.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FOLDERS = {"recipes": (".yaml", ".jsonl", ".md"), "docs": (".md",), "launch": (".yaml", ".sh")}
"""Folders of the repository in the wheel, and the suffixes of their files."""


class BuildPackage(build_py):
    """Copy the modules, their data and the folders of the repository."""

    def run(self) -> None:
        """Build the package in an empty folder, because setuptools also packs deleted modules of an earlier build."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "lora_chat", ignore_errors=True)
        super().run()
        if not self.editable_mode:
            for source, target in self._list_copies():
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target), preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return all files of the package."""
        return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._list_copies())]

    def _list_copies(self) -> list[tuple[Path, Path]]:
        """Return the files of the folders and the paths of their copies."""
        if self.editable_mode:
            return []
        package = Path(self.build_lib) / "lora_chat"
        return [
            (path, package / path.relative_to(ROOT))
            for name, suffixes in FOLDERS.items()
            for path in sorted((ROOT / name).rglob("*"))
            if path.is_file() and path.suffix in suffixes and not _is_hidden(path.relative_to(ROOT))
        ]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


setup(cmdclass={"build_py": BuildPackage})
