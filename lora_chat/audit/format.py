"""How the findings of an audit look; what is shown of a secret is masked already."""

from lora_chat.audit.report import AuditReport, Finding
from lora_chat.config.audit import AuditSection, finding_title, is_redactable
from lora_chat.system.sanitize import sanitize_line


def audit_summary(report: AuditReport) -> list[str]:
    """The line that `sft` prints, if there is anything to say."""
    found = [f"{count:,} {finding_title(kind)}" for kind, count in report.counts.items()]
    return [f"Audit     {'; '.join(found)}: `lora-chat audit` shows where"] if found else []


def format_audit(report: AuditReport, policy: AuditSection) -> str:
    """What `lora-chat audit` prints: every kind with what is done about it, and the first findings."""
    lines = [f"{report.dialogues:,} dialogues were looked through."]
    for kind, count in report.counts.items():
        shown = report.findings_of_kind(kind)
        more = f", the first {len(shown)} of them" if len(shown) < count else ""
        lines += ["", f"{finding_title(kind)}: {count:,} ({policy.action(kind)}){more}"]
        lines += [_format_finding(finding) for finding in shown]
    if not report.counts:
        lines.append("Nothing was found.")
    return "\n".join(lines)


def format_refusal(report: AuditReport, policy: AuditSection) -> str:
    """Why these dialogues are not trained on, and what to do."""
    lines = ["The audit refuses these dialogues:"]
    for kind in report.refused:
        shown = report.findings_of_kind(kind)[:5]
        lines += [f"{report.counts[kind]:,} {finding_title(kind)}", *(_format_finding(finding) for finding in shown)]
    kind = report.refused[0]
    instead = "warn or redact" if is_redactable(kind) else "warn"
    lines.append(f"Mend them, or decide otherwise: audit.{kind} can be {instead} (--set audit.{kind}=warn).")
    return "\n".join(lines)


def _format_finding(finding: Finding) -> str:
    message = f", message {finding.message}" if finding.message else ""
    twin = f" and {finding.twin}" if finding.twin else ""
    detail = f"  {finding.detail}" if finding.detail else ""
    excerpt = f"  | {finding.excerpt}" if finding.excerpt else ""
    return f"  {sanitize_line(finding.location)}{sanitize_line(twin)}{message}{detail}{excerpt}"
