"""Proofs as files beside what was delivered, and as lines for a person."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lora_chat import __version__
from lora_chat.export.parity.compare import ProofReport
from lora_chat.export.parity.tolerances import limits_of

PROOF_NAME, SUMMARY_NAME = "proof.json", "PROOF.md"


def write_proof(folder: Path, reports: Sequence[ProofReport]) -> None:
    """`proof.json` and a readable summary."""
    found = [{**report.as_dict(), "limits": asdict(limits_of(report.what))} for report in reports]
    text = json.dumps({"lora_chat": __version__, "proofs": found}, indent=2, ensure_ascii=False) + "\n"
    (folder / PROOF_NAME).write_text(text, encoding="utf-8")
    (folder / SUMMARY_NAME).write_text("\n\n".join(_section(report) for report in reports) + "\n", encoding="utf-8")


def proof_line(report: ProofReport) -> str:
    """One line for the terminal."""
    return (
        f"Proven with {report.reader} on {report.tokens} tokens of {report.dialogues} held-out dialogues: mean KL "
        f"{report.mean_kl:.1e} nats (base alone {report.control_kl:.1e}), same top token {report.same_top_token:.1%}, "
        f"{report.equal_replies:.0%} of {report.replies} replies equal, "
        f"loss {report.loss_delivered:.3f} for {report.loss_adapted:.3f}"
    )


def _section(report: ProofReport) -> str:
    limits = limits_of(report.what)
    rows = [
        ("", "found", "allowed"),
        ("---", "---", "---"),
        ("mean KL, nats per token", f"{report.mean_kl:.2e}", f"{limits.mean_kl:.2g}"),
        ("the same for the base alone", f"{report.control_kl:.2e}", "at least twice the line above"),
        ("largest KL", f"{report.largest_kl:.2e}", ""),
        ("largest logit difference", f"{report.largest_logit_difference:.3g}", ""),
        ("same most likely token", f"{report.same_top_token:.2%}", f"{limits.same_top_token:.0%}"),
        ("validation loss, adapted", f"{report.loss_adapted:.4f}", ""),
        ("validation loss, delivered", f"{report.loss_delivered:.4f}", f"{limits.loss_rise:.2g} more"),
        (
            f"equal replies of {report.replies} ({report.reply_tokens} tokens)",
            f"{report.equal_replies:.0%}",
            f"{limits.equal_replies:.0%}",
        ),
    ]
    lines = [
        f"# {report.what}: {_verdict(report)}",
        "",
        f"Opened by {report.reader} and compared with the adapted model on {report.tokens} supervised tokens of "
        f"{report.dialogues} held-out dialogues. Limits: {limits.reason}.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    if report.failures:
        lines += ["", *(f"- {failure}" for failure in report.failures)]
    return "\n".join(lines)


def _verdict(report: ProofReport) -> str:
    if not report.failures:
        return "agrees"
    return "does NOT agree, kept on request" if report.accepted else "does NOT agree"
