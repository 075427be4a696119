"""A page is written only where it replaces no other kind of file."""

import pytest

from lora_chat.errors import UsageError
from lora_chat.pipeline.report_runs import _check_target


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "old.html").write_text("page")
    for name, problem in (("notes.txt", "exists"), ("", "is a folder"), ("no/such/page.html", "is not a folder")):
        with pytest.raises(UsageError, match=problem):
            _check_target(tmp_path / name)
    _check_target(tmp_path / "old.html")
    _check_target(tmp_path / "new.txt")
