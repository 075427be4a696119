"""Write the model card: a README with the base, the training data, the measured figures and the commands of an adapter.

Names come from recipes, folders and untrusted people. Everything in the card is escaped with `escape_markdown` or
`format_code`, or fenced with `format_code_block`; the front matter has only names of a fixed alphabet.
"""

import unicodedata
from collections.abc import Sequence

from lora_chat.evaluation.metrics import METRICS, MetricFigures, find_metric
from lora_chat.evaluation.verdict import format_change
from lora_chat.export.parity.reference import ModelReference
from lora_chat.sharing.card_parts import (
    find_hub_license,
    format_front_matter,
    format_lora,
    format_loss,
    format_metric_row,
    format_precision,
    format_recital_lines,
)
from lora_chat.sharing.compatibility import Portability
from lora_chat.sharing.evaluation_receipt import EvaluationReceipt
from lora_chat.sharing.figures import MetricPairReceipt
from lora_chat.sharing.hub_metadata import format_base_note, format_hub_metadata
from lora_chat.sharing.judgement_receipt import JudgementReceipt
from lora_chat.sharing.lineage_card import format_generations_table, format_lineage
from lora_chat.sharing.markdown import escape_markdown, format_code, format_code_block, format_table
from lora_chat.sharing.receipt import Receipt
from lora_chat.sharing.usage import format_usage
from lora_chat.system.sanitize import sanitize_line


def _has_loss_on_prompts(receipt: Receipt) -> bool:
    """Return whether any dialogue of a parcel had loss on its prompts; versions before this count had none."""
    return any(source.counts.get("loss_on_prompts") for source in receipt.data.sources)


