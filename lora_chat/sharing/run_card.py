"""Write the model card of an adapter in its run folder.

Names come from recipes and folders, so everything is escaped as in `model_card`.
"""

from collections.abc import Mapping, Sequence

from lora_chat import __version__
from lora_chat.config.plan import Plan
from lora_chat.evaluation.generations import GenerationsReport
from lora_chat.evaluation.metrics import METRICS, Metric, MetricFigures
from lora_chat.evaluation.recital import RecitalReport
from lora_chat.evaluation.verdict import EvaluatedSet, Verdict
from lora_chat.models.identity import Identity
from lora_chat.sharing.card_parts import (
    format_lora,
    format_loss,
    format_metric_row,
    format_precision,
    format_recital_lines,
)
from lora_chat.sharing.hub_metadata import describe_for_hub, format_base_note, format_hub_metadata
from lora_chat.sharing.lineage import ParentReceipt, make_generations_receipt
from lora_chat.sharing.lineage_card import format_generations_table, format_lineage
from lora_chat.sharing.markdown import escape_markdown, format_code, format_code_block, format_table
from lora_chat.sharing.receipt import public_base_name


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
    evaluated_set: EvaluatedSet = "validation",
) -> str:
    """Write the card of an adapter in its run folder; `figures`, `verdict` and `recital` come from a comparison.

    `generations` compares an adapter that has a `lineage` with its parent. `loss_on_prompts` is whether dialogues had
    loss on their prompts.
    """
    adapter, training = plan.adapter, plan.training
    hub = describe_for_hub(identity.base, plan.data.model_dump(mode="json"))
    lines = [
        *format_hub_metadata(hub, None, plan.output.name or "adapter", figures, evaluated_set),
        f"# {escape_markdown(plan.output.name or 'Adapter')}",
        "",
        f"A LoRA adapter for {format_code(public_base_name(identity.base))}"
        + (f" at revision {format_code(identity.revision)}" if identity.revision else "")
        + f", trained with lora_chat {__version__}.",
        "",
        *format_table(
            ("", ""),
            [
                ("base precision", format_precision(plan.precision)),
                ("LoRA", format_lora(adapter.variant, adapter.rank, adapter.alpha, adapter.dropout)),
                (
                    "training",
                    f"{steps} steps of {training.effective_batch_size} dialogues, "
                    f"learning rate {training.learning_rate:g} ({training.schedule}), seed {training.seed}",
                ),
            ],
        ),
        *format_base_note(hub),
    ]
    if verdict:
        lines += ["", escape_markdown(verdict.text, 2000)]
    if figures:
        rows = [
            _run_metric_row(metric, pair)
            for metric in METRICS
            if metric.in_summary and (pair := figures.get(metric.name))
        ]
        lines += ["", *format_table(("measured on held-out data", "base", "adapted"), rows)]
    if recital:
        lines += ["", *format_recital_lines(recital, recital.sensitive)]
    if lineage:
        lines += ["", *format_lineage(lineage)]
    if generations and (receipt := make_generations_receipt(generations.figures)):
        lines += ["", *format_generations_table(receipt)]
    lines += [
        "",
        f"{format_loss(loss_on_prompts)} `lora_chat.json` holds the digests of the base, tokenizer and chat",
        "template it belongs to; `chat_template.jinja` is the template of training.",
        "",
        *format_code_block("lora-chat chat PATH_OF_THIS_FOLDER"),
        "",
    ]
    return "\n".join(lines)


def _run_metric_row(metric: Metric, pair: MetricFigures) -> tuple[str, str, str]:
    """Return the table row of a metric in a run, with 95 % intervals where they were measured."""
    base, adapted = pair.get("base_interval"), pair.get("adapted_interval")
    if base is None or adapted is None:
        return format_metric_row(metric, pair["base"], pair["adapted"], pair.get("questions", 0))
    return (
        f"{metric.format_label(pair.get('questions', 0))} (95 % interval)",
        metric.format_with_interval(pair["base"], base),
        metric.format_with_interval(pair["adapted"], adapted),
    )
