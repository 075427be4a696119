"""Held-out questions with their accepted answers."""

import re
from dataclasses import dataclass, field, replace

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.reading.files import read_lines
from lora_chat.errors import DataError
from lora_chat.system.strict_json import parse_strict_json

_UNSPACED_LETTERS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED = re.compile(f"[{_UNSPACED_LETTERS}]")


@dataclass(frozen=True)
class Question:
    """A held-out question and its accepted strings; a correct answer contains at least one of them."""

    question: str
    accept: tuple[str, ...]
    path: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)
    """Line in its file, counted from 1; 0 if the question is not from a file."""

    def is_answered_by(self, reply: str) -> bool:
        """Return whether the reply contains an accepted string as whole words, in any case.

        Chinese and Japanese have no blanks between words, so that their letters do not continue a word.
        """
        return any(
            re.search(f"{_border(a[:1], is_first=True)}{re.escape(a)}{_border(a[-1:])}", reply, re.IGNORECASE)
            for a in self.accept
        )


def _border(edge: str, *, is_first: bool = False) -> str:
    """Return the pattern of the border of a word whose first or last character is `edge`."""
    if _UNSPACED.match(edge):
        return ""
    return rf"(?<![^\W{_UNSPACED_LETTERS}])" if is_first else rf"(?![^\W{_UNSPACED_LETTERS}])"


def read_questions(path: str) -> list[Question]:
    """Read JSON lines with `question` and `accept`. Raise DataError with file and line."""
    from pathlib import Path

    questions = []
    for number, raw in read_lines(Path(path)):
        if not raw.strip():
            continue
        try:
            questions.append(replace(_parse_question(parse_strict_json(raw.decode("utf-8"))), path=path, line=number))
        except (InvalidDialogueError, ValueError) as error:
            raise DataError(f"{path}:{number}: {error}") from error
    if not questions:
        raise DataError(f"{path} contains no question.")
    return questions


def _parse_question(row: object) -> Question:
    """Return the question of one line. Raise InvalidDialogueError if the line is not one."""
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise InvalidDialogueError("the field `question` is missing or empty")
    accept = row.get("accept")
    if not isinstance(accept, list) or not accept or not all(isinstance(a, str) and a.strip() for a in accept):
        raise InvalidDialogueError("the field `accept` must be a list of accepted answers")
    try:
        "".join([row["question"], *accept]).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidDialogueError("contains half a surrogate pair, which is not a character") from None
    return Question(row["question"], tuple(accept))
