"""The findings of an audit as text. Secrets in them are already masked."""

from lora_chat.audit.report import AuditReport, Finding
from lora_chat.config.audit import AuditSection, finding_title, is_redactable
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
    other_actions = "warn or redact" if is_redactable(kind) else "warn"
    lines.append(f"Fix: edit the dialogues, or set audit.{kind} to {other_actions} (--set audit.{kind}=warn).")
    return "\n".join(lines)


def _format_finding(finding: Finding) -> str:
    """Return one line with the location, the detail and the excerpt of a finding."""
    message = f", message {finding.message}" if finding.message else ""
    repeated = f" and {finding.twin}" if finding.twin else ""
    detail = f"  {finding.detail}" if finding.detail else ""
    excerpt = f"  | {finding.excerpt}" if finding.excerpt else ""
    return f"  {sanitize_line(finding.location)}{sanitize_line(repeated)}{message}{detail}{excerpt}"
