"""Disk errors that no writer has explained give one message, never a traceback."""

import argparse
import errno

import pytest

import lora_chat.cli
from lora_chat.errors import DiskError, explain_disk_error
from lora_chat.runs.run_folder import RunFolder


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EIO, 10), (errno.ESTALE, 10), (errno.ENOSPC, 4), (errno.EDQUOT, 4), (errno.EFBIG, 4)]
)
def test_a_command_reports_a_disk_error_by_path_and_exit_code(monkeypatch, capsys, number, code):
    def fail(options):
        raise OSError(number, "said by the system", "/runs/run-1/questions.jsonl")

    parser = argparse.ArgumentParser()
    parser.set_defaults(execute=fail, verbose=True)
    monkeypatch.setattr(lora_chat.cli, "make_parser", lambda: parser)
    assert lora_chat.cli.main([]) == code
    assert "/runs/run-1/questions.jsonl" in capsys.readouterr().err


def test_does_not_explain_other_system_errors():
    assert explain_disk_error(FileNotFoundError(errno.ENOENT, "no such file", "x")) is None


def test_a_run_reports_a_file_that_cannot_be_deleted(monkeypatch, tmp_path):
    run = RunFolder(tmp_path)
    run.delete(run.questions)  # absent: nothing to do

    def fail(path, missing_ok=False):
        raise OSError(errno.EIO, "said by the system", str(path))

    monkeypatch.setattr(type(tmp_path), "unlink", fail)
    with pytest.raises(DiskError, match=r"questions\.jsonl"):
        run.delete(run.questions)
