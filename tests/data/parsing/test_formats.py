"""The same dialogues in every format, from every kind of file."""

import csv
import datetime
import gzip
import io
import json
from typing import get_args

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lora_chat.config.data import DataFormat
from lora_chat.data.parsing.formats import ROW_FORMATS, detect_format
from lora_chat.data.parsing.rows import ReadingOptions, read_chunks, read_dialogues
from lora_chat.data.reading.file_types import detect_file_kind
from lora_chat.data.reading.find_files import find_files
from lora_chat.errors import DataError

PAIRS = [("How are\nyou?", 'Fine, "thanks", 你好.'), ("a, b; c\td", "x \U0001f642"), (" q ", "a\r\nb")]


def messages(question, answer, system=None):
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def as_sharegpt(question, answer):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


ROWS = {
    "messages": lambda q, a: {"messages": messages(q, a), "id": 3},
    "sharegpt": as_sharegpt,
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "prompt_completion": lambda q, a: {"prompt": q, "completion": a},
}


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows, separator):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in row.values()])
    return out.getvalue().encode()


def as_parquet(rows):
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


KINDS = {
    "json_lines": json_lines,
    "json_list": lambda rows: json.dumps(rows).encode(),
    "json_list, indented": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "json_list, a row a line": lambda rows: ("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n").encode(),
    "csv": lambda rows: table(rows, ","),
    "tsv": lambda rows: table(rows, "\t"),
    "parquet": as_parquet,
}


def test_recipes_can_name_exactly_the_known_formats():
    assert sorted(row_format.name for row_format in ROW_FORMATS) == sorted(get_args(DataFormat))


def formats_of(path, **options):
    return list(dict.fromkeys(chunk.data_format for chunk in read_chunks([path], ReadingOptions(**options))))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data_format", ROWS)
def test_every_format_in_every_file_gives_the_same_dialogues(tmp_path, data_format, kind, packed):
    content = KINDS[kind]([ROWS[data_format](*pair) for pair in PAIRS])
    path = tmp_path / "data"  # no ending says anything
    if packed and kind == "parquet":
        pytest.skip("Parquet packs itself")
    path.write_bytes(gzip.compress(content) if packed else content)
    if kind != "tsv" or len(ROWS[data_format]("q", "a")) > 1:  # one column alone has no separator
        assert detect_file_kind(path) == kind.split(",")[0]
    dialogues, report = read_dialogues(path)
    assert [d.as_dicts for d in dialogues] == [messages(*pair) for pair in PAIRS]
    assert formats_of(path) == [data_format]
    assert (report.accepted, report.refused) == (3, 0)


def read_one(tmp_path, row, **options):
    path = tmp_path / "one.jsonl"
    path.write_bytes(json_lines([row]))
    dialogues, _ = read_dialogues(path, options=ReadingOptions(**options))
    return dialogues[0], formats_of(path, **options)[0]


