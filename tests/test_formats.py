"""Files to rows: every format and shape, what is refused and where, sources of several files."""

import json

import datasets
import pytest

from sftbench.data import roles
from sftbench.data.readers import READERS, open_sources
from sftbench.data.roles import read_source
from sftbench.data.sources import SUFFIXES
from sftbench.errors import BadInput

ASK = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "q1"},
         {"role": "assistant", "content": "a1"}, {"role": "user", "content": "q2"},
         {"role": "assistant", "content": "a2"}]


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(source, role="domain_tasks"):
    found = read_source(str(source), role)
    assert [row for batch in found.batches() for row in batch] == list(found.table)
    return list(found.table)


def conversation(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(("record", "row"), [
    (ASK, ASK),
    ({"prompt": "q", "completion": "a", "text": "beside"}, ASK),
    ({"prompt": TURNS[:4], "completion": TURNS[4:]}, {"messages": TURNS}),
    ({"question": "q", "answer": "a", "system": "s"}, conversation(("system", "s"), *[
        (turn["role"], turn["content"]) for turn in ASK["messages"]])),
    ({"instruction": "q", "output": "a"}, ASK),
    ({"instruction": "q", "input": "more", "output": "a", "system": "s", "history": [["q0", "a0"]]},
     conversation(("system", "s"), ("user", "q0"), ("assistant", "a0"), ("user", "q\nmore"),
                  ("assistant", "a"))),
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q1"},
                        {"from": "gpt", "value": "a1"}, {"from": "human", "value": "q2"},
                        {"from": "gpt", "value": "a2"}]}, {"messages": TURNS}),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                   {"role": "assistant", "content": "a"}]}, ASK),
    ({"messages": json.dumps(ASK["messages"])}, ASK),
])
def test_every_shape_becomes_the_same_row(tmp_path, record, row):
    assert read(lines(tmp_path / "a.jsonl", record)) == [row]


def test_tools_are_left_as_text(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    record = {"tools": [{"name": "add"}], "messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "2"}, {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "a"}]}
    told = '{"name": "add", "arguments": {"a": 1}}'
    assert read(lines(tmp_path / "a.jsonl", record)) == [conversation(
        ("system", 'Tools:\n{"name": "add"}'), ("user", "q"), ("assistant", f"{told}\n{told}"),
        ("user", "2\n3"), ("assistant", "a"))]


def test_a_shape_can_be_set_against_what_the_fields_say(tmp_path):
    record = {"prompt": "other", "completion": "other", "question": "q", "answer": "a"}
    path = lines(tmp_path / "a.jsonl", record)
    assert read(path)[0]["messages"][0]["content"] == "other"
    assert read(f"qa={path}") == [ASK]


def test_every_format_gives_the_same_rows(tmp_path):
    records = [{"question": f"what, {number}?\n\"so\"", "answer": f"Nö {number}"} for number in range(5)]
    wanted = [conversation(("user", one["question"]), ("assistant", one["answer"])) for one in records]
    table = datasets.Dataset.from_list(records)
    table.to_csv(tmp_path / "a.csv")
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "splits")
    lines(tmp_path / "a.jsonl", *records)
    lines(tmp_path / "lines.json", *records)
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "object.json").write_text(json.dumps({"version": 1, "data": records}))
    for name in ("a.csv", "a.parquet", "saved", "splits", "splits#train", "a.jsonl", "lines.json", "a.json",
                 "object.json"):
        assert read(tmp_path / name) == wanted, name
    assert read(tmp_path / "splits#test") == wanted[:1]
    with pytest.raises(BadInput, match="splits train, test"):
        read(tmp_path / "splits#dev")


def test_text_files_are_cut_at_blank_lines_and_a_folder_is_read_by_name(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("\n\n".join(f"paragraph {number} " + "x" * 500 for number in range(10)))
    found = read_source(str(path), "domain_text")
    texts = found.table["text"]
    assert len(texts) > 2 and all(len(text) <= 2100 for text in texts)
    assert "\n\n".join(texts) == path.read_text()
    for index, text in enumerate(texts):  # the line told is the one where the piece begins
        line = int(found.where(index).rsplit(" ", 1)[1])
        assert path.read_text().split("\n")[line - 1] == text.split("\n")[0]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text("# one\n\n\n\n \n\ntwo\n")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "c.bin").write_text("no")
    assert [row["text"] for row in read(tmp_path, "domain_text")] == [*texts, "# one\n\ntwo"]


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r{"text": "three"}')
    assert read(path, "domain_text") == [{"text": "one"}, {"text": "two"}, {"text": "three"}]
    assert read_source(str(path), "domain_text").where(2) == f"{path}, line 4"