def format_parcel_card(receipt: Receipt, portability: Sequence[Portability]) -> str:
    """Write the card of a parcel from its receipt, which need not have its digests yet.

    A receiver generates the card again and refuses a parcel with another card. Every word of the card, and of the
    answers about portability in it, therefore belongs to the versions of the receipt that exist. A change needs another
    version of the receipt, as the metadata of version 6 does.
    """
    base, data = receipt.base, receipt.data
    counts = {key: sum(source.counts.get(key, 0) for source in data.sources) for key in _COUNT_NAMES}
    training_rows = [
        (
            "data",
            ", ".join(f"{format_code(source.name)} ({source.weight:g}x)" for source in data.sources) or "not known",
        ),
        ("lines", ", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in counts.items())),
        ("dialogues", f"{data.train_dialogues:,} trained on, {data.validation_dialogues:,} held out"),
        (
            "an audit found",
            ", ".join(f"{n} {escape_markdown(k.replace('_', ' '))}" for k, n in sorted(data.audit.items()) if n)
            or "nothing",
        ),
        ("sha256 of the tokens and labels", format_code(data.rows or "not known")),
        ("training", f"{receipt.training.steps} steps, {receipt.training.seconds:.0f} s, seed {receipt.seed}"),
        (
            "LoRA",
            format_lora(receipt.adapter.variant, receipt.adapter.rank, receipt.adapter.alpha, receipt.adapter.dropout),
        ),
        (
            "versions",
            escape_markdown(", ".join(f"{name} {version}" for name, version in sorted(receipt.versions.items())), 500),
        ),
    ]
    base_rows = [
        ("base", format_code(base.base) + (f" at {format_code(base.revision)}" if base.revision else "")),
        ("held in training", format_precision(receipt.precision)),
        ("sha256 of its weights", format_code(base.weights)),
        ("of its tokenizer", format_code(base.tokenizer)),
        ("of the chat template", format_code(base.chat_template)),
    ]
    lines = [
        *_format_metadata(receipt),
        f"# {escape_markdown(receipt.name)}",
        "",
        f"A LoRA adapter of {receipt.parameters:,} parameters, trained with lora_chat "
        f"{escape_markdown(receipt.versions.get('lora-chat', ''))}. License: "
        f"{escape_markdown(receipt.license or 'not stated')}.",
        "",
        "## What it belongs to",
        "",
        *format_table(("", ""), base_rows),
        *(format_base_note(receipt.hub) if receipt.hub else []),
        *(
            ["", "System message of all its dialogues:", "", *format_code_block(sanitize_line(base.system, 2000))]
            if base.system is not None
            else []
        ),
        "",
        "## What it was trained on",
        "",
        *format_table(("", ""), training_rows),
        *(["", *format_lineage(receipt.lineage)] if receipt.lineage else []),
        "",
        "## What was measured",
        "",
        *_format_measurements(receipt),
        *(["", *format_generations_table(receipt.generations)] if receipt.generations else []),
        "",
        "## Where it can be used",
        "",
        *format_table(("program", "as an adapter", ""), [(p.program, p.answer, p.why) for p in portability]),
        "",
        "## How to use it",
        "",
        *format_usage(receipt, portability),
        "",
        f"`receipt.json` holds every digest and figure. {format_loss(_has_loss_on_prompts(receipt))}",
        "",
    ]
    return "\n".join(lines)


def _format_metadata(receipt: Receipt) -> list[str]:
    """Return the front matter, which has results, data sets and languages from version 6 on."""
    if receipt.hub is None:
        return format_front_matter(receipt.base.base, receipt.license)
    evaluation = receipt.evaluation
    figures = evaluation.metric_figures if evaluation else _list_old_figures(receipt)
    evaluated_set = evaluation.set if evaluation else "validation"
    return format_hub_metadata(receipt.hub, find_hub_license(receipt.license), receipt.name, figures, evaluated_set)


def _list_old_figures(receipt: Receipt) -> dict[str, MetricFigures]:
    """Return the figures of a comparison without a verdict, by the names of the metrics."""
    comparison = receipt.comparison
    if comparison is None:
        return {}
    loss, facts = comparison.validation_loss, comparison.facts
    figures: dict[str, MetricFigures] = {"validation_loss": {"base": loss.base, "adapted": loss.adapted}}
    if facts:
        figures["facts"] = {"base": facts.base, "adapted": facts.adapted, "questions": facts.questions}
    return figures


def card_matches_receipt(card: bytes, receipt: Receipt, portability: Sequence[Portability]) -> bool:
    """Return whether a card is the one that `format_parcel_card` writes.

    Each character may appear as itself or as its escape, because the printable characters depend on the version of
    Unicode in Python.
    """
    expected = format_parcel_card(receipt, portability)
    if card == expected.encode("utf-8"):
        return True
    try:
        text = card.decode("utf-8")
    except UnicodeDecodeError:
        return False
    harmless = all(c == "\n" or c.isprintable() or unicodedata.category(c) in ("Cn", "Zs") for c in text)
    return harmless and _escape_non_ascii(text) == _escape_non_ascii(expected)


def _escape_non_ascii(text: str) -> str:
    """Replace each character outside of ASCII by its escape."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


_COUNT_NAMES = ("lines", "accepted", "blank", "refused", "dropped", "cut", "redacted")


def _format_measurements(receipt: Receipt) -> list[str]:
    """Return the lines about the comparison and the parity check."""
    parity = receipt.proof
    return [
        *(_format_evaluation(receipt.evaluation) if receipt.evaluation else _format_old_comparison(receipt)),
        *(_format_judgement(receipt.judgement) if receipt.judgement else []),
        "",
        f"Opened by {escape_markdown(parity.reader)} and compared with the adapted model on {parity.tokens} tokens of "
        f"{parity.dialogues} held-out dialogues: mean KL {parity.mean_kl:.1e} nats per token (the base alone "
        f"{parity.control_kl:.1e}), {parity.equal_replies:.0%} of {parity.replies} greedy replies equal.",
        *(_format_reference(receipt.reference) if receipt.reference else []),
    ]


def _format_reference(reference: ModelReference) -> list[str]:
    """Return the lines about the outputs of the adapted model in a receipt of version 5."""
    return [
        "",
        f"`receipt.json` has the most probable tokens of the adapted model at {reference.positions} positions of "
        f"{len(reference.replies)} replies to built-in questions ({reference.mode}, {reference.dtype}, on "
        f"{reference.device}). `lora-chat serve` and `lora-chat verify --again` compare the loaded adapter with them.",
    ]


def _format_evaluation(evaluation: EvaluationReceipt) -> list[str]:
    """Return verdict and figures of a receipt of version 4."""
    lines = [escape_markdown(evaluation.make_verdict().text, 2000)]
    rows = []
    for name, pair in evaluation.metric_figures.items():
        metric = find_metric(name)
        rows.append(
            (
                metric.format_label(pair.get("questions", 0)),
                metric.format_with_interval(pair["base"], pair["base_interval"]),
                metric.format_with_interval(pair["adapted"], pair["adapted_interval"]),
                format_change(metric, pair),
                f"{pair['items']:,}",
            )
        )
    if rows:
        header = (f"on the {evaluation.set} set (95 % intervals)", "base", "adapted", "difference", "items")
        lines += ["", *format_table(header, rows)]
    if evaluation.recital:
        lines += ["", *format_recital_lines(evaluation.recital.as_report(), evaluation.recital.sensitive)]
    if evaluation.kept_step and evaluation.kept_step.step < evaluation.kept_step.last_step:
        step, last = evaluation.kept_step.step, evaluation.kept_step.last_step
        lines += ["", f"The adapter is that of step {step}; training went on to step {last}."]
    return lines


def _format_judgement(judgement: JudgementReceipt) -> list[str]:
    """Return the result of human votes, as the sender states it."""
    sampling = "greedy replies" if not judgement.temperature else f"replies at temperature {judgement.temperature:g}"
    return [
        "",
        f"{escape_markdown(judgement.text, 1000)} Blind votes on {sampling} of at most {judgement.max_new_tokens:,} "
        "tokens to held-out prompts, as the sender states.",
    ]


def _format_old_comparison(receipt: Receipt) -> list[str]:
    """Return the figures of a receipt without a verdict."""
    rows = []
    for metric in METRICS:
        pair: MetricPairReceipt | None = getattr(receipt.comparison, metric.name, None)
        if receipt.comparison and pair:
            row = format_metric_row(metric, pair.base, pair.adapted, getattr(pair, "questions", 0))
            if metric.name == "validation_loss":
                label = f"loss on {receipt.comparison.validation_dialogues} held-out dialogues, nats per token"
                row = (label, *row[1:])
            rows.append(row)
    if not rows:
        return ["Its training was cut short; nothing was compared."]
    return format_table(("", "base", "adapted"), rows)
