"""A repeated comparison asks only what the sender asked, so that the same metric decides."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from lora_chat.errors import UsageError
from lora_chat.pipeline.held_out import EvaluationFiles
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.pipeline.repeat_comparison import leave_out_questions
from lora_chat.pipeline.verify_parcel import verify_parcel
from lora_chat.sharing.build import write_parcel
from lora_chat.system.hashing import digest_file


@dataclass(frozen=True)
class Prepared:
    questions: tuple[str, ...] = ("Who?",)


@pytest.mark.parametrize(
    ("figures", "is_same", "asked"),
    [({"accuracy": 1}, True, 0), ({"facts": 1}, True, 1), ({"accuracy": 1}, False, 1)],
)
def test_questions_are_asked_if_the_sender_asked_some_or_on_other_data(tmp_path, figures, is_same, asked):
    data = tmp_path / "held out.jsonl"
    data.write_text("{}\n")
    digest = digest_file(data) if is_same else "0" * 64
    receipt = SimpleNamespace(evaluation=SimpleNamespace(figures=figures, digest=digest))
    assert len(leave_out_questions(Prepared(), receipt, data).questions) == asked
    assert leave_out_questions(Prepared(), SimpleNamespace(evaluation=None), data) == Prepared()


def test_questions_without_dialogues_are_refused_before_anything_is_opened(tmp_path):
    files = EvaluationFiles(None, str(tmp_path / "questions.jsonl"), None)
    with pytest.raises(UsageError, match="--questions belongs to --data"):
        verify_parcel(str(tmp_path / "no.lorachat"), files, TrustOptions(), repeat_measurements=True)


def test_a_missing_folder_of_a_parcel_is_named(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        write_parcel({"a": b"b"}, tmp_path / "no" / "a.lorachat", lambda path: None)