def test_sharegpt_with_system_tools_and_observations(tmp_path):
    row = {
        "conversations": [
            {"from": "human", "value": "weather?"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "sky"}}'},
            {"from": "observation", "value": "blue"},
            {"from": "gpt", "value": "It is blue.", "weight": 1},
        ],
        "system": "Be short.",
        "tools": '[{"name": "look"}]',
    }
    dialogue, data_format = read_one(tmp_path, row)
    assert data_format == "sharegpt"
    assert [m.role for m in dialogue.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert dialogue.messages[2].tool_calls[0].name == "look"
    assert json.loads(dialogue.messages[2].tool_calls[0].arguments) == {"at": "sky"}
    assert dialogue.tool_list == [{"name": "look"}]


def test_alpaca_with_input_system_and_history(tmp_path):
    row = {
        "instruction": "Add.",
        "input": "1 and 2",
        "output": "3",
        "system": "s",
        "history": [["Hello", "Hi"]],
    }
    dialogue, data_format = read_one(tmp_path, row)
    assert data_format == "alpaca"
    assert [m.content for m in dialogue.messages] == ["s", "Hello", "Hi", "Add.\n1 and 2", "3"]


def test_trains_only_the_completion_after_a_prompt_of_messages(tmp_path):
    row = {
        "prompt": [*messages("a", "b"), {"role": "user", "content": "c"}],
        "completion": [{"role": "assistant", "content": "d"}],
    }
    dialogue, data_format = read_one(tmp_path, row)
    assert data_format == "prompt_completion"
    assert [m.trained for m in dialogue.messages if m.role == "assistant"] == [False, True]


@pytest.mark.parametrize("kind", ["json_lines", "csv", "parquet"])
def test_reads_columns_with_custom_names(tmp_path, kind):
    path = tmp_path / "data"
    path.write_bytes(KINDS[kind]([{"id": "1", "Frage": q, "Antwort": a, "Rolle": "kurz"} for q, a in PAIRS]))
    columns = {"user": "Frage", "assistant": "Antwort", "system": "Rolle"}
    dialogues, _ = read_dialogues(path, options=ReadingOptions(columns=columns))
    assert [d.as_dicts for d in dialogues] == [messages(*pair, system="kurz") for pair in PAIRS]
    assert formats_of(path, columns=columns) == ["columns"]
    with pytest.raises(DataError):
        read_dialogues(path)


def test_a_format_can_be_forced(tmp_path):
    row = {"messages": messages("m", "n"), "prompt": "p", "completion": "c"}
    with pytest.raises(DataError, match="two conversations that differ, one under `completion`"):
        read_one(tmp_path, row)
    assert read_one(tmp_path, row, data_format="messages")[0].messages[0].content == "m"
    forced, data_format = read_one(tmp_path, row, data_format="prompt_completion")
    assert (forced.messages[0].content, data_format) == ("p", "prompt_completion")


def test_refuses_columns_that_the_recipe_does_not_name(tmp_path):
    with pytest.raises(DataError, match=r"without data\.columns"):
        read_one(tmp_path, {"q": "a"}, data_format="columns")


def test_a_row_in_another_format_than_the_first_is_refused(tmp_path):
    path = tmp_path / "mixed"
    path.write_bytes(json_lines([ROWS["alpaca"]("q", "a"), as_sharegpt("q", "a")]))
    with pytest.raises(DataError, match=r"mixed:2: is in the format sharegpt, but the file began with alpaca"):
        read_dialogues(path)


def test_faults_of_a_list_and_of_a_table_have_their_lines(tmp_path):
    path = tmp_path / "list"
    good = json.dumps({"messages": messages("q", "a")})
    path.write_text(f'[\n{good},\n{{"messages": []}},\n{good}\n{good}]')
    with pytest.raises(DataError) as caught:  # however many are allowed: nobody knows how much is lost
        read_dialogues(path, skip_bad=2)
    assert [line.split(":")[1] for line in str(caught.value).splitlines() if line.startswith(str(path))] == ["3", "5"]
    assert "skip_bad does not help" in str(caught.value)
    path.write_text(f'[\n{good},\n{{"messages": []}},\n{good}]')
    dialogues, report = read_dialogues(path, skip_bad=1)
    assert [d.line for d in dialogues] == [2, 4]
    path.write_text('prompt,completion\n"a\nb",c\nonly one\nd,e\n')
    dialogues, report = read_dialogues(path, skip_bad=1)
    assert [d.line for d in dialogues] == [2, 5]
    assert f"{path}:4: has 1 cells where the header has 2" in report.refusals[0]


def test_lists_files_folders_and_globs_in_fixed_order_without_repeats(tmp_path):
    for name in ("b.jsonl", "a.jsonl", ".hidden", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(json_lines([ROWS["messages"](name, "x")]))
    found = find_files((str(tmp_path / "b.jsonl"), str(tmp_path), str(tmp_path / "**/*.jsonl")))
    assert [p.name for p in found] == ["b.jsonl", "a.jsonl", "c.jsonl"]
    dialogues, report = read_dialogues((str(tmp_path), str(tmp_path / "sub")))
    assert [d.messages[0].content for d in dialogues] == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert [d.path for d in dialogues] == [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl")]
    assert (report.lines, report.accepted) == (3, 3)
    for name in ("none.jsonl", "*.none"):
        with pytest.raises(DataError, match="There is no file"):
            find_files(str(tmp_path / name))


def test_refuses_a_file_name_that_is_not_utf8(tmp_path):
    try:
        (tmp_path / "\udcff.jsonl").write_text("x")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such name")
    with pytest.raises(DataError, match=r"udcff\.jsonl' is not UTF-8 text"):
        find_files(str(tmp_path))


@pytest.mark.parametrize(
    "content", [b"\x1f\x8bnot packed", gzip.compress(json_lines([{}]) * 50, mtime=0)[:-9], b"PAR1 but no"]
)
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(DataError, match="data"):
        read_dialogues(path)


def test_plain_text_and_unknown_keys_are_not_guessed_at(tmp_path):
    path = tmp_path / "data"
    path.write_text("Once upon a time, there was a pot.\nThe end.\n")
    with pytest.raises(DataError, match="not valid JSON"):
        read_dialogues(path)
    path.write_bytes(json_lines([{"Frage": "q", "Antwort": "a"}]))
    with pytest.raises(DataError, match="none of the formats messages, sharegpt, prompt_completion, alpaca"):
        read_dialogues(path)


def read_all(tmp_path, content, **options):
    path = tmp_path / "data"
    path.write_bytes(content)
    dialogues, report = read_dialogues(path, skip_bad=100, options=ReadingOptions(**options))
    assert report.accepted + report.blank + report.refused == report.lines
    return dialogues, report


def test_a_faulty_cell_leaves_the_rest_of_the_table_readable(tmp_path):
    good = json.dumps(messages("q", "a")).replace('"', '""')
    dialogues, report = read_all(tmp_path, f'messages\n"{good}"\n"[1"\n"{good}"\nx\n'.encode())
    assert [d.line for d in dialogues] == [2, 4]
    assert [text.split(":")[1] for text in report.refusals] == ["3", "5"]


def test_refuses_only_the_table_row_that_is_not_utf8(tmp_path):
    dialogues, report = read_all(tmp_path, b"prompt,completion\n" + b"a,b\n" * 3 + b"caf\xe9,b\n" + b"a,b\n" * 3)
    assert [d.line for d in dialogues] == [2, 3, 4, 6, 7, 8]
    assert [text.split(":")[1:] for text in report.refusals] == [["5", " is not UTF-8 text"]]


def test_ignores_blank_lines_before_a_header_and_between_rows(tmp_path):
    dialogues, report = read_all(tmp_path, b"\n\nprompt,completion\n\na,b\n\n")
    assert [d.line for d in dialogues] == [5]
    assert (report.lines, report.blank, report.refused) == (3, 2, 0)


def test_empty_cell_is_none_and_not_a_missing_column(tmp_path):
    columns = {"user": "q", "assistant": "a", "system": "s"}
    dialogues, report = read_all(tmp_path, b"q,a,s\n1,2,\n3,4,x\n,5,x\n", columns=columns)
    assert [d.as_dicts for d in dialogues] == [messages("1", "2"), messages("3", "4", system="x")]
    assert "has no text" in report.refusals[0]
    dialogues, _ = read_all(tmp_path, b"instruction,input,output,system\nask,,answer,\n")
    assert dialogues[0].as_dicts == messages("ask", "answer")


@pytest.mark.parametrize("history", [5, True, 1.5, "hello", {"a": "b"}, [["q"]], [None], [[{}, 2]]])
def test_refuses_an_invalid_history(tmp_path, history):
    row = {"instruction": "q", "output": "a", "history": history}
    _, report = read_all(tmp_path, json_lines([ROWS["alpaca"]("q", "a"), row]))
    assert report.refused == 1


def test_reads_an_empty_instruction_with_an_input(tmp_path):
    assert read_one(tmp_path, {"instruction": " ", "input": "q", "output": "a"})[0].as_dicts == messages("q", "a")


@pytest.mark.parametrize("place", range(12, 40, 4))
def test_a_damaged_gzip_file_is_refused(tmp_path, place):
    content = bytearray(gzip.compress(json_lines([{"messages": messages(str(i), "a")} for i in range(100)])))
    content[place] ^= 0xFF
    (tmp_path / "data").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"Cannot unpack .*data: it is damaged or truncated\."):
        read_dialogues(tmp_path / "data")


def test_refuses_parquet_values_without_json_form_row_by_row(tmp_path):
    texts = pyarrow.array([b"ok", b"\xff\xfe", b"ok"], pyarrow.binary()).buffers()[1:]
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, *texts])
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": broken, "completion": ["a", "b", "c"]}), out)
    dialogues, report = read_all(tmp_path, out.getvalue())
    assert [d.line for d in dialogues] == [1, 3]
    assert "data:2: cannot be read" in report.refusals[0]
    calls = [[{"name": "f", "arguments": {"at": datetime.datetime(2020, 1, 1)}}], None]
    rows = [
        {"messages": [*messages("q", "a")[:1], {"role": "assistant", "tool_calls": c, "content": "a"}]} for c in calls
    ]
    dialogues, report = read_all(tmp_path, as_parquet(rows))
    assert [d.line for d in dialogues] == [2]
    assert "cannot be written as JSON" in report.refusals[0]


def test_reads_a_list_longer_than_the_window(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_chat.data.reading.json_window._WINDOW_BYTES", 64)
    rows = [{"messages": messages("\u4f60\u597d" * n, "\U0001f642" * n)} for n in range(1, 40)]
    for indent in (None, 2):
        dialogues, report = read_all(tmp_path, json.dumps(rows, ensure_ascii=False, indent=indent).encode())
        assert [d.as_dicts for d in dialogues] == [row["messages"] for row in rows]
        assert report.refused == 0


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["human", "gpt", "user", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "tool_calls", "function", "name", "arguments"]), inner
        )
    ),
    max_leaves=10,
)
KEYS = ["messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history", "tools"]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(rows=st.lists(st.dictionaries(st.sampled_from([*KEYS, "system", "train"]), ANY), min_size=1, max_size=6))
def test_every_element_of_a_list_is_accepted_or_refused(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(rows, indent=1))
    for row in rows:
        detect_format(row)
    try:
        dialogues, report = read_dialogues(path, skip_bad=len(rows))
    except DataError as error:
        assert "contains no dialogue" in str(error)
        return
    assert report.accepted + report.refused == report.lines == len(rows)
    assert len(dialogues) == report.accepted
