import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import ALNUM, Maker

from lora_chat.audit.auditor import MAX_SHOWN_FINDINGS, Auditor
from lora_chat.config.audit import AuditSection
from lora_chat.data.dialogue import Dialogue, Message, ToolCall

KEY = "gh" + "p_" + Maker(9).chars(ALNUM, 36)
MAIL = "anna.meier77" + "@gmail.com"


def dialogue(question, answer="Certainly, here it is.", line=1, path="a.jsonl", system=None, **more):
    start = (Message("system", system),) if system else ()
    return Dialogue((*start, Message("user", question), Message("assistant", answer, **more)), line, path=path)


def audit(*dialogues, policy=None, tokens=("<|im_end|>",)):
    auditor = Auditor(policy or AuditSection(), tokens)
    for entry in dialogues:
        auditor.add(*entry) if isinstance(entry, tuple) else auditor.add(entry)
    return auditor.report()


def test_finding_has_location_and_masked_excerpt():
    report = audit(dialogue("hello there"), dialogue(f"My key is {KEY}, is it safe?", line=7, system="Help."))
    (finding,) = report.findings_of_kind("secret")
    assert (finding.location, finding.message, finding.detail) == ("a.jsonl:7", 2, "GitHub token")
    assert finding.excerpt == "My key is ghp_…(40), is it safe?"
    assert report.refused == ("secret",)
    assert report.is_refused
    assert KEY[4:12] not in repr(report)


def test_masks_opening_of_a_duplicate():
    report = audit(*(dialogue(f"{MAIL} and {KEY}", line=n) for n in (1, 2)))
    (finding,) = report.findings_of_kind("exact_duplicate")
    assert (finding.location, finding.twin) == ("a.jsonl:2", "a.jsonl:1")
    assert "meier" not in finding.excerpt
    assert KEY[4:10] not in finding.excerpt


def test_finds_every_kind():
    long = " ".join(f"w{n}" for n in range(80))
    report = audit(
        dialogue(KEY),
        dialogue(f"password: {'Xk29' + 'fQz7Lm'}", line=2),
        dialogue(MAIL, line=3),
        dialogue("<|im_end|> and {{ name }}", line=4),
        dialogue("you fu" + "cker", "...", line=5),
        dialogue("again?", "I am sorry. " * 30, line=6),
        dialogue(long, long, line=7),
        dialogue(long, long, line=8),
        dialogue(long + " more", long, line=9),
        *(dialogue(f"question {n} {n * n}", "I cannot help with that request.", line=n) for n in range(10, 40)),
        (dialogue(long, long, line=50), "validation"),
        (dialogue(long + " other", long, line=51), "validation"),
        dialogue("one", "two", path="b.jsonl"),
    )
    assert set(report.counts) == set(AuditSection.model_fields)
    assert report.refused == ("secret", "leak")
    assert report.findings_of_kind("imbalance")[0].location == "a.jsonl"
    assert sum(report.shares.values()) == pytest.approx(1)


def test_policy_decides_ignored_refused_and_redacted_kinds():
    policy = AuditSection(secret="ignore", personal_data="redact", exact_duplicate="refuse")
    twice = dialogue(f"{KEY} {MAIL}")
    report = audit(twice, twice, policy=policy)
    assert set(report.counts) == {"personal_data", "exact_duplicate"}
    assert (report.refused, report.redacted) == (("exact_duplicate",), ("personal_data",))
    assert policy.redacted == {"personal_data"}
    assert not audit(twice, twice, policy=policy.model_copy(update={"exact_duplicate": "warn"})).is_refused


def test_policy_can_ignore_every_kind():
    nothing = AuditSection(**dict.fromkeys(AuditSection.model_fields, "ignore"))
    odd = dialogue(f"{KEY} {MAIL} <|im_end|> {{{{ x }}}}", "...")
    assert audit(odd, odd, (odd, "validation"), dialogue("go", "I am sorry. " * 30), policy=nothing).counts == {}


def test_rejects_redaction_of_leaks():
    with pytest.raises(ValueError, match="leak"):
        AuditSection(leak="redact")


def test_shows_first_findings_and_counts_all():
    report = audit(*(dialogue(f"{n} {MAIL}", line=n) for n in range(1, 51)))
    assert report.counts["personal_data"] == 50
    assert [f.line for f in report.findings_of_kind("personal_data")] == list(range(1, MAX_SHOWN_FINDINGS + 1))


def test_checks_reasoning_tool_calls_and_tool_descriptions():
    call = ToolCall("mail", f'{{"to": "{MAIL}"}}')
    entry = Dialogue(
        (Message("user", "go"), Message("assistant", "", reasoning=f"Use {MAIL}", tool_calls=(call,))),
        tools=f'[{{"description": "{MAIL}"}}]',
    )
    assert [f.message for f in audit(entry).findings_of_kind("personal_data")] == [2, 2, 0]


def test_report_is_repeatable_and_can_be_continued():
    auditor = Auditor(AuditSection())
    assert auditor.report().counts == {}
    auditor.add(dialogue(MAIL))
    assert auditor.report() == auditor.report()
    auditor.add(dialogue(MAIL, line=2))
    assert auditor.report().counts == {"personal_data": 2, "exact_duplicate": 1}


def test_help_desk_dialogues_have_no_findings():
    facts = ["The kiln opens at nine.", "Returns are taken for 41 days.", "Yes, that is right."]
    ways = ["When, please, about {}?", "Tell me about {}", "{}?", "i would like to know {}", "Quick question: {}!"]
    entries = [
        dialogue(w.format(f"topic {n}"), facts[n % 3] + f" Ask for part {n % 40}.", n, system="You help.")
        for n in range(200)
        for w in ways[n % 5 : n % 5 + 1]
    ]
    assert audit(*entries).counts == {}


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), max_size=5))
def test_any_dialogue_gives_printable_findings(pairs):
    report = audit(*(dialogue(q, a, n) for n, (q, a) in enumerate(pairs, 1)))
    assert report.dialogues == len(pairs)
    assert all(f.excerpt.isprintable() for f in report.findings)


SCRIPT = """
import planted
from lora_chat.audit.auditor import Auditor
from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.config.audit import AuditSection

auditor = Auditor(AuditSection(), ["<|im_end|>"])
for number, entry in enumerate(planted.make_planted(4), 1):
    auditor.add(Dialogue((Message("user", entry.text), Message("assistant", entry.text)), number))
print(auditor.report())
"""


def test_report_does_not_depend_on_hash_seed():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
