"""The worker process's own part: what it keeps of a recipe made ready, and when it does so anew."""

import json
import os

import pytest

from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.folder import read_result, store_folder
from sftbench.training.chain import run_chain
from sftbench.workers.server import _ages, _prepared, _score_ahead


@pytest.fixture
def recipe(make_model, small_files, tmp_path):
    return override(Recipe(), mode="1", model=make_model(), max_steps=2, probe_rows=4, max_new_tokens=2,
                    output_dir=str(tmp_path / "runs" / "one"), **small_files)


def test_a_recipe_is_made_ready_once_while_its_files_stay(recipe, tmp_path, small_files):
    kept: dict = {}
    first = _prepared(recipe, kept)
    other = _prepared(override(recipe, output_dir=str(tmp_path / "other")), kept)
    assert other.roles is first.roles and other.recipe.output_dir == str(tmp_path / "other")
    os.utime(small_files["domain_tasks"], (1, 1))
    assert _prepared(recipe, kept).roles is not first.roles and len(kept) == 1
    with pytest.raises(ValueError):
        _prepared(override(recipe, mode="44"), kept)
    assert len(kept) == 1


@pytest.mark.parametrize("source", ["{a}", "{a},{b}", "messages={a}:2, {b}", "{folder}", '"{a}",{b}:0.5'])
def test_files_of_a_source_are_found_however_it_is_written(small_files, tmp_path, source):
    names = {"a": small_files["domain_tasks"], "b": small_files["general_tasks"], "folder": tmp_path}
    before = _ages(source.format(**names))
    assert before and before == _ages(source.format(**names))
    with open(small_files["domain_tasks"], "a") as file:
        file.write("\n")
    assert _ages(source.format(**names)) != before


@pytest.mark.parametrize("source", ["owner/name", "You are a clerk.", "x" * 5000])
def test_what_names_no_file_is_never_kept(source):
    assert _ages(source) is None


def test_scores_taken_ahead_are_those_of_the_run(recipe):
    kept: dict = {}
    _prepared(recipe, kept)
    _score_ahead(kept)
    stored = list((store_folder(recipe.output_dir) / "probes").iterdir())
    assert len(stored) == 1
    started = os.stat(stored[0]).st_mtime_ns
    result = read_result(run_chain(recipe))
    assert os.stat(stored[0]).st_mtime_ns == started
    assert result["start"]["probes"] == json.loads(stored[0].read_text())
