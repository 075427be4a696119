"""Write the figures of the reference implementations for `tests/evaluation/reference_scores.json`.

Run it where these packages are installed: rouge_score==0.1.2, scikit-learn, regex. SQUAD is the file
`transformers/data/metrics/squad_metrics.py` of transformers 4:

    python tools/reference_scores.py SQUAD > tests/evaluation/reference_scores.json
"""

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import regex

CASES = 200
WORDS = (
    *(
        "the",
        "The",
        "a",
        "cat",
        "Cat",
        "cats",
        "sat",
        "on",
        "mat",
        "don't",
        "well-known",
        "3.14",
        "42",
        "e.g.",
        "U.S.A.",
    ),
    *(
        "naïve",
        "café",
        "Straße",
        "(yes)",
        "snake_case",
        "--",
        "!",
        "?!",
        "...",
        "😀",
        "👍🏽",
        "\t",
        "\n",
        "Zürich",
        "x",
    ),
)
CHINESE = (
    "今天",
    "天气",
    "很好",
    "我们",
    "去",
    "公园",
    "。",
    "，",
    "！",
    "北京",
    "ありがとう",
    "コーヒー",
    "สวัสดี",
    "42",
    "OK",
    " ",
)
ROUGES = ("rouge1", "rouge2", "rougeL")
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}"


def make_pairs(words: tuple[str, ...], separators: tuple[str, ...], seed: int) -> list[tuple[str, str]]:
    """Return references and replies that share words; some are equal or empty."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(CASES):
        reference = rng.choices(words, k=rng.choice((0, 1, 3, 8, 15)))
        reply = [rng.choice(words) if rng.random() < 0.4 else word for word in reference]
        if rng.random() < 0.3:
            reply = rng.choices(words, k=rng.randrange(12))
        separator = rng.choice(separators)
        pairs.append((separator.join(reference), separator.join(reply)))
    return pairs


class ScriptTokenizer:
    """Tokenizer for rouge_score that has a word for each character of a script without spaces."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        spaced = regex.sub(rf"([{UNSPACED}]\p{{M}}*)", r" \1 ", text.lower())
        return [word for word in regex.split(r"[^\p{L}\p{M}\p{N}]+", spaced) if word]


def score_rouge(pairs: list[tuple[str, str]], tokenizer: ScriptTokenizer | None) -> list[list[float]]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L of each pair."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGES), tokenizer=tokenizer)
    scores = [scorer.score(reference, reply) for reference, reply in pairs]
    return [[score[name].fmeasure for name in ROUGES] for score in scores]


def load_squad(path: str) -> Callable[[str, str], float]:
    """Return the function for token F1 of the file, without the rest of its package."""
    text = Path(path).read_text(encoding="utf-8")
    functions = re.findall(r"^def (?:normalize_answer|get_tokens|compute_f1)\(.*?(?=^def )", text, re.M | re.S)
    code: CodeType = compile("import collections, re, string\n" + "".join(functions), path, "exec")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    f1: Callable[[str, str], float] = names["compute_f1"]
    return f1


def space_characters(text: str) -> str:
    """Return a text with spaces around each character without spaces, and without its punctuation."""
    spaced: str = regex.sub(rf"([{UNSPACED}]\p{{M}}*)", r" \1 ", regex.sub(r"\p{P}", "", text))
    return spaced


def score_labels(seed: int) -> list[dict[str, Any]]:
    """Return random labels with the figures of scikit-learn; `None` is a reply without a label."""
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    rng = random.Random(seed)
    cases = []
    for _ in range(CASES):
        classes = ["red", "green", "blue", "black", "white"][: rng.randrange(2, 6)]
        wanted = classes + rng.choices(classes, k=rng.randrange(1, 30))
        replied = [label if rng.random() < 0.6 else rng.choice([*classes, None]) for label in wanted]
        predicted = [label or "other" for label in replied]
        each = precision_recall_fscore_support(wanted, predicted, labels=classes, zero_division=0)
        macro = precision_recall_fscore_support(wanted, predicted, labels=classes, average="macro", zero_division=0)
        cases.append(
            {
                "classes": classes,
                "wanted": wanted,
                "replied": replied,
                "accuracy": accuracy_score(wanted, predicted),
                "each": [list(map(float, values)) for values in each[:3]],
                "macro": list(map(float, macro[:3])),
                "confusion": confusion_matrix(wanted, predicted, labels=[*classes, "other"]).tolist()[:-1],
            }
        )
    return cases


def main() -> None:
    """Print all cases with their figures as JSON."""
    squad = load_squad(sys.argv[1])
    english, plain = make_pairs(WORDS, (" ", "  "), 1), make_pairs(WORDS[:15], (" ", ", "), 2)
    chinese = make_pairs(CHINESE, ("", " "), 3)
    result: dict[str, list[Any]] = {
        "token_f1": [[*pair, squad(*pair)] for pair in english],
        "token_f1_chinese": [[*pair, squad(space_characters(pair[0]), space_characters(pair[1]))] for pair in chinese],
        "rouge": [[*pair, scores] for pair, scores in zip(plain, score_rouge(plain, None), strict=True)],
        "rouge_chinese": [
            [*pair, scores] for pair, scores in zip(chinese, score_rouge(chinese, ScriptTokenizer()), strict=True)
        ],
        "labels": score_labels(4),
    }
    lists = []
    for name, cases in result.items():
        lines = [json.dumps(case, ensure_ascii=False) for case in cases]
        lists.append(f'"{name}": [\n' + ",\n".join(lines) + "\n]")
    print("{\n" + ",\n".join(lists) + "\n}")


if __name__ == "__main__":
    main()
