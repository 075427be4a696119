"""The findings of an audit as text. Secrets in them are already masked."""

from collections.abc import Mapping

from lora_chat.audit.report import AuditReport, Finding
from lora_chat.config.audit import AuditSection, FindingKind, finding_title, possible_actions
from lora_chat.system.sanitize import sanitize_line


def audit_summary(report: AuditReport) -> list[str]:
    """Return the line that `sft` prints; empty without findings."""
    counts = [f"{count:,} {finding_title(kind)}" for kind, count in report.counts.items()]
    return [f"Audit     {'; '.join(counts)}: `lora-chat audit` shows where"] if counts else []


def format_audit(report: AuditReport, policy: AuditSection) -> str:
    """Return the report that `lora-chat audit` prints: each kind with its action and its first findings."""
    lines = [f"{report.dialogues:,} dialogues were checked."]
    for kind, count in report.counts.items():
        shown = report.findings_of_kind(kind)
        more = f", the first {len(shown)} of them" if len(shown) < count else ""
        lines += ["", f"{finding_title(kind)}: {count:,} ({policy.action(kind)}){more}"]
        lines += [_format_finding(finding) for finding in shown]
    if report.dropped:
        lines += ["", f"left out: {format_left_out(report.dropped)}"]
    if not report.counts:
        lines.append("There are no findings.")
    return "\n".join(lines)


def format_refusal(report: AuditReport, policy: AuditSection) -> str:
    """Return the reason why the audit refuses these dialogues, and how to continue."""
    lines = ["The audit refuses these dialogues:"]
    for kind in report.refused:
        shown = report.findings_of_kind(kind)[:5]
        lines += [f"{report.counts[kind]:,} {finding_title(kind)}", *(_format_finding(finding) for finding in shown)]
    kind = report.refused[0]
    if policy.action(kind) == "drop":
        lines.append("A question of the evaluation or a chat template cannot be left out.")
    other_actions = [action for action in ("warn", "drop", "redact") if action in possible_actions(kind)]
    other_actions = [action for action in other_actions if action != policy.action(kind)]
    lines.append(
        f"Fix: edit the dialogues, or set audit.{kind} to {' or '.join(other_actions)} (--set audit.{kind}=warn)."
    )
    return "\n".join(lines)


def format_left_out(dropped: Mapping[FindingKind, int]) -> str:
    """Return the number of dialogues that are left out, by the kind of their findings."""
    parts = ", ".join(f"{count:,} {finding_title(kind)}" for kind, count in dropped.items())
    return f"{sum(dropped.values()):,} dialogues: {parts}"


def _format_finding(finding: Finding) -> str:
    """Return one line with the location, the detail and the excerpt of a finding."""
    message = f", message {finding.message}" if finding.message else ""
    repeated = f" and {finding.twin}" if finding.twin else ""
    detail = f"  {finding.detail}" if finding.detail else ""
    excerpt = f"  | {finding.excerpt}" if finding.excerpt else ""
    return f"  {sanitize_line(finding.location)}{sanitize_line(repeated)}{message}{detail}{excerpt}"
