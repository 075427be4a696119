"""The model card: a README that says what an adapter is, what it was trained on, and what was measured."""

from typing import Any

from lora_chat import __version__
from lora_chat.models.identity import Identity
from lora_chat.planning.plan import Plan


def write_card(plan: Plan, identity: Identity, steps: int, figures: dict[str, Any] | None) -> str:
    """Markdown with the front matter that hubs read; `figures` are the headline of a comparison."""
    adapter, training = plan.adapter, plan.training
    lines = [
        "---",
        f"base_model: {identity.base}" if "/" in identity.base and not identity.base.startswith("/") else "tags:",
        *(["tags:"] if "/" in identity.base and not identity.base.startswith("/") else []),
        "- lora",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "---",
        f"# {plan.output.name or 'Adapter'}",
        "",
        f"A LoRA adapter for `{identity.base.rsplit('/', 1)[-1] if identity.base.startswith('/') else identity.base}`"
        + (f" at revision `{identity.revision}`" if identity.revision else "")
        + f", trained with lora_chat {__version__}.",
        "",
        "| | |",
        "|---|---|",
        f"| base precision | {plan.precision.mode}, {plan.precision.dtype} |",
        f"| LoRA | {adapter.variant}, rank {adapter.rank}, alpha {adapter.alpha:g}, dropout {adapter.dropout:g} |",
        f"| training | {steps} steps of {training.effective_batch_size} dialogues, "
        f"learning rate {training.learning_rate:g} ({training.schedule}), seed {training.seed} |",
    ]
    if figures:
        loss, perplexity, facts = figures["validation_loss"], figures["perplexity"], figures.get("facts")
        lines += [
            "",
            "| measured on held-out data | base | adapted |",
            "|---|---|---|",
            f"| validation loss | {loss['base']:.3f} | {loss['adapted']:.3f} |",
            f"| perplexity | {perplexity['base']:.2f} | {perplexity['adapted']:.2f} |",
        ]
        if facts:
            lines.append(f"| right of {facts['questions']} questions | {facts['base']:.0%} | {facts['adapted']:.0%} |")
    lines += [
        "",
        "The loss was on assistant turns only. `lora_chat.json` holds the digests of the base, tokenizer and chat",
        "template it belongs to; `chat_template.jinja` is the template of training.",
        "",
        "```",
        "lora-chat chat PATH_OF_THIS_FOLDER",
        "```",
        "",
    ]
    return "\n".join(lines)
