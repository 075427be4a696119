"""Write the model card: a README with the base, the training data, the measured figures and the commands of an adapter.

Names come from recipes, folders and untrusted people. Everything in the card is escaped with `escape_markdown` or
`format_code`, or fenced with `format_code_block`; the front matter has only names of a fixed alphabet.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from lora_chat import __version__
from lora_chat.config.plan import Plan, PrecisionPlan
from lora_chat.evaluation.generations import GenerationsReport
from lora_chat.evaluation.intervals import wilson_interval
from lora_chat.evaluation.metrics import METRICS, Metric, MetricFigures, find_metric
from lora_chat.evaluation.recital import RecitalReport, format_recital
from lora_chat.evaluation.verdict import Verdict, format_change
from lora_chat.models.identity import Identity
from lora_chat.sharing.compatibility import Portability
from lora_chat.sharing.evaluation_receipt import EvaluationReceipt
from lora_chat.sharing.figures import MetricPairReceipt
from lora_chat.sharing.lineage import ParentReceipt, make_generations_receipt
from lora_chat.sharing.lineage_card import format_generations_table, format_lineage
from lora_chat.sharing.markdown import escape_markdown, format_code, format_code_block, format_table
from lora_chat.sharing.receipt import BASE_NAME_PATTERN, PrecisionReceipt, Receipt, public_base_name
from lora_chat.sharing.usage import format_usage
from lora_chat.system.sanitize import sanitize_line

_HUB_LICENSE_PATTERN = re.compile(r"[a-z0-9][a-z0-9.-]*")


def format_run_card(
    plan: Plan,
    identity: Identity,
    steps: int,
    figures: Mapping[str, MetricFigures] | None,
    lineage: Sequence[ParentReceipt] | None = None,
    generations: GenerationsReport | None = None,
    *,
    loss_on_prompts: bool = False,
    verdict: Verdict | None = None,
    recital: RecitalReport | None = None,
) -> str:
    """Write the card of an adapter in its run folder; `figures`, `verdict` and `recital` come from a comparison.

    `generations` compares an adapter that has a `lineage` with its parent. `loss_on_prompts` is whether dialogues had
    loss on their prompts.
    """
    adapter, training = plan.adapter, plan.training
    lines = [
        *_front_matter(identity.base, None),
        f"# {escape_markdown(plan.output.name or 'Adapter')}",
        "",
        f"A LoRA adapter for {format_code(public_base_name(identity.base))}"
        + (f" at revision {format_code(identity.revision)}" if identity.revision else "")
        + f", trained with lora_chat {__version__}.",
        "",
        *format_table(
            ("", ""),
            [
                ("base precision", _format_precision(plan.precision)),
                ("LoRA", _format_lora(adapter.variant, adapter.rank, adapter.alpha, adapter.dropout)),
                (
                    "training",
                    f"{steps} steps of {training.effective_batch_size} dialogues, "
                    f"learning rate {training.learning_rate:g} ({training.schedule}), seed {training.seed}",
                ),
            ],
        ),
    ]
    if figures:
        rows = [
            _run_metric_row(metric, pair)
            for metric in METRICS
            if metric.in_summary and (pair := figures.get(metric.name))
        ]
        lines += ["", escape_markdown(verdict.text, 2000)] if verdict else []
        lines += ["", *format_table(("measured on held-out data", "base", "adapted"), rows)]
    if recital:
        lines += ["", *_format_recital(recital, recital.sensitive)]
    if lineage:
        lines += ["", *format_lineage(lineage)]
    if generations and (receipt := make_generations_receipt(generations.figures)):
        lines += ["", *format_generations_table(receipt)]
    lines += [
        "",
        f"{_format_loss(loss_on_prompts)} `lora_chat.json` holds the digests of the base, tokenizer and chat",
        "template it belongs to; `chat_template.jinja` is the template of training.",
        "",
        *format_code_block("lora-chat chat PATH_OF_THIS_FOLDER"),
        "",
    ]
    return "\n".join(lines)


def _format_loss(loss_on_prompts: bool) -> str:
    """Return the sentence about the tokens that carried loss."""
    return "The loss was on prompts too." if loss_on_prompts else "The loss was on assistant turns only."


def _has_loss_on_prompts(receipt: Receipt) -> bool:
    """Return whether any dialogue of a parcel had loss on its prompts; versions before this count had none."""
    return any(source.counts.get("loss_on_prompts") for source in receipt.data.sources)


def _format_precision(precision: PrecisionPlan | PrecisionReceipt) -> str:
    """Format mode and dtype, with the quantization of the base's own files and the quantized share if known."""
    parts: list[str] = [precision.mode, precision.dtype]
    if precision.stored:
        parts.append(f"files quantized by {precision.stored.title}")
    if precision.coverage:
        parts.append(f"{precision.coverage.share:.0%} of the weights quantized")
    return ", ".join(parts)


