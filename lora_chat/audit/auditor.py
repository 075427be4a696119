"""The audit of dialogues in one pass, which keeps little of each dialogue."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from lora_chat.audit.checks.check_table import DATASET_CHECKS, REPLY_CHECKS, TEXT_CHECKS, DialogueIndex
from lora_chat.audit.checks.replies import iter_trained_replies
from lora_chat.audit.excerpts import make_excerpt, make_opening
from lora_chat.audit.report import AuditReport, Finding, Split, TextMatch
from lora_chat.audit.sensitive.scan import find_sensitive, may_contain_sensitive
from lora_chat.audit.text_fields import TextField, list_text_fields
from lora_chat.config.audit import FINDING_KINDS, AuditSection, FindingKind
from lora_chat.data.dialogue import Dialogue
from lora_chat.system.activity import note_activity

MAX_SHOWN_FINDINGS = 20
"""Maximum number of findings of a kind in a report. The others are only counted."""


class Auditor:
    """The audit of one data set, which keeps about 0.5 kB per dialogue, whatever its length."""

    def __init__(self, policy: AuditSection, control_tokens: Collection[str] = ()) -> None:
        """Prepare all checks; `control_tokens` are the special tokens of the base, as its tokenizer spells them."""
        self._policy = policy
        self._enabled_kinds = frozenset(kind for kind in FINDING_KINDS if policy.action(kind) != "ignore")
        self._text_checks = [make_check(control_tokens) for make_check in TEXT_CHECKS.values()]
        self._dataset_checks = [make_check() for make_check in DATASET_CHECKS]
        self._index = DialogueIndex()
        self._counts: Counter[FindingKind] = Counter()
        self._findings: dict[FindingKind, list[Finding]] = {kind: [] for kind in FINDING_KINDS}
        self._unredactable_kinds: set[FindingKind] = set()
        self._undroppable_kinds: set[FindingKind] = set()
        self._number: int | None = None
        """Number of the dialogue that is checked, from 0; None for a question or a template."""
        self._left_out: dict[int, FindingKind] = {}

    def add(self, dialogue: Dialogue, split: Split = "train") -> None:
        """Check one dialogue."""
        note_activity()
        self._number = len(self._index.openings)
        fields = list_text_fields(dialogue)
        joined_text = "\n".join(field.text for field in fields)
        if may_contain_sensitive(joined_text):
            sensitive = [find_sensitive(field.text) for field in fields]
        else:
            sensitive = [[]] * len(fields)
        self._check_texts(dialogue, fields, sensitive, joined_text)
        self._check_replies(dialogue)
        self._index.add(dialogue, _make_dialogue_opening(dialogue, fields, sensitive), split)
        for check in self._dataset_checks:
            check.add(dialogue, split)
        self._number = None

    def add_text(self, text: str, path: str, line: int) -> None:
        """Check a text that is not part of a dialogue, such as a question."""
        sensitive_matches = find_sensitive(text)
        for match in (*sensitive_matches, *self._find_matches(text)):
            self._add_finding(Dialogue((), line, path=path), TextField(0, text), match, sensitive_matches)

    def add_code(self, text: str, path: str, line: int) -> None:
        """Check a line of a template for secrets and personal data, which cannot be redacted there."""
        sensitive_matches = find_sensitive(text)
        for match in sensitive_matches:
            if match.kind != "possible_secret":  # code often assigns tokens
                self._unredactable_kinds.add(match.kind)
                self._add_finding(Dialogue((), line, path=path), TextField(0, text), match, sensitive_matches)

    def report(self) -> AuditReport:
        """Return the findings in everything that was added so far."""
        counts = self._counts.copy()
        findings = {kind: list(kind_findings) for kind, kind_findings in self._findings.items()}
        left_out = dict(self._left_out)
        for check in self._dataset_checks:
            for finding, pair in check.find(self._index):
                if finding.kind in self._enabled_kinds:
                    counts[finding.kind] += 1
                    findings[finding.kind].append(finding)
                    if pair and self._is_dropped(finding.kind, pair[1]):
                        _leave_out(left_out, pair[0], finding.kind)
        kinds = tuple(kind for kind in FINDING_KINDS if counts[kind])
        refused = tuple(kind for kind in kinds if self._is_refused(kind))
        dropped = Counter(left_out.values())
        return AuditReport(
            dialogues=len(self._index.openings),
            counts={kind: counts[kind] for kind in kinds},
            findings=tuple(finding for kind in kinds for finding in findings[kind][:MAX_SHOWN_FINDINGS]),
            shares=self._index.balance.shares(),
            refused=refused,
            redacted=tuple(kind for kind in kinds if self._policy.action(kind) == "redact" and kind not in refused),
            dropped={kind: number for kind in kinds if (number := dropped[kind])},
            left_out=tuple(sorted(left_out)),
        )

    def _is_dropped(self, kind: FindingKind, other: int) -> bool:
        """Return whether the policy drops a dialogue because of another one, which may be dropped itself."""
        is_only_clean_one = kind == "near_duplicate" and other in self._left_out
        return self._policy.action(kind) == "drop" and not is_only_clean_one

    def _is_refused(self, kind: FindingKind) -> bool:
        """Return whether the policy refuses a kind, or redacts or drops it where that is impossible."""
        action = self._policy.action(kind)
        return (
            action == "refuse"
            or (action == "redact" and kind in self._unredactable_kinds)
            or (action == "drop" and kind in self._undroppable_kinds)
        )

    def _check_texts(
        self,
        dialogue: Dialogue,
        fields: Sequence[TextField],
        sensitive: Sequence[Sequence[TextMatch]],
        joined_text: str,
    ) -> None:
        """Enter the sensitive matches of each field, and the matches of all text checks."""
        has_match = next(self._find_matches(joined_text), None) is not None
        for field, sensitive_matches in zip(fields, sensitive, strict=True):
            for match in (*sensitive_matches, *(self._find_matches(field.text) if has_match else ())):
                if match.start >= field.start:
                    self._add_finding(dialogue, field, match, sensitive_matches)

    def _find_matches(self, text: str) -> Iterator[TextMatch]:
        for find in self._text_checks:
            yield from find(text)

    def _add_finding(
        self, dialogue: Dialogue, field: TextField, match: TextMatch, sensitive_matches: Sequence[TextMatch]
    ) -> None:
        """Count a match, and keep it as a finding if few of its kind were found before."""
        if match.kind not in self._enabled_kinds:
            return
        self._counts[match.kind] += 1
        if self._policy.action(match.kind) == "drop":
            if self._number is None:
                self._undroppable_kinds.add(match.kind)
            else:
                _leave_out(self._left_out, self._number, match.kind)
        if self._counts[match.kind] <= MAX_SHOWN_FINDINGS:
            excerpt = make_excerpt(field.text, match, sensitive_matches)
            location = (dialogue.path, dialogue.line, field.message)
            self._findings[match.kind].append(Finding(match.kind, *location, match.detail, excerpt))

    def _check_replies(self, dialogue: Dialogue) -> None:
        for number, message in iter_trained_replies(dialogue):
            for check in REPLY_CHECKS:
                match = check(message)
                if match:
                    field = TextField(number, message.content)
                    self._add_finding(dialogue, field, match, find_sensitive(message.content))
                    break


def _leave_out(left_out: dict[int, FindingKind], number: int, kind: FindingKind) -> None:
    """Enter a dialogue under the first of its kinds in the order of the table."""
    kinds = {kind, left_out.get(number, kind)}
    left_out[number] = min(kinds, key=FINDING_KINDS.index)


def _make_dialogue_opening(
    dialogue: Dialogue, fields: Sequence[TextField], sensitive: Sequence[Sequence[TextMatch]]
) -> str:
    """Return the beginning of the first user message, masked, or of the first text if none exists."""
    roles = (dialogue.messages[field.message - 1].role if field.message else "" for field in fields)
    first = next((index for index, role in enumerate(roles) if role == "user"), 0)
    return make_opening(fields[first].text, sensitive[first]) if fields else ""
