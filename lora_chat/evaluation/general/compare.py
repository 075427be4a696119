"""The comparison of both models' replies to the items of a general set."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from lora_chat.evaluation.general.items import GeneralItem
from lora_chat.evaluation.general.measure import GeneralReply
from lora_chat.evaluation.general.report import GeneralAnswer, GeneralGroup, GeneralReport, GeneralWord
from lora_chat.evaluation.general.selection import GeneralSet
from lora_chat.evaluation.intervals import SIGNIFICANCE, compare_right_or_wrong


def compare_general(
    general: GeneralSet, base: Sequence[GeneralReply], adapted: Sequence[GeneralReply]
) -> GeneralReport:
    """Compare the replies of both models to the same items."""
    answers = tuple(
        GeneralAnswer(
            item.id,
            item.language,
            item.kind,
            item.prompt,
            b.text,
            a.text,
            item.is_answered_by(b.text),
            item.is_answered_by(a.text),
        )
        for item, b, a in zip(general.items, base, adapted, strict=True)
    )
    figures = compare_right_or_wrong(
        np.array([answer.base_right for answer in answers]), np.array([answer.adapted_right for answer in answers])
    )
    difference = figures.adapted - figures.base
    word: GeneralWord = "no difference shown"
    if figures.p_value <= SIGNIFICANCE:
        word = "better" if difference > 0 else "worse"
    low, high = figures.difference_interval
    pairs = [(b.ids, a.ids) for b, a in zip(base, adapted, strict=True)]
    return GeneralReport(
        items=len(answers),
        available=general.available,
        set_name=general.name,
        set_digest=digest_items(general.items),
        base_right=sum(answer.base_right for answer in answers),
        adapted_right=sum(answer.adapted_right for answer in answers),
        difference=100 * difference,
        difference_interval=(100 * low, 100 * high),
        p_value=figures.p_value,
        word=word,
        equal_replies=sum(b == a for b, a in pairs) / len(pairs),
        equal_leading_tokens=sum(_share_of_equal_beginning(b, a) for b, a in pairs) / len(pairs),
        kinds=_group(answers, [answer.kind for answer in answers]),
        languages=_group(answers, [answer.language for answer in answers]),
        answers=answers,
        notes=general.notes,
    )


def digest_items(items: Sequence[GeneralItem]) -> str:
    """Return the SHA-256 of items."""
    rows = json.dumps([item.as_row for item in items], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(rows.encode("utf-8")).hexdigest()


def _share_of_equal_beginning(base: Sequence[int], adapted: Sequence[int]) -> float:
    """Return the number of equal tokens before the first difference, as a share of the longer reply."""
    longest = max(len(base), len(adapted))
    equal = next(
        (i for i, (b, a) in enumerate(zip(base, adapted, strict=False)) if b != a), min(len(base), len(adapted))
    )
    return equal / longest if longest else 1.0


def _group(answers: Sequence[GeneralAnswer], names: Sequence[str]) -> tuple[GeneralGroup, ...]:
    """Return the right replies of each group, in the order of the groups' first items."""
    groups = []
    for name in dict.fromkeys(names):
        members = [answer for answer, group in zip(answers, names, strict=True) if group == name]
        right = sum(answer.base_right for answer in members), sum(answer.adapted_right for answer in members)
        groups.append(GeneralGroup(name, len(members), *right))
    return tuple(groups)
