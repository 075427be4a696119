"""Parts that the cards of a run and of a parcel share."""

import re
from collections.abc import Mapping

from lora_chat.config.plan import PrecisionPlan
from lora_chat.evaluation.intervals import wilson_interval
from lora_chat.evaluation.metrics import Metric
from lora_chat.evaluation.recital import RecitalReport, format_recital
from lora_chat.sharing.markdown import escape_markdown
from lora_chat.sharing.receipt import BASE_NAME_PATTERN, PrecisionReceipt

_HUB_LICENSE_PATTERN = re.compile(r"[a-z0-9][a-z0-9.-]*")


def format_loss(loss_on_prompts: bool) -> str:
    """Return the sentence about the tokens that carried loss."""
    return "The loss was on prompts too." if loss_on_prompts else "The loss was on assistant turns only."


def format_precision(precision: PrecisionPlan | PrecisionReceipt) -> str:
    """Format mode and dtype, with the quantization of the base's own files and the quantized share if known."""
    parts: list[str] = [precision.mode, precision.dtype]
    if precision.stored:
        parts.append(f"files quantized by {precision.stored.title}")
    if precision.coverage:
        parts.append(f"{precision.coverage.share:.0%} of the weights quantized")
    return ", ".join(parts)


def find_hub_license(license_name: str | None) -> str | None:
    """Return the id of a license as the hub writes it; None if it has other characters."""
    known = license_name is not None and _HUB_LICENSE_PATTERN.fullmatch(license_name.lower()) is not None
    return license_name.lower() if license_name and known else None


def format_front_matter(base: str, license_name: str | None) -> list[str]:
    """Return the YAML front matter of versions 1 to 5, which has only quoted names of a fixed alphabet."""
    on_hub = re.fullmatch(BASE_NAME_PATTERN, base) is not None and "/" in base
    license_id = find_hub_license(license_name)
    return [
        "---",
        *([f'base_model: "{base}"', "base_model_relation: adapter"] if on_hub else []),
        *([f'license: "{license_id}"'] if license_id else []),
        "tags:",
        "- lora",
        "- lora_chat",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "---",
    ]


def format_lora(variant: str, rank: int, alpha: float, dropout: float) -> str:
    """Format the LoRA settings as one cell."""
    return f"{variant}, rank {rank}, alpha {alpha:g}, dropout {dropout:g}"


def format_metric_row(metric: Metric, base: float, adapted: float, questions: int) -> tuple[str, str, str]:
    """Return the table row of a metric, with the 95 % interval of a share of the questions."""
    label = metric.format_label(questions)
    if not metric.is_share_of_questions:
        return label, metric.format(base), metric.format(adapted)
    cells = [metric.format_with_interval(value, wilson_interval(value, questions)) for value in (base, adapted)]
    return f"{label} (95 % interval)", cells[0], cells[1]


def format_recital_lines(recital: RecitalReport, sensitive: Mapping[str, int]) -> list[str]:
    """Return the lines about training replies that the adapter completes, and about secrets among them by kind."""
    lines = [f"{escape_markdown(format_recital(recital), 500).rstrip('.')}."]
    counts = ", ".join(f"{n} {escape_markdown(k.replace('_', ' '))}" for k, n in sorted(sensitive.items()))
    return [*lines, "", f"It completes secrets or personal data of its training: {counts}."] if counts else lines
