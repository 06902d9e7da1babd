"""Folders, archives, CSV and columns by name: what is read of them, and what is named instead."""

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftbench.data.conversations import parse_row
from sftbench.data.roles import load_roles, role_warnings
from sftbench.data.rows import read_source
from sftbench.recipes.recipe import Recipe, override
from sftbench.reports.data_report import format_report
from sftbench.reports.text import look_at_data
from sftbench.sources.columns import propose_columns
from sftbench.sources.documents import NEEDED
from sftbench.sources.names import (
    DOCUMENT_SUFFIXES,
    FIELDS,
    SUFFIXES,
    TEXT_SUFFIXES,
    check_source,
    parse_source,
    write_source,
)
from sftbench.sources.origins import describe_source, offered_probe, open_sources, passed_over, propose_source
from sftbench.sources.readers import READERS
from sftbench.training.data_check import measure_data
from sftbench.training.outcome import describe_run
from sftbench.training.prepare import prepare_recipe
from tests.conftest import bad_input


def jsonl(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def fill(folder, files):
    """A folder with these files; text that is not given is one row that has the file's name."""
    for name, content in files.items() if isinstance(files, dict) else dict.fromkeys(files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = (jsonl(name) if name.endswith("jsonl") else name) if content is None else content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts(source, role="domain_text"):
    return [row["text"] for row in read_source(str(source), role).table]


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


# folders


@pytest.mark.parametrize(
    ("files", "read", "probe"),
    [
        (["a.jsonl", "b/c.jsonl"], ["a.jsonl", "b/c.jsonl"], None),
        (["train.jsonl", "test.jsonl"], ["train.jsonl"], "test"),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], ["train.jsonl"], "validation"),
        (["training_data.jsonl", "my-valid.jsonl"], ["training_data.jsonl"], "validation"),
        (["train/a.jsonl", "val/a.jsonl", "eval/a.jsonl"], ["train/a.jsonl"], "validation"),
        (["x/train_set/b.jsonl", "x/testing/b.jsonl"], ["x/train_set/b.jsonl"], "test"),
        (["Train.jsonl", "TEST.jsonl"], ["Train.jsonl"], "test"),
        (["train/test-a.jsonl", "test/train-a.jsonl"], ["train/test-a.jsonl"], "test"),
        (
            ["train.1.jsonl", "train 2.jsonl", "evaluation.jsonl", "more.jsonl"],
            ["more.jsonl", "train 2.jsonl", "train.1.jsonl"],
            "test",
        ),
        (
            [
                "data/train-00000-of-00002.jsonl",
                "data/train-00001-of-00002.jsonl",
                "data/test-00000-of-00001.jsonl",
                "train.jsonl",
            ],
            ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "train.jsonl"],
            "test",
        ),
        (["a.jsonl", "test.jsonl"], ["a.jsonl"], "test"),
        (
            ["trained.jsonl", "latest.jsonl", "contest.jsonl"],
            ["contest.jsonl", "latest.jsonl", "trained.jsonl"],
            None,
        ),
    ],
)
def test_of_a_folder_the_training_split_is_read_and_another_is_offered_as_the_probe(
    tmp_path, files, read, probe
):
    folder = fill(tmp_path / "d", files)
    assert texts(folder) == read
    unread = passed_over(str(folder), "domain_text")
    assert unread.keys() == {str(folder / name) for name in set(files) - set(read)}
    assert all("split" in why for why in unread.values())
    assert offered_probe(str(folder)) == (f"{folder}#{probe}" if probe else None)
    if probe:
        words = {"test": ("test", "eval"), "validation": ("val", "dev")}[probe]
        assert texts(f"{folder}#{probe}") and all(
            any(word in name.lower() for word in words) for name in texts(f"{folder}#{probe}")
        )


def test_a_split_is_named_by_any_of_its_words_and_all_reads_every_file(tmp_path):
    folder = fill(tmp_path / "d", ["train.jsonl", "dev.jsonl", "other.jsonl"])
    assert texts(f"{folder}#validation") == texts(f"{folder}#dev") == texts(f"{folder}#val") == ["dev.jsonl"]
    assert texts(f"{folder}#all") == ["dev.jsonl", "other.jsonl", "train.jsonl"]
    assert offered_probe(f"{folder}#dev") is None
    check_source(f"{folder}#dev", "domain_text")
    with bad_input(where=folder, match="splits validation, train; name one as"):
        texts(f"{folder}#test")