@pytest.mark.parametrize(("line", "words"), [
    ('{"text": "cut', "line 2, column 10"),
    ("[]", "line 2: a row must be an object"),
    ('{"body": "x"}', "line 2: no field 'text'"),
    ('{"text": 3}', "line 2: field 'text' must be text"),
    ('{"text": "\\ud800"}', "line 2: field 'text' holds half a surrogate"),
    ("[" * 100_000, "line 2: nested too deeply"),
])
def test_a_bad_text_row_is_named_with_its_line(tmp_path, line, words):
    path = lines(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(BadInput, match=r"a\.jsonl, " + words):
        read(path, "domain_text")


@pytest.mark.parametrize(("line", "words"), [
    ('{"text": "x"}', "no field 'messages', 'conversations'"),
    ('{"prompt": "x"}', "field 'completion'"),
    ('{"question": "x", "answer": 4}', "field 'answer' must be text that is not empty, not 4"),
    ('{"instruction": "x", "output": ""}', "field 'output'"),
    ('{"instruction": "x", "output": "y", "history": ["z"]}', "field 'history'"),
    ('{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]}',
     r"field 'conversations\[2\].content'"),
    ('{"messages": []}', "'messages' must be a list"),
    ('{"messages": "x"}', "no JSON list"),
    ('{"messages": [{"role": "wizard", "content": "x"}]}', "message 1 must have the role"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "messages must be user and assistant in turn"),
    ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "parts of type image"),
    (json.dumps({"messages": [ASK["messages"][0], *ASK["messages"]]}), "messages must be user"),
    (json.dumps({"messages": [ASK["messages"][0], ASK["messages"][1] | {"weight": 0}]}), "weight 0"),
    (json.dumps(ASK | {"tools": "x"}), "'tools' is text that is no JSON"),
    (json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": ["y"]}]}),
     "a tool call must be an object"),
])
def test_a_bad_task_row_is_named_with_its_line_and_counted(tmp_path, line, words):
    path = lines(tmp_path / "a.jsonl", ASK, line, ASK, line)
    with pytest.raises(BadInput, match=rf"a\.jsonl, line 2: .*{words}(?s:.*)\(2 of 4 rows cannot be used"):
        read(path)


@pytest.mark.parametrize(("name", "raw", "words"), [
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: byte 24 is not UTF-8"),
    ("a.jsonl", b'{"text": "a"}\n\0\n', "line 2: byte 14 is NUL"),
    ("a.jsonl", b"", "holds no row"),
    ("a.json", b"", "holds no row"),
    ("a.json", b'[{"text": "a"},\n{"text" "b"}]', "line 2, column 9"),
    ("a.json", b'[{"text": "a"},\n\n{"text": 4}]', "line 3: field 'text'"),
    ("a.json", b"[" * 100_000, "nested too deeply"),
    ("a.csv", b"text\none\n\"two\nlines\"\na,b\n", "line 5: 1 more field"),
    ("a.csv", b"text\n\"open\n", "from line 2: not CSV"),
    ("a.txt", b"fine\n\xfe", "line 2: byte 5 is not UTF-8"),
    ("a.parquet", b"PAR1 not", "not readable as Parquet"),
    ("a.pkl", b"x", r"files ending in .* are read, not '\.pkl'"),
])
def test_files_that_cannot_be_read_are_named_with_their_place(tmp_path, name, raw, words):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(BadInput, match=words):
        read(tmp_path / name, "domain_text")


def test_a_parquet_number_is_not_made_text(tmp_path):
    datasets.Dataset.from_dict({"question": ["q", "q"], "answer": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"row 1: field 'answer' .* not 1 \(2 of 2 rows"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("path", ["nowhere.jsonl", "/", "no/where/at/all", "data/nowhere.csv",
                                  "a.jsonl,b.jsonl"])
def test_a_missing_file_is_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="domain_text: .*no such file|no such file"):
        read(path, "domain_text")


def test_the_endings_that_are_told_are_those_that_are_read():
    assert set(SUFFIXES) == set(READERS)


def test_a_hub_name_that_is_not_cached_is_refused_with_the_command_that_fetches_it():
    with pytest.raises(BadInput, match=r"datasets\.load_dataset\('some/body', 'en', \*\*\{'split': 'dev', "
                                       r"'revision': 'v1'\}\)"):
        read("some/body@v1#en/dev")


def test_sources_of_several_files_with_commas_and_colons_in_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b,c.jsonl", "d:2"):
        lines(tmp_path / name, {"text": name})
    (tmp_path / "d:2").rename(tmp_path / "d:2.jsonl")
    found = open_sources('a.jsonl:3, "b,c.jsonl":0.5 ,text=d:2.jsonl', "domain_text")
    assert [(one.name, one.weight, one.shape) for one in found] == [
        ("a.jsonl", 3, None), ("b,c.jsonl", 0.5, None), ("d:2.jsonl", 1, "text")]
    assert [one.name for one in open_sources("b,c.jsonl", "domain_text")] == ["b,c.jsonl"]


def test_what_was_read_once_is_mapped_and_a_changed_file_is_read_anew(tmp_path, monkeypatch):
    path = lines(tmp_path / "a.jsonl", {"text": "one"})
    before = read_source(path, "domain_text")
    monkeypatch.setattr(roles, "_write_rows", None)
    assert read_source(path, "domain_text").path == before.path
    monkeypatch.undo()
    lines(tmp_path / "a.jsonl", {"text": "two"})
    assert read(path, "domain_text") == [{"text": "two"}]


def test_a_cache_that_cannot_be_written_is_told_with_the_remedy(tmp_path, monkeypatch):
    from sftbench.errors import RunFailed
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(RunFailed, match="HF_DATASETS_CACHE"):
        read(lines(tmp_path / "a.jsonl", {"text": "no cache"}), "domain_text")
