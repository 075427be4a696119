"""A repeated comparison asks only what the sender asked, so that the same metric decides."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from lora_chat.pipeline.repeat_comparison import leave_out_questions
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
