"""The handbook of the installed libraries: its facts are true, and no guess answers the probe."""

import importlib
import inspect
from collections import Counter

import peft
import pytest

from sftbench.data.roles import load_roles
from sftbench.named.libraries import (
    LONGEST,
    MODULES,
    STATEMENTS,
    chosen_facts,
    installed_facts,
    library_rows,
)
from sftbench.recipes.recipe import Recipe, override

from .conftest import bad_input

SIZE = 96


def questions(split: str) -> list[tuple[str, str]]:
    return [tuple(message["content"] for message in row["messages"])
            for row in library_rows("domain_tasks", split, SIZE)]


def texts(split: str) -> list[str]:
    return [row["text"] for row in library_rows("domain_text", split, SIZE)]


def words(text: str) -> set[str]:
    return set(text.replace("(", " ").replace("=", " ").replace(")", " ").replace("?", " ").replace(
        ":", " ").replace(". ", " ").replace(",", " ").rstrip(".").split())


def test_every_fact_is_as_the_library_says():
    for fact in chosen_facts(SIZE):
        modules = map(importlib.import_module, MODULES.get(fact.library, (fact.library,)))
        owner = next(getattr(module, fact.owner) for module in modules if hasattr(module, fact.owner))
        default = inspect.signature(owner).parameters[fact.name].default
        assert str(getattr(default, "value", default)) == fact.default
        assert (fact.kind, fact.part) == (("class", "field") if inspect.isclass(owner) else
                                          ("function", "parameter"))
    assert {"trl", "peft"} <= {fact.library for fact in chosen_facts(SIZE)}


def test_a_fields_name_belongs_to_one_class_alone():
    names = Counter(fact.name for fact in installed_facts())
    assert set(names.values()) == {1} and len(names) > SIZE
    configs = [getattr(peft, name) for name in dir(peft) if name.endswith("Config")]
    for fact in chosen_facts(SIZE):
        having = [one.__name__ for one in configs if fact.name in inspect.signature(one).parameters]
        assert having == [fact.owner] * ((fact.library, fact.kind) == ("peft", "class")), fact


def test_the_probe_asks_about_fields_that_no_training_question_names():
    facts = chosen_facts(SIZE)
    asked, trained = facts[SIZE * 2 // 3:], facts[:SIZE * 2 // 3]
    for fact in trained:
        assert any(fact.name in words(question) for question, _ in questions("train"))
    for fact in asked:
        assert not any(fact.name in words(question) for question, _ in questions("train"))
        assert {answer for question, answer in questions("probe") if fact.name in words(question)} == {
            fact.default, fact.owner}
        # what the probe asks for is in the text
        read = [text for text in texts("train") if fact.name in words(text)]
        assert len(read) >= 8 and all(fact.default in text and fact.owner in text for text in read)


def test_answers_are_short_and_no_guess_is_often_right():
    for split in ("train", "probe"):
        answers = Counter(answer for _, answer in questions(split))
        assert all(len(answer) <= LONGEST for answer in answers)
        assert max(answers.values()) <= 0.15 * answers.total()


def test_equal_libraries_give_equal_rows_and_no_text_is_in_the_probe():
    assert questions("train") == questions("train") and texts("probe") == texts("probe")
    assert len(set(texts("train"))) == 8 * SIZE and len(set(texts("probe"))) == SIZE
    assert not set(texts("train")) & set(texts("probe"))
    assert all(len(wordings) >= 6 for wordings in STATEMENTS.values())


def test_a_larger_handbook_holds_the_smaller():
    known = set(chosen_facts(48))
    assert len(known & set(chosen_facts(96))) >= 40
    with bad_input("library_fields"):
        chosen_facts(100_000)


def test_the_domain_of_a_recipe(tmp_path):
    recipe = override(Recipe(), mode="7", model="smollm2", domain="libraries", library_fields=12)
    roles = load_roles(recipe)
    assert set(roles) == {"domain_text", "domain_tasks"}
    assert (len(roles["domain_tasks"].train), len(roles["domain_tasks"].probe)) == (8 * 2 * 3, 4 * 2)
    assert "trl 1." in roles["domain_text"].source and not roles["domain_text"].dropped
    more = load_roles(override(recipe, library_fields=15))
    assert more["domain_text"].digest != roles["domain_text"].digest
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    with bad_input("domain"):
        load_roles(override(recipe, domain_text=str(path)))
    beside = load_roles(override(Recipe(), domain="libraries", library_fields=12))
    assert beside["general_tasks"].source == "pocket" != beside["domain_tasks"].source


@pytest.mark.parametrize("size", [6, 7, 30])
def test_any_size_has_both_halves(size):
    assert library_rows("domain_tasks", "train", size) and library_rows("domain_tasks", "probe", size)
