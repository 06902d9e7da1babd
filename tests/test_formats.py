"""Files to rows: every format and shape, what is refused and where, sources of several files."""

import json
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from sftbench.data import rows as row_cache
from sftbench.data.rows import read_source
from sftbench.errors import BadInput
from sftbench.models.loading import load_model, load_tokenizer, resolve_revision
from sftbench.recipes.recipe import Recipe, override
from sftbench.sources.names import check_source, find_model_folder
from sftbench.sources.origins import open_sources
from sftbench.training.prepare import prepare_recipe
from tests.conftest import small_rows

ASK = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "q1"},
         {"role": "assistant", "content": "a1"}, {"role": "user", "content": "q2"},
         {"role": "assistant", "content": "a2"}]


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(source, role="domain_tasks"):
    return list(read_source(str(source), role).table)


def conversation(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(("record", "row"), [
    (ASK, ASK),
    ({"prompt": "q", "completion": "a", "text": "q a"}, ASK),
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


def test_tools_calls_and_their_results_are_kept_as_openai_writes_them(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    record = {"tools": [{"name": "add"}], "messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "tool", "content": "3", "name": "add"}, {"role": "assistant", "content": "a"}]}
    stored = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert read(lines(tmp_path / "a.jsonl", record)) == [{
        "tools": [{"type": "function", "function": {"name": "add"}}], "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [stored, stored]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {"role": "tool", "content": "3", "name": "add"}, {"role": "assistant", "content": "a"}]}]


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
    for index, text in enumerate(texts):  # the line is the one where the piece begins
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


@pytest.mark.parametrize(("line", "field", "words"), [
    ('{"text": "cut', "", "column 10: not JSON"),
    ("[]", "", "an object"),
    ('{"body": "x"}', "", "no field 'text'"),
    ('{"text": 3}', "text", ""),
    ('{"text": "\\ud800"}', "text", "surrogate"),
    ("[" * 100_000, "", "nested too deeply"),
    ('{"text": "one", "text": "two"}', "text", "more than once"),
    ('{"text": "one", "more": [{"\\ud800": 1, "\\ud800": 2}]}', "?", "more than once"),
])
def test_a_bad_text_row_is_named_with_its_field_and_line(tmp_path, line, field, words):
    path = lines(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(BadInput, match=words or None) as caught:
        read(path, "domain_text")
    assert caught.value.field == field and caught.value.where == f"{path}, line 2"


@pytest.mark.parametrize(("line", "field", "words"), [
    ('{"text": "x"}', "text", "no field 'messages', 'conversations'"),
    ('{"prompt": "x"}', "completion", ""),
    ('{"question": "x", "answer": 4}', "answer", "not 4"),
    ('{"question": "x", "answer": "one", "answer": "two"}', "answer", "more than once"),
    ('{"instruction": "x", "output": ""}', "output", ""),
    ('{"instruction": "x", "output": "y", "history": ["z"]}', "history", ""),
    ('{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]}', "conversations[2].content", ""),
    ('{"messages": []}', "messages", "a list"),
    ('{"messages": "x"}', "messages", "no JSON list"),
    ('{"messages": [{"role": "wizard", "content": "x"}]}', "messages[1]", "the role"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "messages", "in turn"),
    ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "messages[1].content", "image"),
    (json.dumps({"messages": [ASK["messages"][0], *ASK["messages"]]}), "messages", "in turn"),
    (json.dumps({"messages": [ASK["messages"][0], ASK["messages"][1] | {"weight": 0.5}]}),
     "messages[2].weight", ""),
    (json.dumps(ASK | {"tools": "x"}), "tools", "no JSON"),
    (json.dumps(ASK | {"tools": '[{"name": "f", "name": "g"}]'}), "name", "more than once"),
    (json.dumps(ASK | {"tools": "[" * 100_000}), "", "nested too deeply"),
    (json.dumps({"messages": '[{"role": "user", "content": "x", "content": "y"}]'}), "content",
     "more than once"),
    (json.dumps({"messages": [{"role": "assistant", "tool_calls": [
        {"name": "f", "arguments": '{"a": 1, "a": 2}'}]}]}), "a", "more than once"),
    (json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": ["y"]}]}),
     "messages[2].tool_calls", ""),
    ('{"messages": [{"role": "user", "content": "x", "tool_calls": 3}]}', "messages[1].tool_calls",
     "a list with calls"),
    ('{"messages": [{"role": "user", "content": [{"type": []}]}]}', "messages[1].content", "only text"),
    ('{"instruction": "x", "output": "y", "history": true}', "history", "a list with pairs, not True"),
])
def test_a_bad_task_row_is_named_with_its_field_and_line_and_counted(tmp_path, line, field, words):
    path = lines(tmp_path / "a.jsonl", ASK, line, ASK, line)
    with pytest.raises(BadInput, match=rf"{words}(?s:.*)\(2 of 4 rows cannot be used") as caught:
        read(path)
    assert caught.value.field == field and caught.value.where == f"{path}, line 2"


@pytest.mark.parametrize(("name", "raw", "where", "words"), [
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2", "byte 24 is not UTF-8"),
    ("a.jsonl", b'{"text": "a"}\n\0\n', "line 2", "byte 14 is NUL"),
    ("a.jsonl", b"", "", "no row"),
    ("a.json", b"", "", "no row"),
    ("a.json", b"[]", "", "no row"),
    ("a.json", b'[{"text": "a"},\n{"text" "b"}]', "line 2", "column 9"),
    ("a.json", b'[{"text": "a"},\n\n{"text": 4}]', "line 3", "field 'text'"),
    ("a.json", b'[{"text": "a"},\n{"text": "b", "text": "c"}, {"text": "d"}]', "line 2", "key 'text'"),
    ("a.json", b'{"data": [{"text": "b", "text": "c"}]}', "", "key 'text'"),
    ("a.json", b"[" * 100_000, "", "nested too deeply"),
    ("a.csv", b"text\none\n\"two\nlines\"\na,b\n", "line 5", "1 more field"),
    ("a.csv", b"text\n\"open\n", "line 2", "not CSV"),
    ("a.csv", b"text,other,text\none,two,three\n", "line 1", "'text' appears more than once"),
    ("a.csv", b"note;text\nhi;there;more\n", "line 2", "1 more field"),
    ("a.csv", "text\nhi\n".encode("utf-16"), "line 1", "byte 0 is not UTF-8"),
    ("a.txt", b"fine\n\xfe", "line 2", "byte 5 is not UTF-8"),
    ("a.parquet", b"PAR1 not", "", "Parquet"),
    ("a.pkl", b"x", "", r"'\.pkl'"),
])
def test_files_that_cannot_be_read_are_named_with_their_place(tmp_path, name, raw, where, words):
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=words or None) as caught:
        read(path, "domain_text")
    assert caught.value.where == f"{path}, {where}".removesuffix(", ")


def test_doubled_columns_of_parquet_are_refused_and_empty_ones_of_csv_are_not_read(tmp_path):
    table = pa.table([["q"], ["a"], ["b"]], names=["question", "answer", "answer"])
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="'answer' appears more than once") as caught:
        read(tmp_path / "a.parquet")
    assert caught.value.field == "answer" and caught.value.where == str(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("question,answer,,\nq,a,,\n")
    assert read(tmp_path / "a.csv") == [ASK]


def test_a_parquet_number_is_not_made_text(tmp_path):
    datasets.Dataset.from_dict({"question": ["q", "q"], "answer": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"2 of 2 rows") as caught:
        read(tmp_path / "a.parquet")
    assert caught.value.field == "answer" and caught.value.where == f"{tmp_path / 'a.parquet'}, row 1"


@pytest.mark.parametrize("path", ["nowhere.jsonl", "/", "no/where/at/all", "data/nowhere.csv",
                                  "a.jsonl,b.jsonl"])
def test_a_missing_file_is_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        read(path, "domain_text")
    assert caught.value.where == path.partition(",")[0]


@pytest.mark.parametrize("source", ["a.jsonl, ", "a.jsonl,", ",a.jsonl", "a.jsonl,,a.jsonl", "", " ", 'qa=""',
                                    '"":3'])
def test_an_empty_name_is_refused_and_is_not_the_current_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "a.jsonl", {"text": "one"})
    with pytest.raises(BadInput, match="empty name; remove the comma") as caught:
        open_sources(source, "domain_text")
    assert caught.value.field == "domain_text" and caught.value.where == source


@pytest.mark.parametrize("url", [
    "https://huggingface.co/datasets/owner/some.name", "https://huggingface.co/owner/some.name",
    "http://www.huggingface.co/owner/some.name/tree/main", "https://hf.co/datasets/owner/some.name#train",
    "huggingface.co/owner/some.name", "hf.co/owner/some.name", "hf://datasets/owner/some.name",
    "HTTPS://HuggingFace.co/owner/some.name"])
def test_an_address_of_the_hub_is_refused_with_the_name_to_write(url):
    with pytest.raises(BadInput, match="write it as owner/some.name$") as caught:
        check_source(url, "domain_text")
    assert caught.value.field == "domain_text" and caught.value.where == url
    with pytest.raises(BadInput, match="write it as owner/some.name$") as caught:
        find_model_folder(url)
    assert caught.value.field == "model"


@pytest.mark.parametrize("url", ["https://huggingface.co/datasets/squad", "https://huggingface.co/squad",
                                 "hf.co/squad"])
def test_an_old_address_of_the_hub_without_an_owner_is_refused_with_what_is_lacking(url):
    for check in (lambda: check_source(url, "domain_text"), lambda: find_model_folder(url)):
        with pytest.raises(BadInput, match="write it as OWNER/squad, with the name of its owner") as caught:
            check()
        assert caught.value.where == url


@pytest.mark.parametrize("name", ["owner/some name", "owner/name@v1", "./owner/name", "~/name", "a/b/c",
                                  "name"])
def test_what_is_no_folder_and_no_name_of_a_hub_model_is_refused(name):
    with pytest.raises(BadInput, match="no hub name of the form owner/name") as caught:
        find_model_folder(name)
    assert caught.value.field == "model" and caught.value.where == name


def test_the_home_folder_is_expanded_in_names_of_data_and_models(tmp_path, monkeypatch, make_model):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines(tmp_path / "a.jsonl", {"text": "one"})
    assert read("~/a.jsonl", "domain_text") == [{"text": "one"}]
    shutil.copytree(make_model(), tmp_path / "model")
    assert find_model_folder("~/model") == tmp_path / "model"
    assert len(load_tokenizer("~/model")) and load_model("~/model").num_parameters()
    assert resolve_revision("~/model") == resolve_revision(str(tmp_path / "model"))
    lines(tmp_path / "b.jsonl", *small_rows("domain_tasks"))
    ready = prepare_recipe(override(Recipe(), mode="1", model="~/model", domain_tasks="~/b.jsonl"))
    assert ready.revision == resolve_revision("~/model") and len(ready.datasets[ready.stages[0].name][0])
    with pytest.raises(BadInput) as caught:
        find_model_folder("~nobody-of-this-name/model")
    assert caught.value.field == "model"


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
    before = read_source(path, "domain_text").table.cache_files
    monkeypatch.setattr(row_cache, "_parse_records", None)
    assert before and read_source(path, "domain_text").table.cache_files == before
    monkeypatch.undo()
    lines(tmp_path / "a.jsonl", {"text": "two"})
    assert read(path, "domain_text") == [{"text": "two"}]


def test_a_cache_that_cannot_be_written_is_reported_with_the_remedy(tmp_path, monkeypatch):
    from sftbench.errors import RunFailed
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(RunFailed, match="HF_DATASETS_CACHE"):
        read(lines(tmp_path / "a.jsonl", {"text": "no cache"}), "domain_text")
