"""The signs by which tasks are recognised in the profile of data; each function returns a reason or None."""

import statistics
from collections.abc import Callable, Sequence

from lora_chat.evaluation.measurement import ReplyItem
from lora_chat.evaluation.reply_kinds import find_kinds
from lora_chat.evaluation.scores.text import split_words
from lora_chat.pipeline.new.languages import UNKNOWN_LATIN
from lora_chat.pipeline.new.profile import MAX_LISTED_REPLIES, DataProfile

_MOST = 0.8
"""Share of the answers that must have a sign."""
_MIN_DOCUMENT_WORDS, _MAX_SUMMARY_SHARE, _MIN_SHARED_WORDS = 40, 0.4, 0.5
"""Fewest words of a text that is summarized, largest length of its summary as a share, and share of its words that the
text has."""
_MAX_TRANSLATION_RATIO = 4.0
"""Largest ratio of the characters of a translation and its source; a Chinese character is worth several letters."""
_SEVERAL_TURNS = 1.3
"""Mean number of replies of a dialogue from which it has several turns."""
_MAX_DISTINCT_REPLIES = 0.95
_MANY = 0.4
"""Share of the answers that must be in the text if the names of the columns show this task."""
_FEW_ROWS = 8
"""Rows from which labels must repeat."""


def has_documents(profile: DataProfile) -> str | None:
    """Recognise plain text."""
    return "the rows are plain texts without questions" if profile.is_text else None


def has_calls(profile: DataProfile) -> str | None:
    """Recognise calls of tools."""
    return "replies call tools" if profile.has_calls else None


def has_json(profile: DataProfile) -> str | None:
    """Recognise answers in JSON."""
    return "answers are JSON" if _find_kind(profile) == "json" else None


def has_labels(profile: DataProfile) -> str | None:
    """Recognise a few labels that repeat."""
    if _find_kind(profile) != "labels":
        return None
    return f"answers are {len(profile.first_replies)} short texts that repeat"


def can_be_labels(profile: DataProfile) -> bool:
    """Return whether the answers repeat as labels do, or are too few to tell."""
    distinct = len(profile.first_replies)
    return profile.rows < _FEW_ROWS or distinct <= min(MAX_LISTED_REPLIES, profile.rows // 2)


def can_be_spans(profile: DataProfile) -> bool:
    """Return whether many answers are words of the text, so that a prompt may ask for them."""
    is_span = [item.reference.strip().lower() in item.prompt.lower() for item in profile.items]
    return sum(is_span) >= _MANY * len(is_span)


def can_be_translations(profile: DataProfile) -> bool:
    """Return whether questions and answers are not in the same known language."""
    first, second = profile.prompt_languages[:1], profile.reply_languages[:1]
    return not first or not second or first[0].language == UNKNOWN_LATIN or first[0].language != second[0].language


def has_numbers(profile: DataProfile) -> str | None:
    """Recognise worked answers that end with a number."""
    if _find_kind(profile) != "numbers":
        return None
    is_marked = _has_most(profile.items, lambda item: "####" in item.reference)
    return "answers end with `####` and a number" if is_marked else "answers are numbers"


def has_spans(profile: DataProfile) -> str | None:
    """Recognise short answers that are in the text of the question."""
    if _find_kind(profile) != "short" or profile.exchanges > 1:
        return None
    is_span = _has_most(
        profile.items, lambda item: len(item.prompt) > 4 * len(item.reference) and item.reference in item.prompt
    )
    return "answers are short and occur in the text of the question" if is_span else None


def has_translations(profile: DataProfile) -> str | None:
    """Recognise answers in another language than their questions."""
    prompts, replies = profile.prompt_languages, profile.reply_languages
    if profile.exchanges > 1 or not prompts or not replies or _find_kind(profile) not in ("unspaced", "free", "short"):
        return None
    first, second = prompts[0], replies[0]
    if UNKNOWN_LATIN in (first.language, second.language):
        return None
    if first.language == second.language or min(first.share, second.share) < _MOST:
        return None
    ratio = max(1, profile.replies.median) / max(1, profile.prompts.median)
    if not 1 / _MAX_TRANSLATION_RATIO <= ratio <= _MAX_TRANSLATION_RATIO:
        return None
    return f"questions are {first.language} and answers {second.language}, of similar length"


def has_summaries(profile: DataProfile) -> str | None:
    """Recognise answers that are much shorter than a long question and have its words."""
    if profile.exchanges > 1 or not profile.items or _find_kind(profile) not in ("unspaced", "free"):
        return None
    pairs = [(split_words(item.prompt), split_words(item.reference)) for item in profile.items[:200]]
    pairs = [(prompt, reply) for prompt, reply in pairs if prompt and reply]
    is_long = statistics.median([len(prompt) for prompt, _ in pairs] or [0]) >= _MIN_DOCUMENT_WORDS
    shares = [len(reply) / len(prompt) for prompt, reply in pairs] or [1.0]
    shared = [sum(word in set(prompt) for word in reply) / len(reply) for prompt, reply in pairs] or [0.0]
    if not is_long or statistics.median(shares) > _MAX_SUMMARY_SHARE:
        return None
    if statistics.median(shared) < _MIN_SHARED_WORDS:
        return None
    return f"answers have {statistics.median(shares):.0%} of the words of their texts, and mostly words of these texts"


def has_short_answers(profile: DataProfile) -> str | None:
    """Recognise short answers of one exchange."""
    return "answers are a few words" if profile.exchanges <= 1 and _find_kind(profile) == "short" else None


def has_repeated_turns(profile: DataProfile) -> str | None:
    """Recognise several turns with replies that repeat, as in customer service."""
    if profile.exchanges < _SEVERAL_TURNS:
        return None
    distinct = len(set(profile.reply_texts)) / max(1, len(profile.reply_texts))
    if distinct > _MAX_DISTINCT_REPLIES:
        return None
    return (
        f"dialogues have {profile.exchanges:.1f} replies on average, and {1 - distinct:.0%} of them repeat another one"
    )


def has_turns(profile: DataProfile) -> str | None:
    """Recognise dialogues of several turns."""
    if profile.exchanges < _SEVERAL_TURNS:
        return None
    return f"dialogues have {profile.exchanges:.1f} replies on average"


def has_any(profile: DataProfile) -> str | None:
    """Recognise everything else."""
    return "each dialogue is a question with a free answer"


def _find_kind(profile: DataProfile) -> str | None:
    """Return the kind of the answers, by the rules of `evaluation.metrics: auto`."""
    kinds = [kind for kind in find_kinds(profile.items, None) if kind != "calls"]
    return kinds[0] if kinds else None


def _has_most(items: Sequence[ReplyItem], has_sign: Callable[[ReplyItem], bool]) -> bool:
    """Return whether most items have a sign."""
    return bool(items) and sum(map(has_sign, items)) >= _MOST * len(items)
