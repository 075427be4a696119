"""The page of one run."""

from collections.abc import Callable, Sequence

from lora_chat.report.abilities_section import build_general, build_generations
from lora_chat.report.collect import RunRecord
from lora_chat.report.confusion_section import build_confusion
from lora_chat.report.curves_section import CHART_KEY, build_curves, collect_curve_data
from lora_chat.report.data_section import build_audit, build_data
from lora_chat.report.document import build_document
from lora_chat.report.element import Child, Markup, element, join
from lora_chat.report.judgement_section import build_judgement
from lora_chat.report.run_section import build_environment, build_planned, build_recipe, build_summary, describe_finish
from lora_chat.report.samples_section import build_samples, collect_sample_data
from lora_chat.report.section import Section, build_note, build_section
from lora_chat.report.seen_section import build_overlap, build_recital
from lora_chat.report.show import cut_text
from lora_chat.report.verdict_section import build_metrics, build_verdict

SECTIONS: tuple[Callable[[RunRecord], Section | None], ...] = (
    build_metrics,
    build_curves,
    build_samples,
    build_judgement,
    build_confusion,
    build_general,
    build_generations,
    build_recital,
    build_overlap,
    build_data,
    build_audit,
    build_planned,
    build_environment,
    build_recipe,
)
"""The sections below the verdict, in their order. One without data returns None."""


def build_run_page(record: RunRecord) -> str:
    """Return the page of a run."""
    sections = [section for build in SECTIONS if (section := build(record)) is not None]
    unfinished = describe_finish(record)
    title = cut_text(record.name, 120)
    body = build_body(
        title,
        "Fine-tuning report",
        [
            build_note(unfinished, tone="warn") if unfinished else None,
            *(build_note(cut_text(text, 500), tone="bad") for text in record.damage.values()),
            build_verdict(record),
            build_summary(record),
        ],
        sections,
    )
    data = {"charts": {CHART_KEY: collect_curve_data(record)}, "samples": collect_sample_data(record)}
    return build_document(f"{title} · report", body, data)


def build_body(title: str, kicker: str, top: Sequence[Child], sections: Sequence[Section]) -> Markup:
    """Return the content of a page: title, top, links to the sections, and the sections."""
    links = (element("a", section.title, href=f"#{section.key}") for section in sections)
    return join(
        element("a", "Skip to the content", href="#content", class_="skip"),
        element(
            "header",
            element("p", kicker, class_="kicker"),
            element("h1", title, dir="auto"),
            element("button", "Light or dark", type="button", id="theme", class_="js", hidden=True),
            class_="page",
        ),
        element(
            "main",
            top,
            element("nav", links, aria_label="Sections") if sections else None,
            [build_section(section) for section in sections],
            id="content",
        ),
        element("footer", element("p", "Written by lora-chat. This page loads nothing and sends nothing.")),
    )
