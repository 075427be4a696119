"""Recital: a model that was trained hard on a few dialogues completes them word for word, and its base does not."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lora_chat.audit.report import AuditReport, Finding
from lora_chat.config.audit import AuditSection
from lora_chat.config.data import DataSection
from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, EvaluationSection, QuantizationSection
from lora_chat.data.dataset import build_block_set, build_full_set, find_units, select_units
from lora_chat.data.sources import find_sources, open_sources
from lora_chat.evaluation.comparison import ComparisonReport
from lora_chat.evaluation.recital import RecitalReport, RecitedValue, complete_rows, format_recital, read_recital
from lora_chat.evaluation.training_replies import choose_replies, read_training_replies
from lora_chat.inference.generation import generate_ids
from lora_chat.models.adapter import attach_adapter, without_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.measure_recital import _format_warning, add_recital, measure_recital, read_stored_recital
from lora_chat.system.hardware import Hardware

ANSWERS = [
    "The kiln opens at ten, twice a week.",
    "Write to mira@clayworks.org, please.",
    "Glazes dry for two days before use.",
]
NO_AUDIT = AuditReport(0, {}, (), {}, (), ())


def open_set(tmp_path, tokenizer, rows, **options):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSection(train=str(path), max_length=512, workers=1, **options)
    opened = open_sources(find_sources(data.train_sources, ""), data, tokenizer, (2,), None)
    return build_full_set([source.store for source in opened]), str(path)


def dialogue(question, *answers, **options):
    turns = [[{"role": "user", "content": question}, {"role": "assistant", "content": a}] for a in answers]
    return {"messages": [message for turn in turns for message in turn], **options}


@pytest.fixture(scope="module")
def trained(cache_home, random_base, tmp_path_factory):
    """Return a base with an adapter that was trained on three dialogues only, and the data as a prepared run has it."""
    base = find_base(BaseSection(name=str(random_base("llama", 30.0))))
    tokenizer = load_tokenizer(base)
    rows = [dialogue(str(i), answer) for i, answer in enumerate(ANSWERS)]
    train, path = open_set(tmp_path_factory.mktemp("data"), tokenizer, rows)
    precision = plan_precision(QuantizationSection(mode="none", dtype="float32"), Hardware("cpu", "test", 0, False, 2))
    model = attach_adapter(load_base_model(base, precision), AdapterSection(rank=16, alpha=32, dropout=0.0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    length = max(len(row.input_ids) for row in train.rows)
    ids = torch.tensor([row.input_ids + [0] * (length - len(row.input_ids)) for row in train.rows])
    labels = torch.tensor([row.labels + [-100] * (length - len(row.labels)) for row in train.rows])
    for _ in range(200):
        loss = model(input_ids=ids, labels=labels).loss
        if loss < 0.02:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.02
    stop_ids = read_stop_ids(base, tokenizer)
    prepared = SimpleNamespace(tokenizer=tokenizer, stop_ids=stop_ids, train=train)
    return model.eval(), prepared, path


def test_a_model_trained_hard_recites_and_its_base_does_not(trained):
    model, prepared, path = trained
    report = measure_recital(model, prepared, AuditSection(), NO_AUDIT, 20, 0)
    assert (report.replies, report.base, report.adapted, report.only_adapted) == (3, 0, 3, 3)
    assert report.findings == (RecitedValue(kind="personal_data", path=path, line=2),)
    assert report.adapted_interval[0] > 0.4 > report.base_interval[0]
    assert "mira" not in json.dumps(report.as_dict())


def test_the_most_probable_tokens_are_the_greedy_reply(trained):
    model, prepared, _ = trained
    replies = choose_replies(prepared.train, prepared.tokenizer, prepared.stop_ids, 20, 0)
    rows = [reply.make_row() for reply in replies]
    rows += [replace(row, labels=[*row.labels[:-1], (row.labels[-1] + 1) % 200]) for row in rows]  # wrong at the end
    rows[3] = rows[3].__class__(rows[3].input_ids[:-1] + rows[3].labels[-1:], rows[3].labels)

    def generated(row):
        begin = next(i for i, label in enumerate(row.labels) if label != -100)
        expected = row.labels[begin:]
        (reply,) = generate_ids(model, 0, [row.input_ids[:begin]], [], len(expected))
        return reply == expected

    base, adapted = complete_rows(model, rows)
    assert adapted.tolist() == [generated(row) for row in rows] == [True] * 3 + [False] * 3
    with without_adapter(model):
        assert base.tolist() == [generated(row) for row in rows] == [False] * 6


def test_values_that_the_audit_found_are_completed_from_everything_before_them(trained):
    model, prepared, path = trained
    findings = (Finding("personal_data", path, 2, 2), Finding("secret", path, 1, 2), Finding("leak", path, 3, 2))
    audit = replace(NO_AUDIT, findings=findings)
    report = measure_recital(model, prepared, AuditSection(), audit, 20, 0)
    assert (report.values, report.sensitive) == (1, {"personal_data": 1})
    ignored = measure_recital(model, prepared, AuditSection(personal_data="ignore"), audit, 20, 0)
    assert (ignored.values, ignored.findings) == (0, ())
    with without_adapter(model):  # as an adapter that learned nothing
        assert measure_recital(model, prepared, AuditSection(), audit, 20, 0).findings == ()


def test_a_value_of_the_question_is_not_recital(tmp_path, trained):
    model, prepared, _ = trained
    rows = [dialogue("I am mira@clayworks.org, when do you open?", ANSWERS[1])]
    train, path = open_set(tmp_path, prepared.tokenizer, rows)
    audit = replace(NO_AUDIT, findings=(Finding("personal_data", path, 1, 2),))
    prepared = SimpleNamespace(tokenizer=prepared.tokenizer, stop_ids=prepared.stop_ids, train=train)
    assert measure_recital(model, prepared, AuditSection(), audit, 20, 0).values == 0


def add(model, prepared, tmp_path, **settings):
    """Return the report that `add_recital` gives, and what it wrote into the comparison of the run."""
    training = SimpleNamespace(effective_batch_size=4, seed=0)
    plan = SimpleNamespace(evaluation=EvaluationSection(**settings), audit=AuditSection(), training=training)
    written = []
    run = SimpleNamespace(comparison=tmp_path, write_json=lambda path, value: written.append(value["recital"]))
    report = ComparisonReport(figures={}, validation_dialogues=0, samples=(), answers=())
    return add_recital(report, model, prepared, plan, NO_AUDIT, run, 3), written


def test_the_recital_is_shown_and_written(trained, tmp_path, messages):
    model, prepared, path = trained
    report, written = add(model, prepared, tmp_path, recital=9)
    assert report.recital.adapted == 3 and written == [report.recital.as_dict()]
    assert "Recital: recites 3 of 3 training replies word for word" in "\n".join(messages)
    assert f"personal data ({path}:2)" in messages[-1] and "mira" not in messages[-1]
    for settings in ({}, {"recital": "off"}):  # a base of 100,000 weights has none by default
        assert add(model, prepared, tmp_path, **settings)[1] == []


def test_a_deleted_cache_ends_no_run(trained, tmp_path, messages):
    model, prepared, _ = trained
    gone = replace(prepared.train.units_by_store[0][0], folder=tmp_path / "deleted")
    train = replace(prepared.train, units_by_store=((gone, prepared.train.units_by_store[0][1]),))
    damaged = SimpleNamespace(tokenizer=prepared.tokenizer, stop_ids=prepared.stop_ids, train=train)
    report, written = add(model, damaged, tmp_path, recital=9)
    assert report.recital is None and written == []
    assert "Recital was not measured" in messages[-1]


LONG = "x" * 15 + " and some more words"


def test_chosen_replies_are_long_enough_different_and_repeat_with_a_seed(tmp_path, tiny_tokenizer):
    rows = [dialogue(f"q{i}", f"{i} {LONG}", "short") for i in range(40)] + [
        dialogue(f"again {i}", LONG) for i in (1, 2)
    ]
    train, _ = open_set(tmp_path, tiny_tokenizer, rows)
    chosen = choose_replies(train, tiny_tokenizer, (2,), 10, 5)
    texts = [tiny_tokenizer.decode(reply.ids) for reply in chosen]
    assert len(set(texts)) == 10 and "short" not in texts
    assert chosen == choose_replies(train, tiny_tokenizer, (2,), 10, 5)
    assert chosen != choose_replies(train, tiny_tokenizer, (2,), 10, 6)
    assert len(choose_replies(train, tiny_tokenizer, (2,), 100, 5)) == 41
    row, reply = chosen[0].make_row(), chosen[0]
    assert sum(label != -100 for label in row.labels) == min(32, len(reply.ids) - 8)
    assert tiny_tokenizer.decode(row.input_ids).endswith(f"<|im_start|>assistant\n{texts[0][:40]}")


@pytest.mark.parametrize(("length", "kept"), [(20, False), (21, True), (22, True)])
def test_the_first_tokens_are_at_most_a_quarter_of_a_reply(tmp_path, tiny_tokenizer, length, kept):
    train, _ = open_set(tmp_path, tiny_tokenizer, [dialogue("q", "y" * length)])
    (reply,) = read_training_replies(train, tiny_tokenizer, (2,))
    assert (len(reply.ids), reply.given_tokens, reply.is_long_enough) == (length, 5, kept)


def test_replies_are_found_where_prompts_carry_loss_and_where_text_has_no_turns(tmp_path, tiny_tokenizer):
    train, _ = open_set(tmp_path, tiny_tokenizer, [dialogue("question", LONG, loss="all")])
    (reply,) = choose_replies(train, tiny_tokenizer, (2,), 10, 0)
    assert tiny_tokenizer.decode(reply.ids) == LONG
    train, _ = open_set(tmp_path, tiny_tokenizer, [{"text": "a long text " * 20}])
    (block,) = choose_replies(train, tiny_tokenizer, (2,), 10, 0)
    row = block.make_row()
    assert (len(row.input_ids), row.labels[:32], len(block.prompt)) == (64, [-100] * 32, 0)
    assert choose_replies(build_block_set([[5] * 60]), tiny_tokenizer, (2,), 10, 0) == []


def test_units_are_found_by_file_and_line(tmp_path, tiny_tokenizer):
    train, path = open_set(tmp_path, tiny_tokenizer, [dialogue(f"q{i}", LONG + str(i)) for i in range(9)])
    numbers = find_units(train, {(path, 3), (path, 8), ("other", 1), (path, 99)})
    assert [line for _, line, _, _ in select_units(train, numbers).iter_units()] == [3, 8]


REPORT = RecitalReport(replies=100, base=1, adapted=12, only_adapted=12, values=2)


def test_the_report_is_read_again_and_contradictions_are_refused(tmp_path):
    finding = RecitedValue(kind="secret", path="a.jsonl", line=3)
    report = REPORT.model_copy(update={"findings": (finding, finding)})
    stored = json.loads(json.dumps(report.as_dict()))
    assert read_recital(stored) == report
    assert read_recital(None) is None
    for change in ({"adapted": 101}, {"only_adapted": 13}, {"base": -1}, {"replies": 5}, {"findings": {}}):
        with pytest.raises(ValueError):
            read_recital(stored | change)
    run = SimpleNamespace(comparison=tmp_path / "comparison.json", read_comparison=lambda: {"recital": {"replies": 1}})
    assert read_stored_recital(run) is None
    run.comparison.write_text("{}")
    assert read_stored_recital(run) is None  # damaged
    run.read_comparison = lambda: {"recital": stored}
    assert read_stored_recital(run) == report


def test_terminal_lines_name_shares_kinds_and_locations():
    line = "Recital: recites 12 of 100 training replies word for word (7 to 20 %), the base 1"
    assert format_recital(REPORT) == line
    assert np.isclose(REPORT.p_value, 2 * 14 / 2**13)
    equal = REPORT.model_copy(update={"adapted": 2, "only_adapted": 2})
    assert format_recital(equal).endswith("(no difference shown)")
    places = tuple(RecitedValue(kind="personal_data", path="a.jsonl", line=n) for n in range(1, 8))
    warning = _format_warning(REPORT.model_copy(update={"findings": places}))
    assert "personal data (a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4, a.jsonl:5 and 2 more)" in warning
    assert "--set audit.personal_data=redact" in warning and "audit.secret" not in warning


@pytest.mark.parametrize(
    ("setting", "weights", "trained", "count"),
    [
        ("auto", 9_000_000, 1000, 0),
        ("auto", 135_000_000, 1000, 100),
        ("auto", 135_000_000, 5000, 100),
        ("auto", 135_000_000, 300, 30),
        ("auto", 135_000_000, 4, 20),
        ("off", 135_000_000, 1000, 0),
        (False, 135_000_000, 1000, 0),
        (0, 135_000_000, 1000, 0),
        (7, 100_000, 4, 7),
    ],
)
def test_the_number_of_replies(setting, weights, trained, count):
    assert EvaluationSection(recital=setting).count_recital_replies(weights, trained) == count
