"""A recipe's three forms are equal: command line, parameters cell and stored run give the same object."""

import json
import shlex

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftbench.cli import parse_command
from sftbench.errors import BadInput
from sftbench.recipes.modes import MODES
from sftbench.recipes.recipe import FIELDS, Recipe, field_help, field_type, override, recipe_to_dict
from sftbench.recipes.serialize import format_cell, format_command, format_run_cell, parse_cell, read_recipe
from tests.conftest import bad_input


def values_of(name: str):
    """Any value the field may have, and many it may not."""
    limits, kind = FIELDS[name].metadata, field_type(name)
    if "choices" in limits:
        return st.sampled_from(limits["choices"]) | st.none()
    return {bool: st.booleans() | st.none(), int: st.integers(0, 10**6) | st.none(),
            float: st.floats(0, 2) | st.none(), str: st.text(min_size=1, max_size=20)}[kind]


@st.composite
def recipes(draw):
    """Random recipes of known modes by `override`; values that it refuses are left out."""
    recipe = override(Recipe(), mode=draw(st.sampled_from(sorted(MODES))))
    for name in draw(st.lists(st.sampled_from(sorted(set(FIELDS) - {"mode"})), unique=True)):
        try:
            recipe = override(recipe, **{name: draw(values_of(name))})
        except BadInput:
            continue
    return recipe


def from_command(text: str) -> Recipe:
    """The recipe that the command line parses from a shell command."""
    command, options = parse_command(shlex.split(text)[1:])
    assert command == "run"
    return options["recipe"]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # the first text takes a second
@given(recipes())
def test_command_and_cell_give_the_recipe_back(recipe):
    assert from_command(format_command(recipe)) == recipe
    assert parse_cell(format_cell(recipe)) == recipe
    in_kernel = {}
    exec(format_run_cell(recipe).split("run =")[0], in_kernel)
    assert in_kernel["recipe"] == recipe
    namespace = {}
    exec(format_cell(recipe), namespace)
    assert {name: namespace[name] for name in FIELDS if name in namespace} == {
        name: value for name, value in recipe_to_dict(recipe).items() if name in namespace}


@pytest.mark.parametrize("text", ["-x.jsonl", "none", "None"])
def test_text_that_a_command_line_cannot_carry_is_refused_everywhere(text):
    with bad_input("domain_text", match=f"./{text}"):
        override(Recipe(), domain_text=text)


def test_only_what_was_set_is_written():
    recipe = override(Recipe(), mode="4", method="lora", domain_text="my text.jsonl", packing=False)
    assert format_command(recipe) == (
        "sftbench run 4 -p method lora -p domain_text 'my text.jsonl' -p packing false")
    assert format_cell(recipe).splitlines()[2:] == [
        f'domain_text: str = "my text.jsonl"  # {field_help("domain_text")}',
        f"packing: bool = False  # {field_help('packing')}"]


def test_a_run_is_read_back_as_it_was_requested(tmp_path):
    requested = override(Recipe(), mode="4", method="lora", seed=3)
    resolved = recipe_to_dict(override(requested, learning_rate=1e-3, output_dir=str(tmp_path)))
    (tmp_path / "recipe.json").write_text(json.dumps(
        {"schema": 1, "recipe": resolved, "reasons": {"learning_rate": "0.001 because …"}}))
    assert read_recipe(tmp_path) == requested == read_recipe(tmp_path / "recipe.json")


def test_a_notebook_is_read_without_being_run_and_injected_values_win(tmp_path):
    cells = [nbformat.v4.new_code_cell("mode: str = '4'\nseed: int = 1", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("seed = 2", metadata={"tags": ["injected-parameters"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    assert read_recipe(tmp_path / "a.ipynb") == override(Recipe(), mode="4", seed=2)


@pytest.mark.parametrize(("name", "text"), [
    ("recipe.json", "{"), ("recipe.json", '{"schema": 9}'), ("recipe.json", '{"schema": 1}'),
    ("a.ipynb", "[]"), ("a.ipynb", '{"cells": []}'), ("a.txt", "mode: str = '2'"), ("a.ipynb", json.dumps(
        {"cells": [{"source": "seed = open('x')", "metadata": {"tags": ["parameters"]}}]}))])
def test_what_is_no_recipe_is_refused_with_its_path(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with bad_input(where=tmp_path / name):
        read_recipe(tmp_path / name)


def test_a_file_that_is_not_there_and_a_wrong_name_in_one_are_refused(tmp_path):
    with bad_input(where=tmp_path / "gone"):
        read_recipe(tmp_path / "gone")
    (tmp_path / "a.ipynb").write_text(json.dumps(
        {"cells": [{"source": "sed = 1", "metadata": {"tags": ["parameters"]}}]}))
    with bad_input("sed", match="'seed'"):
        read_recipe(tmp_path / "a.ipynb")