def format_parcel_card(receipt: Receipt, portability: Sequence[Portability]) -> str:
    """Write the card of a parcel from its receipt, which need not have its digests yet.

    A receiver generates the card again and refuses a parcel with another card. Every word of the card, and of the
    answers about portability in it, therefore belongs to version 1 of the receipt. A change needs another version of
    this function for a new version of the receipt.
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
            _format_lora(receipt.adapter.variant, receipt.adapter.rank, receipt.adapter.alpha, receipt.adapter.dropout),
        ),
        (
            "versions",
            escape_markdown(", ".join(f"{name} {version}" for name, version in sorted(receipt.versions.items())), 500),
        ),
    ]
    base_rows = [
        ("base", format_code(base.base) + (f" at {format_code(base.revision)}" if base.revision else "")),
        ("held in training", _format_precision(receipt.precision)),
        ("sha256 of its weights", format_code(base.weights)),
        ("of its tokenizer", format_code(base.tokenizer)),
        ("of the chat template", format_code(base.chat_template)),
    ]
    lines = [
        *_front_matter(base.base, receipt.license),
        f"# {escape_markdown(receipt.name)}",
        "",
        f"A LoRA adapter of {receipt.parameters:,} parameters, trained with lora_chat "
        f"{escape_markdown(receipt.versions.get('lora-chat', ''))}. License: "
        f"{escape_markdown(receipt.license or 'not stated')}.",
        "",
        "## What it belongs to",
        "",
        *format_table(("", ""), base_rows),
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
        f"`receipt.json` holds every digest and figure. {_format_loss(_has_loss_on_prompts(receipt))}",
        "",
    ]
    return "\n".join(lines)


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


def _front_matter(base: str, license_name: str | None) -> list[str]:
    """Return the YAML front matter for hubs, which has only quoted names of a fixed alphabet."""
    on_hub = re.fullmatch(BASE_NAME_PATTERN, base) is not None and "/" in base
    known = license_name is not None and _HUB_LICENSE_PATTERN.fullmatch(license_name.lower()) is not None
    return [
        "---",
        *([f'base_model: "{base}"', "base_model_relation: adapter"] if on_hub else []),
        *([f'license: "{(license_name or "").lower()}"'] if known else []),
        "tags:",
        "- lora",
        "- lora_chat",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "---",
    ]


def _format_lora(variant: str, rank: int, alpha: float, dropout: float) -> str:
    """Format the LoRA settings as one cell."""
    return f"{variant}, rank {rank}, alpha {alpha:g}, dropout {dropout:g}"


def _run_metric_row(metric: Metric, pair: MetricFigures) -> tuple[str, str, str]:
    """Return the table row of a metric in a run, with 95 % intervals where they were measured."""
    base, adapted = pair.get("base_interval"), pair.get("adapted_interval")
    if base is None or adapted is None:
        return _metric_row(metric, pair["base"], pair["adapted"], pair.get("questions", 0))
    return (
        f"{metric.format_label(pair.get('questions', 0))} (95 % interval)",
        metric.format_with_interval(pair["base"], base),
        metric.format_with_interval(pair["adapted"], adapted),
    )


def _metric_row(metric: Metric, base: float, adapted: float, questions: int) -> tuple[str, str, str]:
    """Return the table row of a metric, with the 95 % interval of a share of the questions."""
    label = metric.format_label(questions)
    if not metric.is_share_of_questions:
        return label, metric.format(base), metric.format(adapted)
    cells = [metric.format_with_interval(value, wilson_interval(value, questions)) for value in (base, adapted)]
    return f"{label} (95 % interval)", cells[0], cells[1]


def _format_measurements(receipt: Receipt) -> list[str]:
    """Return the lines about the comparison and the parity check."""
    parity = receipt.proof
    return [
        *(_format_evaluation(receipt.evaluation) if receipt.evaluation else _format_old_comparison(receipt)),
        "",
        f"Opened by {escape_markdown(parity.reader)} and compared with the adapted model on {parity.tokens} tokens of "
        f"{parity.dialogues} held-out dialogues: mean KL {parity.mean_kl:.1e} nats per token (the base alone "
        f"{parity.control_kl:.1e}), {parity.equal_replies:.0%} of {parity.replies} greedy replies equal.",
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
        lines += ["", *_format_recital(evaluation.recital.as_report(), evaluation.recital.sensitive)]
    if evaluation.kept_step and evaluation.kept_step.step < evaluation.kept_step.last_step:
        step, last = evaluation.kept_step.step, evaluation.kept_step.last_step
        lines += ["", f"The adapter is that of step {step}; training went on to step {last}."]
    return lines


def _format_recital(recital: RecitalReport, sensitive: Mapping[str, int]) -> list[str]:
    """Return the lines about training replies that the adapter completes, and about secrets among them by kind."""
    lines = [f"{escape_markdown(format_recital(recital), 500).rstrip('.')}."]
    counts = ", ".join(f"{n} {escape_markdown(k.replace('_', ' '))}" for k, n in sorted(sensitive.items()))
    return [*lines, "", f"It completes secrets or personal data of its training: {counts}."] if counts else lines


def _format_old_comparison(receipt: Receipt) -> list[str]:
    """Return the figures of a receipt without a verdict."""
    rows = []
    for metric in METRICS:
        pair: MetricPairReceipt | None = getattr(receipt.comparison, metric.name, None)
        if receipt.comparison and pair:
            row = _metric_row(metric, pair.base, pair.adapted, getattr(pair, "questions", 0))
            if metric.name == "validation_loss":
                label = f"loss on {receipt.comparison.validation_dialogues} held-out dialogues, nats per token"
                row = (label, *row[1:])
            rows.append(row)
    if not rows:
        return ["Its training was cut short; nothing was compared."]
    return format_table(("", "base", "adapted"), rows)
