"""Roles: probes split off and given, leaks, weights, system messages, and what is told of dropped rows."""

import json

import numpy as np
import pytest

from sftbench.data.roles import load_roles, load_system_prompts, split_rows
from sftbench.data.rows import read_source, row_hash
from sftbench.errors import BadInput
from sftbench.recipes.recipe import Recipe, override
from tests.conftest import bad_input

ASK = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def split(texts: list[str], share: float) -> tuple[list[str], list[str]]:
    """The texts of training and probe."""
    names = np.array([row_hash({"text": text})[0] for text in texts], dtype=np.uint64)
    return tuple([texts[index] for index in half] for half in split_rows(names, names, share))


def roles_of(tmp_path, **values):
    return load_roles(override(Recipe(), model="somebody/else", **values))


def test_rows_of_another_roles_shape_are_counted(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "t"}, ASK, ASK)
    with bad_input("messages", f"{path}, line 2", match="2 of 3 rows"):
        read_source(path, "domain_text")


def test_bad_rows_may_be_dropped_and_are_recorded_with_their_lines(tmp_path):
    path = lines(tmp_path / "a.jsonl", *({"text": f"{number}"} for number in range(20)), "[]", '{"text": 3}')
    role = roles_of(tmp_path, domain_text=path, bad_rows="drop")["domain_text"]
    assert len(role.train) + len(role.probe) == 20
    assert role.dropped["cannot be used"]["rows"] == 2
    assert [place.split(": ")[0] for place in role.dropped["cannot be used"]["examples"]] == [
        f"{path}, line 21", f"{path}, line 22"]
    with pytest.raises(BadInput, match="holds no row"):
        roles_of(tmp_path, domain_text=lines(tmp_path / "b.jsonl"), bad_rows="drop")


def test_the_split_is_stable_when_rows_are_added():
    texts = [f"row {number}" for number in range(500)]
    train, probe = split(texts, 0.1)
    assert 25 < len(probe) < 80 and len(train) + len(probe) == 500
    more_train, more_probe = split(texts + [f"new {number}" for number in range(500)], 0.1)
    assert set(probe) <= set(more_probe) and set(train) <= set(more_train)


def test_duplicates_never_stand_on_both_sides():
    train, probe = split([f"row {number % 7}" for number in range(70)], 0.3)
    assert probe and not set(train) & set(probe) and len(set(probe)) == len(probe)


def test_two_rows_give_one_probe_and_one_row_is_refused():
    train, probe = split(["a", "b"], 0.01)
    assert len(train) == len(probe) == 1
    assert sorted(map(len, split(["a", "b"], 0.999999))) == [1, 1]
    with bad_input(where="data", match="at least 2"):
        split(["a", "a"], 0.5)


def test_training_rows_that_stand_in_the_probe_are_dropped_and_counted(tmp_path):
    train = lines(tmp_path / "train.jsonl", *({"text": f"{number}"} for number in range(10)))
    probe = lines(tmp_path / "probe.jsonl", {"text": "3"}, {"text": "x"})
    roles = roles_of(tmp_path, domain_text=train, domain_text_probe=probe)
    assert list(roles) == ["domain_text"]
    torn = lines(tmp_path / "torn.jsonl", {"text": "3"}, {"question": "x"})
    with bad_input("question", f"{torn}, line 2", match="domain_text_probe"):
        roles_of(tmp_path, domain_text=train, domain_text_probe=torn)
    assert {"text": "3"} not in roles["domain_text"].train and len(roles["domain_text"].train) == 9
    assert roles["domain_text"].dropped == {
        "also in the probe": {"rows": 1, "examples": [f"{train}, line 4"]}}


def test_pocket_data_comes_with_pocket_models_only_and_never_beside_own_data_of_a_side(tmp_path):
    assert set(load_roles(override(Recipe(), model="somebody/else"))) == set()
    assert len(load_roles(Recipe())) == 4
    own = lines(tmp_path / "own.jsonl", {"text": "a"}, {"text": "b"})
    assert set(load_roles(override(Recipe(), domain_text=own))) == {"domain_text", "general_text",
                                                                        "general_tasks"}


