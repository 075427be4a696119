"""`lora-chat audit`, and the audit in `sft`: findings are masked, refused, or redacted in a copy."""

import json

import pytest

from lora_chat.cli import main

KEY = "gh" + "p_" + "Zq4mT7xN2vB9kL5sR8wY3cJ6hF1dG0pQaUeX"
MAIL = "ines.okafor" + "@" + "ferrymail.org"


def row(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


PLAIN = [
    row(f"Where does {place} ferry leave?", f"From pier {n}, {minutes} minutes past the hour, by the {colour} gate.")
    for n, (place, minutes, colour) in enumerate(
        [
            ("the north", 5, "red"),
            ("the island", 20, "blue"),
            ("the night", 35, "green"),
            ("the car", 50, "white"),
            ("the school", 10, "yellow"),
            ("the post", 25, "grey"),
            ("the fish", 40, "brown"),
            ("the mill", 55, "black"),
        ],
        1,
    )
]


@pytest.fixture
def lora_chat(cache_home, tmp_path, capsys):
    def run(command, rows, *arguments, validation=()):
        for name, content in (("talk", rows), ("held", validation)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
        held = ", validation: held.jsonl" if validation else ""
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            f"base: {{name: tiny-random}}\nquantization: {{mode: none}}\ndata: {{train: talk.jsonl{held}}}\n"
            f"training: {{max_steps: 1, effective_batch_size: 2}}\nevaluation: {{samples: 0}}\n"
            f"output: {{directory: {tmp_path / 'runs'}}}\n"
        )
        code = main([command, str(recipe), *arguments])
        return code, *capsys.readouterr()

    return run


def test_harmless_dialogues_have_no_findings(lora_chat):
    code, out, _ = lora_chat("audit", PLAIN)
    assert code == 0
    assert "There are no findings" in out


def test_findings_name_file_line_and_message_and_are_masked(lora_chat, tmp_path):
    rows = [*PLAIN, row("What is the token?", f"It is {KEY}."), row("Whom do I ask?", f"Write to {MAIL}, please.")]
    code, out, err = lora_chat("audit", rows)
    assert code == 3
    assert f"{tmp_path / 'talk.jsonl'}:9, message 2" in out
    assert f"{tmp_path / 'talk.jsonl'}:10, message 2" in out
    assert "secrets: 1 (refuse)" in out
    assert "personal data: 1 (warn)" in out
    for text in (out, err):
        assert KEY not in text
        assert KEY[8:] not in text
        assert MAIL not in text


def test_json_has_all_findings_and_no_secret(lora_chat):
    code, out, _ = lora_chat("audit", [*PLAIN, row("The token?", f"{KEY}")], "--json")
    assert code == 3
    report = json.loads(out)
    assert report["counts"] == {"secret": 1}
    assert report["refused"] == ["secret"]
    assert report["findings"][0]["line"] == 9
    assert KEY not in out


def test_sft_refuses_findings_before_a_run_exists(lora_chat, tmp_path):
    code, _, err = lora_chat("sft", [*PLAIN, row("The token?", f"{KEY}")])
    assert code == 3
    assert "talk.jsonl:9, message 2" in err
    assert "--set audit.secret=warn" in err
    assert KEY not in err
    assert not (tmp_path / "runs").exists()


def test_sft_warns_once_and_skips_ignored_findings(lora_chat, tmp_path):
    rows = [*PLAIN, row("The token?", f"{KEY}"), row("Whom?", MAIL)]
    settings = ["--set", "audit.secret=ignore"]
    code, _, err = lora_chat("sft", rows, *settings)
    assert code == 0, err
    assert "Audit     1 personal data" in err
    assert "secret" not in err
    saved = (tmp_path / "runs" / "r-1" / "audit.json").read_text()
    assert json.loads(saved)["counts"] == {"personal_data": 1}
    assert MAIL not in saved


@pytest.mark.slow
def test_redaction_trains_on_a_copy_and_leaves_the_file_unchanged(lora_chat, tmp_path):
    rows = [*PLAIN, row(f"I am {MAIL}.", f"Your token is {KEY}.")]
    settings = ["--set", "audit.secret=redact", "--set", "audit.personal_data=redact"]
    code, shown, err = lora_chat("data", rows, *settings, "--show", "9")
    assert code == 0, err
    assert KEY not in shown
    assert MAIL not in shown
    code, _, err = lora_chat("sft", rows, *settings)
    assert code == 0, err
    assert "Redacted  2" in err
    run = tmp_path / "runs" / "r-1"
    for path in run.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
            assert MAIL.encode() not in path.read_bytes(), path
    assert KEY in (tmp_path / "talk.jsonl").read_text()
    trained = [json.loads(line) for line in (run / "redacted.jsonl").read_text().splitlines()]
    held = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert len(trained) + len(held) == 9
    code, out, err = lora_chat("audit", rows, *settings, "--to", str(tmp_path / "clean.jsonl"))
    assert code == 0, err
    assert (tmp_path / "clean.jsonl").read_text() == (run / "redacted.jsonl").read_text()
    assert "There are no findings" in out


def test_refuses_validation_dialogues_in_the_training_data(lora_chat):
    code, out, _ = lora_chat("audit", PLAIN, validation=[PLAIN[2]])
    assert code == 3
    assert "talk.jsonl:3" in out
    assert "held.jsonl:1" in out
    code, _, err = lora_chat("sft", PLAIN, validation=[PLAIN[2]])
    assert code == 3
    assert "--set audit.leak=warn" in err
    assert lora_chat("audit", PLAIN[:6], validation=PLAIN[6:])[0] == 0


def test_audits_and_redacts_plain_text(lora_chat):
    rows = [{"text": f"{n}. The ferry leaves the pier at {n}."} for n in range(30)] + [{"text": f"token: {KEY}"}]
    code, out, _ = lora_chat("audit", rows, "--set", "data.max_length=64")
    assert code == 3
    assert "secrets: 1" in out
    code, out, err = lora_chat("audit", rows, "--set", "data.max_length=64", "--set", "audit.secret=redact")
    assert code == 0, err
    assert "secrets" not in out


def test_second_audit_of_the_same_data_is_cached(lora_chat, monkeypatch):
    rows = [*PLAIN, row("Whom?", MAIL)]
    first = lora_chat("audit", rows)

    def refuse(*_):
        raise AssertionError("audited again")

    monkeypatch.setattr("lora_chat.audit.auditor.Auditor.add", refuse)
    assert lora_chat("audit", rows) == first
    with pytest.raises(AssertionError, match="again"):
        lora_chat("audit", rows, "--set", "audit.leak=warn")


def settings_with_questions(tmp_path, *rows):
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--set", f"evaluation.questions={tmp_path / 'q.jsonl'}"]


ASKED = {"question": "Where is the gate?", "accept": ["left"]}


@pytest.mark.parametrize("place", ["question", "accept"])
def test_audits_questions_and_accepted_answers(lora_chat, tmp_path, place):
    secret = {"question": f"Is it {KEY}?" if place == "question" else "What is it?"}
    secret["accept"] = [KEY if place == "accept" else "yes", "no"]
    settings = settings_with_questions(tmp_path, ASKED, secret)
    code, out, _ = lora_chat("audit", PLAIN, *settings)
    assert code == 3
    assert f"{tmp_path / 'q.jsonl'}:2" in out
    assert KEY[8:] not in out
    assert lora_chat("sft", PLAIN, *settings)[0] == 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_redacts_questions_in_files_and_output(lora_chat, tmp_path):
    disguised = KEY[:12] + "\u200b" + KEY[12:]
    settings = settings_with_questions(tmp_path, {"question": f"Is it {disguised} or {MAIL}?", "accept": [KEY, "yes"]})
    code, out, err = lora_chat(
        "sft", PLAIN, *settings, "--set", "audit.secret=redact", "--set", "audit.personal_data=redact"
    )
    assert code == 0, err
    run = tmp_path / "runs" / "r-1"
    assert json.loads((run / "questions.jsonl").read_text()) == {
        "question": "Is it [SECRET] or [E-MAIL]?",
        "accept": ["[SECRET]", "yes"],
    }
    assert "Is it [SECRET] or [E-MAIL]?" in (run / "comparison.json").read_text()
    for text in (out, err, *(p.read_bytes().decode("utf-8", "replace") for p in run.rglob("*") if p.is_file())):
        assert KEY[14:] not in text
        assert MAIL not in text


@pytest.mark.parametrize("action", ["refuse", "redact"])
def test_refuses_a_secret_in_a_chat_template(lora_chat, tmp_path, action):
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}\n"
        f"{{% set token = '{KEY}' %}}{{% if add_generation_prompt %}}assistant: {{% endif %}}"
    )
    settings = ["--set", f"data.template={template}", "--set", f"audit.secret={action}"]
    code, out, _ = lora_chat("audit", PLAIN, *settings)
    assert code == 3
    assert f"{template}:3" in out
    assert KEY[8:] not in out
    assert lora_chat("audit", PLAIN, *settings[:2], "--set", "audit.secret=warn")[0] == 0


def test_redacts_faulty_rows_in_messages(lora_chat, tmp_path):
    faulty = {"messages": [{"role": "user", "content": "x" * 60 + f" {KEY}"}, {"role": f"role {KEY}", "content": "a"}]}
    redacting = ["--set", "audit.secret=redact"]
    code, out, err = lora_chat("data", [*PLAIN, faulty], *redacting)
    assert code == 3
    assert "[SECRET]" in err
    for text in (out, err):
        assert KEY[8:20] not in text
    code, out, err = lora_chat("data", [*PLAIN, faulty], *redacting, "--set", "data.skip_bad=1", "--json")
    assert code == 0, err
    assert KEY[8:20] not in out + err