def test_splits_of_other_names_are_named_as_they_are(tmp_path):
    folder = fill(
        tmp_path / "d",
        [f"data/{name}-00000-of-00001.jsonl" for name in ("train_sft", "test_sft", "train_gen")],
    )
    with bad_input(where=folder, match="splits test_sft, train_gen, train_sft; name one as"):
        texts(folder)
    assert texts(f"{folder}#train_sft") == ["data/train_sft-00000-of-00001.jsonl"]
    assert offered_probe(f"qa={folder}#train_sft:3") == f"qa={folder}#test_sft"
    with bad_input(where=tmp_path / "one", match="splits test; name one"):
        texts(fill(tmp_path / "one", ["test.jsonl"]))


CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/part-*
  - split: test
    path: [en/held_out.jsonl]
- config_name: de
  data_files: de/*
---
A card.
"""


def test_a_card_that_names_the_files_of_splits_and_configurations_is_followed(tmp_path):
    files = ["en/part-1.jsonl", "en/part-2.jsonl", "en/held_out.jsonl", "de/a.jsonl", "train.jsonl"]
    folder = fill(tmp_path / "d", dict.fromkeys(files) | {"README.md": CARD})
    with bad_input(where=folder, match="configurations en, de; name one as .*#en$"):
        texts(folder)
    assert texts(f"{folder}#en") == texts(f"{folder}#en/train") == files[:2]
    assert texts(f"{folder}#de") == ["de/a.jsonl"] and texts(f"{folder}#en/test") == ["en/held_out.jsonl"]
    assert offered_probe(f"{folder}#en") == f"{folder}#en/test" and len(texts(f"{folder}#all")) == 5
    assert passed_over(f"{folder}#de", "r")[str(folder / "train.jsonl")].startswith("not named by")
    with bad_input(where=folder, match="splits train"):
        texts(f"{folder}#de/test")
    (folder / "README.md").write_text(CARD.replace("config_name: en", "config_name: en\n  default: true"))
    assert texts(folder) == files[:2] and offered_probe(str(folder)) == f"{folder}#test"
    nowhere = CARD.replace("en/", "x/").replace("de/", "y/")
    for card in ("---\nconfigs: [1\n---\n", "---\nconfigs: 3\n---\n", nowhere):
        (folder / "README.md").write_text(card.replace("config_name: en", "config_name: default"))
        assert texts(folder) == texts(f"{folder}#all") and texts(f"{folder}#train") == ["train.jsonl"]


def test_what_has_no_split_in_its_name_while_others_have_is_warned_of(tmp_path, make_model):
    tasks, more = ("".join(json.dumps({"question": f"{word} {number}", "answer": "a"}) + "\n"
                           for number in range(9)) for word in ("q", "r"))
    folder = fill(tmp_path / "d", {"train.jsonl": tasks, "more.jsonl.gz": gzip.compress(more.encode())})
    report = measure_data(str(folder), model=make_model())
    assert report.rows == 18 and len(report.warnings) == 1 and "more.jsonl.gz" in report.warnings[0]
    assert measure_data(f"{folder}#train", model=make_model()).warnings == []


def test_what_another_part_of_the_source_reads_is_not_passed_over_nor_offered(tmp_path):
    folder = fill(tmp_path / "d", ["train.jsonl", "dev.jsonl", "more.jsonl"])
    unread = passed_over(f"{folder}#train, {folder}/more.jsonl", "domain_text")
    assert unread.keys() == {f"{folder}/dev.jsonl"}
    both = f"{folder}, {folder}#validation"
    assert passed_over(both, "domain_text") == {}
    assert offered_probe(both) is None and offered_probe(str(folder)) == f"{folder}#validation"


def test_a_text_beside_tasks_is_passed_over_by_a_role_of_tasks(tmp_path):
    folder = fill(tmp_path / "d", {"a.jsonl": json.dumps({"question": "q", "answer": "a"}), "about.txt": "t",
                                   "guide.pdf": "t"})
    assert len(read_source(str(folder), "domain_tasks").table) == 1
    assert passed_over(str(folder), "domain_tasks").keys() == {str(folder / name) for name in (
        "about.txt", "guide.pdf")}
    assert passed_over(str(folder), "domain_text") == {}
    (folder / "a.jsonl").unlink()
    assert passed_over(str(folder), "domain_tasks") == {}  # then the role is the wrong one, and the run stops


def test_many_files_passed_over_for_one_reason_are_counted(tmp_path):
    folder = fill(tmp_path / "d", ["a.jsonl", "b.png", *(f"pictures/{number}.png" for number in range(50))])
    named = describe_source(str(folder), "domain_text")["passed_over"]
    assert named.keys() == {str(folder / "b.png"), f"{folder}/pictures/*.png (50 files)"}
    assert len(passed_over(str(folder), "domain_text")) == 51


def test_cards_notices_hidden_and_unreadable_files_are_named_and_not_read(tmp_path):
    left_out = [
        "README.md",
        "sub/README_de.md",
        "LICENSE.txt",
        "LICENCE",
        "NOTICE.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "dataset_infos.json",
        "dataset_info.json",
        "index.json",
        "dataset_card.md",
        ".hidden.jsonl",
        ".cache/",
        "__MACOSX/",
        "sheet.xlsx",
        "all.tar.gz",
        "letter.doc",
        "script.py",
        "no_ending.gz",
    ]
    folder = fill(
        tmp_path / "d",
        [
            *left_out[:-8],
            ".hidden.jsonl",
            ".cache/a.jsonl",
            "__MACOSX/a.jsonl",
            *left_out[-5:],
            "a.jsonl",
            "citation.jsonl",
            "license_agreement_of_2020.txt",
            "notes.md",
        ],
    )
    assert texts(folder) == ["a.jsonl", "citation.jsonl", "license_agreement_of_2020.txt", "notes.md"]
    unread = passed_over(str(folder), "domain_text")
    assert list(unread) == sorted(unread) or unread
    assert {name.removeprefix(f"{folder}/") for name in unread} == set(left_out)
    why = {name.removeprefix(f"{folder}/"): text for name, text in unread.items()}
    assert "CSV" in why["sheet.xlsx"] and "unpack" in why["all.tar.gz"] and ".docx" in why["letter.doc"]
    assert (
        "what is inside" in why["no_ending.gz"] and "'.py'" in why["script.py"] and why[".cache/"] == "hidden"
    )
    assert texts(folder / "README.md") == ["README.md"] and passed_over(str(folder / "README.md"), "r") == {}


def test_links_are_followed_to_files_and_named_otherwise(tmp_path):
    folder = fill(tmp_path / "d", ["a.jsonl"])
    other = fill(tmp_path / "other", ["b.jsonl"])
    (folder / "c.jsonl").symlink_to(other / "b.jsonl")
    (folder / "lost.jsonl").symlink_to(other / "nothing.jsonl")
    (folder / "link").symlink_to(other)
    assert texts(folder) == ["a.jsonl", "b.jsonl"]
    assert passed_over(str(folder), "r").keys() == {str(folder / "lost.jsonl"), f"{folder / 'link'}/"}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.xlsx", "save it as CSV"),
        ("a.ods", "save it as CSV"),
        ("a.tar", "unpack it"),
        ("a.tar.gz", "unpack it"),
        ("a.7z", "unpack it"),
        ("a.doc", "save it as"),
        ("a.gz", "what is inside"),
        ("a.py", r"'\.py'"),
    ],
)
def test_a_file_of_a_kind_that_is_not_read_is_refused_with_the_remedy(tmp_path, name, remedy):
    fill(tmp_path, {name: "x"})
    with bad_input(where=tmp_path / name, match=remedy):
        texts(tmp_path / name)
    with bad_input(where=tmp_path, match=remedy):
        texts(tmp_path)


def test_a_saved_data_set_offers_its_other_splits(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict({"train": table, "validation": table.select([0]), "test": table}).save_to_disk(
        tmp_path / "d"
    )
    assert offered_probe(str(tmp_path / "d")) == f"{tmp_path / 'd'}#validation"
    assert passed_over(str(tmp_path / "d"), "r").keys() == {
        f"{tmp_path / 'd'}#test",
        f"{tmp_path / 'd'}#validation",
    }
    table.save_to_disk(tmp_path / "one")
    assert offered_probe(str(tmp_path / "one")) is None and passed_over(str(tmp_path / "one"), "r") == {}
    with bad_input(where=tmp_path / "one", match="no splits"):
        texts(f"{tmp_path / 'one'}#dev")


def test_check_and_look_name_what_is_passed_over_and_the_probe_that_may_be_given(tmp_path, make_model):
    tasks = {f"data/{name}-00000-of-00001.jsonl": "".join(
        json.dumps({"question": f"{name} {number}", "answer": "a"}) + "\n" for number in range(9))
        for name in ("train", "test")}
    folder = fill(tmp_path / "d", tasks | {"README.md": "card"})
    report = measure_data(str(folder), model=make_model())
    unread = {str(folder / "README.md"), str(folder / "data/test-00000-of-00001.jsonl")}
    assert report.rows == 9 and report.to_dict()["passed_over"].keys() == unread
    assert report.verdict == "ready with warnings"
    assert f"-p domain_tasks_probe '{folder}#test'" in report.warnings[0]
    assert report.offered_probe == f"{folder}#test"
    text = "".join(format_report(report).split())  # a long path is broken into lines
    assert "passedover" in text and "README.md:acard" in text
    assert measure_data(str(folder), probe=f"{folder}#test", model=make_model()).verdict == "ready"
    ready = prepare_recipe(override(Recipe(), mode="1", model=make_model(), domain_tasks=str(folder)))
    described = describe_run(tmp_path / "run", ready)
    assert described["data"]["domain_tasks"]["passed_over"].keys() == unread
    assert "passed over: 2 names" in look_at_data(ready)


def test_check_and_the_error_of_a_run_propose_columns(tmp_path, make_model):
    path = fill(tmp_path, {"faq.csv": "Frage;Antwort\nf;w\ng;v\n"}) / "faq.csv"
    proposal = f"{path}[question=Frage,answer=Antwort]"
    report = measure_data(str(path), model=make_model())
    assert report.proposal == proposal and proposal in report.stops[-1]
    with bad_input(where=f"{path}, line 2", match=re.escape(proposal)):
        read_source(str(path), "domain_tasks")
    assert measure_data(proposal, model=make_model()).verdict == "ready"


def test_a_hub_data_set_offers_its_other_splits(tmp_path):
    fill(tmp_path, {f"{name}.jsonl": jsonl(name) for name in ("train", "test", "validation")})
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test", "validation")}
    builder = datasets.load_dataset_builder("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    # as `datasets` (5.2) stores one that it has fetched
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "some___body" / "small" / "0.0.0" / "abc"
    shutil.copytree(builder.cache_dir, cached)
    for path in cached.glob("json-*"):
        path.rename(path.with_name(path.name.replace("json-", "body-")))
    info = json.loads((cached / "dataset_info.json").read_text())
    info |= {"dataset_name": "body", "config_name": "small"}
    (cached / "dataset_info.json").write_text(json.dumps(info))
    assert texts("some/body#small/train") == ["train"] and texts("some/body#small/test") == ["test"]
    assert offered_probe("some/body#small/train:2") == "some/body#small/validation"
    assert passed_over("some/body#small/train", "r").keys() == {
        f"some/body#small/{split}" for split in ("validation", "test")}


# compressed files and archives


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_compressed_file_is_read_like_the_file(tmp_path, ending):
    table = datasets.Dataset.from_dict({"text": ["one", "two, three"]})
    for name, write in ((".csv", table.to_csv), (".parquet", table.to_parquet), (".jsonl", table.to_json)):
        write(tmp_path / f"a{name}")
    fill(
        tmp_path,
        {"a.json": json.dumps([{"text": "one"}, {"text": "two, three"}]), "a.html": "<p>one<p>two, three"},
    )
    for name in ("a.csv", "a.parquet", "a.jsonl", "a.json"):
        packed = tmp_path / f"{name}{ending}"
        packed.write_bytes(COMPRESS[ending]((tmp_path / name).read_bytes()))
        found = read_source(str(packed), "domain_text")
        assert found.table["text"] == ["one", "two, three"]
        assert found.where(1) == read_source(str(tmp_path / name), "domain_text").where(1).replace(
            name, packed.name
        )


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_damaged_compressed_file_is_named(tmp_path, ending):
    whole = COMPRESS[ending](jsonl(*[f"text {number * 7919 % 10007}" for number in range(5000)]).encode())
    for name, raw in {"cut": whole[:-20], "other": b"no such thing" * 9, "empty": b"\x1f\x8b"}.items():
        path = tmp_path / f"{name}.jsonl{ending}"
        path.write_bytes(raw)
        with bad_input(where=path, match="damaged"):
            texts(path)


def test_a_zip_archive_is_read_like_a_folder(tmp_path):
    path = tmp_path / "d.zip"
    path.write_bytes(
        zipped(
            {
                "d-main/README.md": "card",
                "d-main/data/train-00000.jsonl": jsonl("a", "b"),
                "d-main/data/test-00000.csv": "text\nc\n",
                "d-main/train/more.jsonl.gz": gzip.compress(jsonl("d").encode()),
                "__MACOSX/d-main/train.jsonl": "no",
                "d-main/train/inner.zip": zipped({"a.jsonl": jsonl("no")}),
                "d-main/train/t.txt": "plain",
            }
        )
    )
    found = read_source(str(path), "domain_text")
    assert found.table["text"] == ["a", "b", "d", "plain"]
    assert found.where(1) == f"{path}/d-main/data/train-00000.jsonl, line 2"
    assert passed_over(str(path), "domain_text").keys() == {
        f"{path}/{name}"
        for name in (
            "d-main/README.md",
            "d-main/data/test-00000.csv",
            "__MACOSX/d-main/train.jsonl",
            "d-main/train/inner.zip",
        )
    }
    assert offered_probe(str(path)) == f"{path}#test" and texts(f"{path}#test") == ["c"]
    assert texts(tmp_path) == found.table["text"]  # in a folder
    (tmp_path / "one.zip").write_bytes(zipped({"test.jsonl": jsonl("only")}))
    with bad_input(where=tmp_path / "one.zip", match="#test"):
        texts(tmp_path / "one.zip")


def test_members_of_archives_write_no_file_and_damage_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path / "d", []).parent)
    harmless = tmp_path / "a.zip"
    harmless.write_bytes(
        zipped({"../../out.jsonl": jsonl("a"), "/abs/out.jsonl": jsonl("b"), "x\\..\\y.jsonl": jsonl("c")})
    )
    before = sorted(tmp_path.parent.rglob("*"))
    assert sorted(texts(harmless)) == ["a", "b", "c"]
    assert sorted(tmp_path.parent.rglob("*")) == before
    damaged = tmp_path / "b.zip"
    damaged.write_bytes(harmless.read_bytes()[:-30])
    with bad_input(where=damaged, match="damaged"):
        texts(damaged)
    data = bytearray(zipped({"a.jsonl": jsonl(*map(str, range(500)))}))
    data[60:70] = bytes(10)
    damaged.write_bytes(data)
    with bad_input(where=f"{damaged}/a.jsonl", match="damaged"):
        texts(damaged)
    data = bytearray(zipped({"a.jsonl": jsonl("a")}))
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        data[data.index(mark) + (6 if mark[2] == 3 else 8)] |= 1
    damaged.write_bytes(data)
    with bad_input(where=damaged, match="encrypted; unpack"):
        texts(damaged)


@pytest.mark.parametrize(
    "line", [b"\0", b'{"text": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}\n']
)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.zip"])
def test_a_zip_bomb_is_refused(tmp_path, name, line, monkeypatch):
    monkeypatch.setattr("sftbench.sources.contents.ALWAYS_ALLOWED", 2**20)
    monkeypatch.setattr("sftbench.sources.contents.LONGEST_LINE", 2**16)
    data = line * (3 * 2**20 // len(line))
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else zipped({"a.jsonl": data}))
    where = path if name.endswith("gz") else f"{path}/a.jsonl"
    with bad_input(where=where, match="MiB" if line == b"\0" else "expands to more than 200 times"):
        texts(path)


# CSV


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.csv", "question;answer\nWhat, now?;This\n"),
        ("a.csv", "question\tanswer\nWhat, now?\tThis\n"),
        ("a.csv", 'question|answer\n"What, now?"|This\n'),
        ("a.csv", "sep=;\nquestion;answer\nWhat, now?;This\n"),
        ("a.csv", "\ufeffsep=|\r\nquestion|answer\r\nWhat, now?|This\r\n"),
        ("a.tsv", "question\tanswer\nWhat, now?\tThis\n"),
        ("a.csv", 'question,answer\n"What, now?",This\n'),
        ("a.csv", '\nquestion;"answer"\nWhat, now?;This\n'),
        ("a.csv", "question, answer\n\"What, now?\", This\n"),
        ("a.csv", "question;answer;note, long\nWhat, now?;This;-\n"),
        ("a.csv", "question;answer, best;answer\nWhat, now?;-;This\n"),
        ("a.tsv", "question;answer\nWhat, now?;This\n"),
    ],
)
def test_what_is_between_columns_is_found_in_the_header(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw.encode())
    found = read_source(str(tmp_path / name), "domain_tasks")
    assert [message["content"] for message in found.table[0]["messages"]] == ["What, now?", "This"]
    assert found.where(0).endswith(f"line {raw.count(chr(10))}")


def test_values_of_csv_stay_as_they_are_written(tmp_path):
    (tmp_path / "a.csv").write_text("question;answer\n007;1.50\nTRUE;01.02.2026\n")
    rows = read_source(str(tmp_path / "a.csv"), "domain_tasks").table
    assert [[one["content"] for one in row["messages"]] for row in rows] == [
        ["007", "1.50"],
        ["TRUE", "01.02.2026"],
    ]


# columns by name

ASKED = [{"role": "user", "content": "T\n\nf"}, {"role": "assistant", "content": "w"}]


def test_columns_are_read_by_name_in_every_kind_of_file(tmp_path):
    record = {"Frage": "f", "Antwort": "w", "Text": "T"}
    table = datasets.Dataset.from_list([record])
    table.to_csv(tmp_path / "a.csv")
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    fill(
        tmp_path,
        {
            "a.jsonl": json.dumps(record),
            "a.json": json.dumps([record]),
            "f/a.jsonl": json.dumps(record),
            "a.zip": zipped({"a.jsonl": json.dumps(record)}),
        },
    )
    for name in ("a.csv", "a.parquet", "saved", "a.jsonl", "a.json", "f", "a.zip"):
        source = f"{tmp_path / name}[question=Frage, answer=Antwort,context=Text]"
        found = read_source(source, "domain_tasks")
        assert found.table[0]["messages"] == ASKED and found.about["unused"] == {}, name
        check_source(source, "domain_tasks")


def test_columns_stand_with_shapes_weights_lists_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(
        fill(
            tmp_path,
            {
                "a,b.jsonl": json.dumps({"Frage, lang": "f", "x=[y]": "w"}),
                "c[1].jsonl": json.dumps({"q": "f", "a": "w"}),
            },
        )
    )
    source = ('"a,b.jsonl"[question="Frage, lang",answer="x=[y]"]:2.5, qa=c[1].jsonl[question=q,answer=a], '
              "c[1].jsonl")
    parts = parse_source(source, "domain_tasks")
    assert [tuple(part) for part in parts] == [
        (None, "a,b.jsonl", 2.5, {"question": "Frage, lang", "answer": "x=[y]"}),
        ("qa", "c[1].jsonl", 1.0, {"question": "q", "answer": "a"}),
        (None, "c[1].jsonl", 1.0, {}),
    ]
    assert parse_source(", ".join(map(write_source, parts)), "domain_tasks") == parts
    first, second, _ = open_sources(source, "domain_tasks")
    assert first.weight == 2.5 and second.shape == "qa"
    assert next(first.records()) == (1, {"question": "f", "answer": "w"})
    (tmp_path / "d.jsonl[question=q]").write_text("")
    assert parse_source("d.jsonl[question=q]", "r")[0].path == "d.jsonl[question=q]"


@pytest.mark.parametrize(
    ("columns", "field", "match"),
    [
        ("[question=Frag,answer=Antwort]", "Frag", "did you mean 'Frage'"),
        ("[answer=Antwort.x]", "Antwort.x", "it has"),
        ("[questoin=Frage]", "domain_tasks", "did you mean 'question'"),
        ("[Frage]", "domain_tasks", "question=COLUMN"),
        ("[question=Frage,question=Antwort]", "domain_tasks", "given twice"),
        ("[]", "domain_tasks", "question=COLUMN"),
        ("[question=]", "domain_tasks", "question=COLUMN"),
    ],
)
def test_columns_that_are_not_there_and_fields_that_nothing_reads_are_refused(
    tmp_path, columns, field, match
):
    path = fill(tmp_path, {"a.jsonl": json.dumps({"Frage": "f", "Antwort": "w"})}) / "a.jsonl"
    with bad_input(field, f"{path}{columns}" if field == "domain_tasks" else path, match):
        read_source(f"{path}{columns}", "domain_tasks")


def test_columns_may_be_nested_exchanged_and_lacking_in_some_rows(tmp_path):
    rows = [
        {"title": "no", "qa": {"q": "f"}, "answers": {"text": ["w", "x"]}, "question": "own", "a.b": "T"},
        {"qa": {"q": "g"}, "answers": {"text": []}, "answer": "w"},
    ]
    path = fill(tmp_path, {"a.jsonl": "\n".join(map(json.dumps, rows))}) / "a.jsonl"
    records = [
        row
        for _, row in open_sources(
            f"{path}[question=qa.q,answer=answers.text.0,context=a.b]", "domain_tasks"
        )[0].records()
    ]
    assert records == [
        {"question": "f", "answer": "w", "context": "T", "title": "no", "question (not read)": "own"},
        {"question": "g", "answer (not read)": "w"},
    ]
    swapped = fill(tmp_path, {"b.jsonl": json.dumps({"question": "w", "answer": "f"})}) / "b.jsonl"
    assert next(open_sources(f"{swapped}[question=answer,answer=question]", "r")[0].records())[1] == {
        "question": "f",
        "answer": "w",
    }


def test_columns_change_what_is_cached(tmp_path):
    path = fill(tmp_path, {"a.jsonl": json.dumps({"a": "one", "b": "two"})}) / "a.jsonl"
    assert [texts(f"{path}[text={column}]") for column in "aba"] == [["one"], ["two"], ["one"]]


def test_every_field_that_a_column_can_be_read_as_is_read():
    task = {"question": "q", "answer": "a"}
    samples = {
        "messages": ASKED,
        "conversations": ASKED,
        "conversation": ASKED,
        "history": [["q", "a"]],
        "tools": [{"name": "f", "parameters": {}}],
        "options": ["a", "b"],
        "weight": 1, "scorer": "f1",
        "label": True,
    }
    for field in FIELDS:
        kind = "text" if field == "text" else "tasks"
        bases = {
            "input": {"instruction": "q", "output": "a"},
            "output": {"instruction": "q"},
            "instruction": {"output": "a"},
            "prompt": {"completion": "a"},
            "completion": {"prompt": "q"},
            "query": {"answer": "a"},
            "response": {"question": "q"},
        }
        base = (
            {}
            if kind == "text"
            else bases.get(field, {} if "conversation" in field or field == "messages" else task)
        )
        parsed = parse_row(base | {field: samples.get(field, "x")}, kind)
        assert field not in parsed.unused or field == "type", field


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([{"Frage": "Wie?", "Antwort": "So."}], "[question=Frage,answer=Antwort]"),
        ([{"pregunta": "¿Qué?", "respuesta": "Eso."}], "[question=pregunta,answer=respuesta]"),
        ([{"Вопрос": "Что?", "Ответ": "Это."}], "[question=Вопрос,answer=Ответ]"),
        ([{"问题": "什么？", "答案": "这个。"}], "[question=问题,answer=答案]"),
        ([{"question": "Quoi ?", "réponse": "Ça."}], "[answer=réponse]"),
        ([{"id": "7", "query": "What?", "response": "This."}], "[question=query,answer=response]"),
        ([{"input": "What?", "output": "This."}], "[question=input,answer=output]"),
        ([{"Q": "What?", "A": "This."}], "[question=Q,answer=A]"),
        ([{"title": "On cats", "body": "Cats are."}], "[question=title,answer=body]"),
        ([{"Frage": "f", "Antwort": "w", "Kontext": "k"}], "[question=Frage,answer=Antwort,context=Kontext]"),
        ([{"question_text": "What?", "best_answer": "This."}], "[question=question_text,answer=best_answer]"),
        ([{"UserQuestion": "What?", "BotReply": "This."}], "[question=UserQuestion,answer=BotReply]"),
        ([{"पश्न": "x", "प्रश्न": "क्या?", "उत्तर": "यह।"}], "[question=प्रश्न,answer=उत्तर]"),
        (
            [{"c1": "Where is it?", "c2": "It is where it has always been, on the hill.", "id": "x1"}],
            "[question=c1,answer=c2]",
        ),
        ([{"questions, all": "Q", "answers": "A"}], '[question="questions, all",answer=answers]'),
        ([{"id": "a", "title": "A_B", "context": "On c.", "question": "q", "answers": {"text": ["w"]}}],
         "[answer=answers.text.0]"),
        ([{"qa": [{"q": "What is it?", "response": "This."}]}], "[question=qa.0.q,answer=qa.0.response]"),
        ([{"id": "1", "dialog": [{"role": "user", "content": "q"}]}], "[messages=dialog]"),
        ([{"turns": [{"from": "human", "value": "q"}]}], "[messages=turns]"),
        ([{"question": "What?", "answer": 4, "source": "Some old book."}], None),
        ([{"question": "What?", "passage": "It is.", "reply": "This."}], "[answer=reply,context=passage]"),
        ([{"colour": "red", "size": "3", "weight": "4"}], None),
        ([{"id": 3}], None),
        ([], None),
    ],
)
def test_columns_are_proposed_by_their_names_and_else_by_their_texts(rows, columns):
    assert propose_columns(list(rows[0]) if rows else [], rows) == columns


def test_a_column_with_text_is_proposed_for_text_and_a_proposal_can_be_read(tmp_path):
    assert propose_columns(["id", "Inhalt"], [{"id": 1, "Inhalt": "Viel Text."}], "text") == "[text=Inhalt]"
    assert propose_columns(["n", "z"], [{"n": "a1", "z": "Some words here."}], "text") == "[text=z]"
    path = fill(tmp_path, {"a,b.csv": "Frage;Antwort\nf;w\n"}) / "a,b.csv"
    proposal = propose_source(open_sources(str(path), "domain_tasks")[0], "tasks")
    assert proposal == f'"{path}"[question=Frage,answer=Antwort]'
    assert read_source(proposal, "domain_tasks").table[0]["messages"][1]["content"] == "w"


def test_the_endings_that_are_named_are_those_that_are_read():
    assert set(SUFFIXES) == {*READERS, *TEXT_SUFFIXES, *DOCUMENT_SUFFIXES}
    assert set(NEEDED) == set(DOCUMENT_SUFFIXES)


@pytest.mark.parametrize(("names", "source", "missing"), [
    (["data/train-00000-of-00003.jsonl", "data/train-00002-of-00003.jsonl"], ".",
     ["data/train-00001-of-00003"]),
    (["a-00001-of-00002.txt", "a-00002-of-00002.txt"], ".", []),
    (["a.00001-of-00004.jsonl.gz", "a.00004-of-00004.jsonl"], ".", ["a.00002-of-00004", "a.00003-of-00004"]),
    (["x-0-of-2.csv", "y-0-of-2.csv", "y-1-of-2.csv"], ".", ["x-1-of-2"]),
    (["a-00000-of-00002.jsonl", "b.jsonl"], "b.jsonl", []),
    (["a-00000-of-00002.jsonl"], "a-00000-of-00002.jsonl", []),  # by its own name: it is meant
    (["a-00000-of-00003.jsonl", "a-00001-of-00003.jsonl"], "a-00000-of-00003.jsonl,a-00001-of-00003.jsonl",
     ["a-00002-of-00003"]),
    (["n/a-00000-of-00002.jsonl", "b.jsonl"], "b.jsonl,n", ["n/a-00001-of-00002"]),
])
def test_files_that_lack_by_their_numbers_are_named(tmp_path, monkeypatch, names, source, missing):
    monkeypatch.chdir(fill(tmp_path, dict.fromkeys(names, "")))
    assert describe_source(source, "domain_text")["missing"] == missing


def test_files_that_lack_are_a_warning_of_check_and_of_a_run(tmp_path, make_model):
    folder = fill(tmp_path / "d", {f"a-{number:05}-of-00005.jsonl": jsonl(*(
        f"{number} {row}" for row in range(9))) for number in (0, 1, 4)})
    named = str(folder / "a-00002-of-00005")
    assert any(named in text for text in measure_data(
        str(folder), "domain_text", model=make_model()).warnings)
    roles = load_roles(override(Recipe(), domain_text=str(folder)))
    assert any(named in text for text in role_warnings("domain_text", roles["domain_text"]))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_cell_that_is_nan_is_an_empty_one(tmp_path, name):
    row = {"question": "q", "context": float("nan"), "answer": "a", "score": float("nan")}
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / name)
    else:
        (tmp_path / name).write_text(json.dumps([row] if name.endswith("json") else row))
    rows = read_source(str(tmp_path / name), "domain_tasks")
    assert rows.table[0]["messages"][0]["content"] == "q" and not rows.about["unused"]


def test_the_word_nan_of_csv_is_text(tmp_path):
    fill(tmp_path, {"a.csv": "question,answer\nWhat is no number?,NaN\n"})
    assert read_source(str(tmp_path / "a.csv"), "domain_tasks").table[0]["messages"][1]["content"] == "NaN"


@pytest.mark.parametrize("source", ["a.csv[question=Frage", "a.csv[question=Frage,answer=Antwort",
                                    "qa=a.csv[question=Frage:2", "a.csv question=Frage]"])
def test_a_bracket_that_is_not_closed_is_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(fill(tmp_path, {"a.csv": "Frage,Antwort\nf,a\n", "odd[name.csv": ""}))
    with bad_input(field="domain_tasks", where=source.partition(",")[0], match="bracket"):
        parse_source(source, "domain_tasks")
    assert parse_source("odd[name.csv:2", "domain_tasks")[0].path == "odd[name.csv"


LONG = "A long text about cats, which are small. " * 20


@pytest.mark.parametrize(("rows", "role", "proposed"), [
    ([{"Frage": "Wie?", "Antwort": "So.", "Text": LONG}], "domain_tasks",
     "[question=Frage,answer=Antwort,context=Text]"),
    ([{"prompt_text": "Wie?", "reply": "So.", "text": LONG}], "domain_text", None),
    ([{"id": 3, "Inhalt": LONG}], "domain_text", "[text=Inhalt]"),
    ([{"n": "a1", "z": LONG}], "domain_text", "[text=z]"),
    ([{"title": "Cats", "url": "u", "text": LONG, "body": "x"}], "domain_text", None),
    ([{"text": LONG, "id": "a"}], "domain_text", None),
])
def test_check_proposes_columns_rather_than_take_one_for_text(tmp_path, make_model, rows, role, proposed):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 9))
    report = measure_data(str(path), model=make_model())
    assert (report.role, report.proposal) == (role, proposed and f"{path}{proposed}")
    assert report.rows == (0 if proposed else 9)


def test_a_column_of_text_is_no_passage_where_columns_are_named(tmp_path):
    path = fill(tmp_path, {"a.csv": "Frage,Antwort,Text\nf,a,On cats.\nf2,a2,On dogs.\n"}) / "a.csv"
    rows = read_source(f"{path}[question=Frage,answer=Antwort]", "domain_tasks")
    assert rows.table[0]["messages"][0]["content"] == "f" and rows.about["unused"] == {"Text (not read)": 2}
    named = read_source(f"{path}[question=Frage,answer=Antwort,context=Text]", "domain_tasks")
    assert named.table[0]["messages"][0]["content"] == "On cats.\n\nf"
    texts = fill(tmp_path, {"b.csv": "Titel,Text\nf,On cats.\nf2,On dogs.\n"}) / "b.csv"
    assert len(read_source(f"{texts}[document=Titel]", "domain_text").table) == 2