def test_weights_say_how_often_a_files_rows_stand_in_a_pass(tmp_path):
    first = lines(tmp_path / "a.jsonl", *({"text": f"a {number}"} for number in range(400)))
    second = lines(tmp_path / "b.jsonl", *({"text": f"b {number}"} for number in range(400)))
    plain = roles_of(tmp_path, domain_text=f"{first}, {second}")["domain_text"]
    assert set(plain.times) == {1} and len(plain.train) + len(plain.probe) >= 720
    role = roles_of(tmp_path, domain_text=f"{first}:2.5,{second}:0.25")["domain_text"]
    times = {"a": [], "b": []}
    for row, often in zip(role.train, role.times, strict=True):
        times[row["text"][0]].append(int(often))
    assert set(times["a"]) == {2, 3} and np.mean(times["a"]) == pytest.approx(2.5, abs=0.1)
    assert set(times["b"]) == {1} and len(times["b"]) / 360 == pytest.approx(0.25, abs=0.08)
    assert role.dropped["left out by its file's weight"]["rows"] > 200 and role.digest != plain.digest
    with bad_input("domain_text", f"{first}:0", match="above 0"):
        roles_of(tmp_path, domain_text=f"{first}:0")


MAPPING = """
default = "Answer."
general_tasks = "Be kind."
field = "sort"
[types]
sum = "Add up."
"""


def test_system_messages_come_from_row_type_role_or_default_in_this_order(tmp_path):
    own = {"messages": [{"role": "system", "content": "Own."}, *ASK["messages"]], "sort": "sum"}
    path = lines(tmp_path / "a.jsonl", own, {"question": "1+1?", "answer": "2", "sort": "sum"},
                 {"question": "who?", "answer": "me", "sort": "other"}, {"question": "why?", "answer": "so"})
    (tmp_path / "map.toml").write_text(MAPPING)
    values = {"domain_tasks": path, "domain_tasks_probe": path, "general_tasks": path,
              "general_tasks_probe": path}
    roles = roles_of(tmp_path, system_prompts=str(tmp_path / "map.toml"), **values)
    for role, default in (("domain_tasks", "Answer."), ("general_tasks", "Be kind.")):
        assert [row["messages"][0]["content"] for row in roles[role].probe] == [
            "Own.", "Add up.", default, default]
        assert roles[role].rows.about["types"] == {"sum": 2, "other": 1}
    plain = roles_of(tmp_path, system_prompts="Speak.", **values)["domain_tasks"]
    assert [row["messages"][0]["content"] for row in plain.probe] == ["Own.", "Speak.", "Speak.", "Speak."]


def test_another_system_message_moves_no_row_into_or_out_of_the_probe(tmp_path):
    path = lines(tmp_path / "a.jsonl",
                 *({"question": f"{number}?", "answer": "yes"} for number in range(100)))
    one, other = (roles_of(tmp_path, domain_tasks=path, system_prompts=text)["domain_tasks"]
                  for text in ("One.", "Other."))
    assert [row["messages"][1:] for row in one.probe] == [row["messages"][1:] for row in other.probe]
    assert one.digest != other.digest


@pytest.mark.parametrize(("text", "field", "remedy"), [
    ("defalt = 'x'", "defalt", "'default'"), ("default = 3", "default", "text"),
    ("types = 'x'", "types", "table"), ("[types]\na = 1", "types", "every entry"),
    ("x", "system_prompts", "TOML")])
def test_a_mapping_that_cannot_be_meant_is_refused(tmp_path, text, field, remedy):
    (tmp_path / "map.toml").write_text(text)
    with bad_input(field, tmp_path / "map.toml", match=remedy):
        load_system_prompts(str(tmp_path / "map.toml"), "domain_tasks")
    with bad_input("system_prompts", tmp_path / "none.toml"):
        load_system_prompts(str(tmp_path / "none.toml"), "domain_tasks")
