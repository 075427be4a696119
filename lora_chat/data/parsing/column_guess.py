"""Propose `data.columns` for rows in no known format, by the names of their columns."""

import json
import re
import shlex
from collections.abc import Sequence

from lora_chat.system.sanitize import sanitize_line

_PAIRS = (
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("instruction", "answer"),
    ("instruction", "completion"),
    ("input", "output"),
    ("input", "target"),
    ("input", "response"),
    ("user", "assistant"),
    ("user", "bot"),
    ("human", "assistant"),
    ("human", "gpt"),
    ("source", "target"),
    ("src", "tgt"),
    ("context", "response"),
    ("q", "a"),
    ("frage", "antwort"),
    ("pregunta", "respuesta"),
    ("domanda", "risposta"),
    ("问题", "答案"),
    ("问题", "回答"),
    ("article", "summary"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("text", "label"),
)
"""Usual names of a question and its answer, the clearest first."""
_SYSTEM_NAMES = ("system", "systemprompt", "systemmessage")
_LANGUAGES = frozenset("ar cs da de el en es fi fr he hi hu id it ja ko nl no pl pt ro ru sv th tr uk vi zh".split())  # noqa: SIM905
_LANGUAGE_NAMES = frozenset(
    """
    arabic chinese czech danish dutch english finnish french german greek hebrew hindi hungarian indonesian italian
    japanese korean norwegian polish portuguese romanian russian spanish swedish thai turkish ukrainian vietnamese
    mandarin deutsch englisch français español italiano português русский 中文 英文 日本語 한국어
    """.split()  # noqa: SIM905
)
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_MAX_SHOWN = 12


def propose_columns(names: Sequence[str]) -> str:
    """Return a sentence with the setting that names the columns, guessed if their names are clear."""
    pair = guess_pair(names)
    shown = ", ".join(sanitize_line(name, 40) or "(no name)" for name in names[:_MAX_SHOWN])
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    columns = f"its columns: {shown}{more}" if names else "it has no columns"
    if pair:
        system = next((name for name in names if normalize_column_name(name) in _SYSTEM_NAMES), None)
        parts = {"user": pair[0], "assistant": pair[1], **({"system": system} if system else {})}
        return f"{columns}. Fix: --set {_format_setting(parts)}"
    example = "'data.columns={user: COLUMN, assistant: COLUMN}'"
    return f"{columns}. Fix: name the columns of question and answer with --set {example}"


def guess_pair(names: Sequence[str], *, languages_only: bool = False) -> tuple[str, str] | None:
    """Return the columns of question and answer if exactly one column has each name; None if they are not clear.

    Two columns named after languages are a pair too, and the only one with `languages_only`.
    """
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(normalize_column_name(name), []).append(name)
    for question, answer in () if languages_only else _PAIRS:
        if len(by_name.get(question, ())) == 1 and len(by_name.get(answer, ())) == 1:
            return by_name[question][0], by_name[answer][0]
    languages = [name for name in names if re.split(r"[-_]", name.strip().lower())[0] in _LANGUAGES | _LANGUAGE_NAMES]
    return (languages[0], languages[1]) if len(languages) == 2 and len(names) <= 4 else None


def normalize_column_name(name: str) -> str:
    """Return a name in lower case, without marks between words, in singular."""
    bare = re.sub(r"[\W_]+", "", name.lower())
    return bare[:-1] if bare.endswith("s") and len(bare) > 3 else bare


def _format_setting(parts: dict[str, str]) -> str:
    """Return the setting as a shell reads it."""
    quoted = {
        key: name if _PLAIN_NAME.fullmatch(name) and name.lower() not in _YAML_WORDS else json.dumps(name)
        for key, name in parts.items()
    }
    columns = ", ".join(f"{key}: {name}" for key, name in quoted.items())
    return shlex.quote(f"data.columns={{{columns}}}")
