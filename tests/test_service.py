"""The worker process's own part: when it prepares a recipe anew, and the scores it computes ahead."""

import os

import pytest

from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.folder import read_result, store_folder
from sftbench.training.chain import run_chain
from sftbench.workers.server import Worker, _file_stamps


@pytest.fixture
def recipe(make_model, small_files, tmp_path):
    return override(Recipe(), mode="1", model=make_model(), max_steps=2, probe_rows=4, max_new_tokens=2,
                    output_dir=str(tmp_path / "runs" / "one"), **small_files)


def test_a_recipe_is_prepared_once_while_its_files_stay(recipe, tmp_path, small_files):
    worker = Worker()
    first = worker.prepare(recipe)
    other = worker.prepare(override(recipe, output_dir=str(tmp_path / "other")))
    assert other.roles is first.roles and other.recipe.output_dir == str(tmp_path / "other")
    os.utime(small_files["domain_tasks"], (1, 1))
    second = worker.prepare(recipe)
    assert second.roles is not first.roles
    with pytest.raises(ValueError):
        worker.prepare(override(recipe, mode="44"))
    assert worker.prepare(recipe) is second


@pytest.mark.parametrize("source", ["{a}", "{a},{b}", "messages={a}:2, {b}", "{folder}", '"{a}",{b}:0.5'])
def test_files_of_a_source_are_found_however_it_is_written(small_files, tmp_path, source):
    names = {"a": small_files["domain_tasks"], "b": small_files["general_tasks"], "folder": tmp_path}
    before = _file_stamps(source.format(**names))
    assert before and before == _file_stamps(source.format(**names))
    with open(small_files["domain_tasks"], "a") as file:
        file.write("\n")
    assert _file_stamps(source.format(**names)) != before


@pytest.mark.parametrize("source", ["owner/name", "You are a clerk.", "x" * 5000])
def test_what_names_no_file_is_read_anew_each_time(source):
    assert _file_stamps(source) is None


def test_scores_computed_ahead_are_those_of_the_run(recipe):
    worker = Worker()
    worker.prepare(recipe)
    worker.score_ahead()
    store = store_folder(recipe.output_dir)
    stored = {path: os.stat(path).st_mtime_ns for path in (store / "probes").iterdir()}
    prepared = worker.prepared
    result = read_result(run_chain(recipe))
    own = set(prepared.probes.answers_paths(prepared.start_state(store)).values())
    assert own <= set(stored) and len(own) == len(result["start"]["probes"]) > 1
    assert len(stored) == len(own) + ("prompt_alone" in result)
    assert all(os.stat(path).st_mtime_ns == written for path, written in stored.items())
