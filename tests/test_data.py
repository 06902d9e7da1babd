"""Files to rows: what is read, what is refused and where, and how probes are split off."""

import json

import pytest

from sftbench import data
from sftbench.errors import BadInput
from sftbench.recipe import Recipe, override

ASK = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_every_shape_becomes_the_same_row(tmp_path):
    path = lines(tmp_path / "a.jsonl", ASK, {"prompt": "q", "completion": "a"})
    assert data.read(path, "domain_tasks") == [ASK, ASK]
    assert data.read(lines(tmp_path / "b.jsonl", {"text": "t"}), "domain_text") == [{"text": "t"}]


def test_text_files_are_cut_at_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"paragraph {number} " + "x" * 500 for number in range(10)))
    rows = data.read(str(path), "domain_text")
    assert len(rows) > 2 and all(len(row["text"]) <= 2100 for row in rows)
    assert "\n\n".join(row["text"] for row in rows) == path.read_text()


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r\n')
    assert data.read(str(path), "domain_text") == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(("line", "words"), [
    ('{"text": "cut', "line 2, column 10"),
    ("[]", "line 2: a row must be an object"),
    ('{"body": "x"}', "line 2: no field 'text'"),
    ('{"text": 3}', "line 2: field 'text' must be text"),
    ('{"text": "\\ud800"}', "line 2: field 'text' holds half a surrogate"),
    ('{"prompt": "x"}', "line 2: field 'completion'"),
    ('{"messages": []}', "line 2: 'messages' must be a list"),
    ('{"messages": [{"role": "tool", "content": "x"}]}', "line 2: message 1 must have the role"),
    ('{"messages": [{"role": "user", "content": "x"}]}',
     "line 2: messages must be user and assistant in turn"),
    (json.dumps({"messages": [ASK["messages"][0], *ASK["messages"]]}), "line 2: messages must be user"),
])
def test_a_bad_row_is_named_with_its_line(tmp_path, line, words):
    path = lines(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(BadInput, match=r"a\.jsonl, " + words.replace("[", r"\[")):
        data.read(path, "domain_text")


@pytest.mark.parametrize(("raw", "words"), [
    (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: byte 24 is not UTF-8"),
    (b'{"text": "a"}\n\0\n', "line 2: byte 14 is NUL"),
    (b"", "holds no row"),
])
def test_bytes_that_are_no_text_are_named(tmp_path, raw, words):
    (tmp_path / "a.jsonl").write_bytes(raw)
    with pytest.raises(BadInput, match=words):
        data.read(str(tmp_path / "a.jsonl"), "domain_text")


def test_rows_of_another_roles_shape_are_counted(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "t"}, ASK, ASK)
    with pytest.raises(BadInput, match="2 of 3 rows, the first of them row 2"):
        data.read(path, "domain_text")


@pytest.mark.parametrize("path", ["nowhere.jsonl", "/"])
def test_a_missing_file_is_named(path):
    with pytest.raises(BadInput, match="no such file"):
        data.read(path, "domain_text")


def test_the_split_is_stable_when_rows_are_added():
    rows = [{"text": f"row {number}"} for number in range(500)]
    train, probe = data.split(rows, 0.1)
    assert 25 < len(probe) < 80 and len(train) + len(probe) == 500
    more_train, more_probe = data.split(rows + [{"text": f"new {number}"} for number in range(500)], 0.1)
    assert all(row in more_probe for row in probe) and all(row in more_train for row in train)


def test_duplicates_never_stand_on_both_sides():
    train, probe = data.split([{"text": f"row {number % 7}"} for number in range(70)], 0.3)
    assert probe and not [row for row in train if row in probe]


def test_two_rows_give_one_probe_and_one_row_is_refused():
    train, probe = data.split([{"text": "a"}, {"text": "b"}], 0.01)
    assert len(train) == len(probe) == 1
    with pytest.raises(BadInput, match="at least 2"):
        data.split([{"text": "a"}, {"text": "a"}], 0.5)


def test_training_rows_that_stand_in_the_probe_are_dropped_and_counted(tmp_path):
    train = lines(tmp_path / "train.jsonl", *({"text": f"{number}"} for number in range(10)))
    probe = lines(tmp_path / "probe.jsonl", {"text": "3"}, {"text": "x"})
    recipe = override(Recipe(), model="somebody/else", domain_text=train, domain_text_probe=probe)
    roles = data.load_roles(recipe)
    assert list(roles) == ["domain_text"]
    assert {"text": "3"} not in roles["domain_text"].train and len(roles["domain_text"].train) == 9
    assert roles["domain_text"].dropped == {"also in the probe": 1}


def test_pocket_data_comes_with_pocket_models_only_and_never_beside_own_data_of_a_side(tmp_path):
    assert set(data.load_roles(override(Recipe(), model="somebody/else"))) == set()
    assert len(data.load_roles(Recipe())) == 4
    own = lines(tmp_path / "own.jsonl", {"text": "a"}, {"text": "b"})
    assert set(data.load_roles(override(Recipe(), domain_text=own))) == {"domain_text", "general_text",
                                                                        "general_tasks"}
