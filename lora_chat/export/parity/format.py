"""Write parity reports as JSON and Markdown files, and format them as lines for the terminal."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lora_chat import __version__
from lora_chat.export.formats import TOLERANCES
from lora_chat.export.parity.compare import ParityReport

PARITY_JSON_NAME, PARITY_SUMMARY_NAME = "proof.json", "PROOF.md"


def write_parity_reports(folder: Path, reports: Sequence[ParityReport]) -> None:
    """Write `proof.json` and a summary in Markdown."""
    entries = [{**report.model_dump(), "limits": asdict(TOLERANCES[report.what])} for report in reports]
    text = json.dumps({"lora_chat": __version__, "proofs": entries}, indent=2, ensure_ascii=False) + "\n"
    (folder / PARITY_JSON_NAME).write_text(text, encoding="utf-8")
    (folder / PARITY_SUMMARY_NAME).write_text(
        "\n\n".join(_format_section(report) for report in reports) + "\n", encoding="utf-8"
    )


def format_parity_line(report: ParityReport) -> str:
    """Format a report as one line for the terminal."""
    return (
        f"Checked with {report.reader} on {report.tokens} tokens of {report.dialogues} dialogues: mean KL "
        f"{report.mean_kl:.1e} nats (base alone {report.control_kl:.1e}), same top token {report.same_top_token:.1%}, "
        f"{report.equal_replies:.0%} of {report.replies} replies equal, "
        f"loss {report.loss_delivered:.3f} (adapted {report.loss_adapted:.3f})"
    )


def _format_section(report: ParityReport) -> str:
    """Format a report as a section in Markdown."""
    tolerances = TOLERANCES[report.what]
    rows = [
        ("", "measured", "allowed"),
        ("---", "---", "---"),
        ("mean KL, nats per token", f"{report.mean_kl:.2e}", f"{tolerances.mean_kl:.2g}"),
        ("mean KL of the base without the adapter", f"{report.control_kl:.2e}", "at least twice the line above"),
        ("largest KL", f"{report.largest_kl:.2e}", ""),
        ("largest logit difference", f"{report.largest_logit_difference:.3g}", ""),
        ("same most likely token", f"{report.same_top_token:.2%}", f"{tolerances.same_top_token:.0%}"),
        ("validation loss, adapted", f"{report.loss_adapted:.4f}", ""),
        ("validation loss, exported", f"{report.loss_delivered:.4f}", f"{tolerances.loss_rise:.2g} more"),
        (
            f"equal replies of {report.replies} ({report.reply_tokens} tokens)",
            f"{report.equal_replies:.0%}",
            f"{tolerances.equal_replies:.0%}",
        ),
    ]
    lines = [
        f"# {report.what}: {_format_verdict(report)}",
        "",
        f"Opened by {report.reader} and compared with the adapted model on {report.tokens} supervised tokens of "
        f"{report.dialogues} dialogues. Limits: {tolerances.reason}.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    if report.failures:
        lines += ["", *(f"- {failure}" for failure in report.failures)]
    return "\n".join(lines)


def _format_verdict(report: ParityReport) -> str:
    """Return the verdict in the heading of a section."""
    if not report.failures:
        return "agrees"
    return "does NOT agree, kept on request" if report.accepted else "does NOT agree"
