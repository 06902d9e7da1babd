"""The sweeps behind docs/advice.md: points with the advised value among them, measured once, as a table."""

import importlib
import json
import sys

import pytest

from sftbench.recipes.facts import Facts
from sftbench.recipes.recipe import Recipe, override
from tests.test_docs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
advice = importlib.import_module("advice")

FACTS = Facts().add("card", pretraining_learning_rate=2e-3)


@pytest.mark.parametrize("table", advice.TABLES)
def test_each_table_has_the_advised_value_among_others(table):
    every, advised = advice.points(table, FACTS)
    field = advice.TABLES[table][0]
    assert advised in every and len({json.dumps(one) for one in every}) == len(every) >= 3
    assert len({one[field] for one in every}) == len(every)
    for one in every:
        override(Recipe(), **one)  # a recipe takes it


def test_the_advised_rate_is_a_point_of_its_own():
    every, advised = advice.points("learning rate, lora", FACTS)
    assert advised == {"method": "lora", "learning_rate": 1e-3}
    assert [one["learning_rate"] for one in every] == [5e-4, 1e-3, 1.5e-3, 3e-3, 6e-3]


def test_the_page_says_how_far_the_advised_value_is_from_the_best():
    losses = {5e-4: 0.4, 1e-3: 0.36, 1.5e-3: 0.31, 3e-3: None}
    measured = {advice.key("smollm2", 0, {"method": "lora", "learning_rate": rate}): {"loss": loss}
                for rate, loss in losses.items()} | {"facts smollm2": FACTS.to_dict()}
    line = advice.page_table(measured).splitlines()[-1]
    assert line == ("| learning rate, lora | SmolLM2-135M | 0.0005: 0.400 · **0.001: 0.360** · "
                    "0.0015: 0.310 · 0.003: diverged | 0.050 | – | – |")
    pair = advice.chosen(measured, "smollm2", "learning rate, lora", 1, FACTS)
    assert [one["learning_rate"] for one in pair] == [1e-3, 1.5e-3]
    for one, loss in zip(pair, (0.5, 0.48), strict=True):
        measured[advice.key("smollm2", 1, one)] = {"loss": loss}
    assert advice.page_table(measured).splitlines()[-1].endswith("| 0.050 | +0.020 | – |")


def test_no_point_is_measured_twice_and_none_begins_when_time_is_up(tmp_path, monkeypatch):
    began = []
    monkeypatch.setattr(advice, "MEASURED", tmp_path / "advice.json")
    monkeypatch.setattr(advice, "source", lambda *_: {})
    monkeypatch.setattr(advice, "measure", lambda recipe: began.append(recipe) or {"loss": 1.0})
    measured = {"facts smollm2": FACTS.to_dict()}
    for until in (0.0, float("inf"), float("inf")):
        advice.measure_table(measured, "smollm2", "warm-up", 0, until)
    assert [recipe.warmup_ratio for recipe in began] == [
        one["warmup_ratio"] for one in advice.points("warm-up", FACTS)[0]]
    assert json.loads((tmp_path / "advice.json").read_text()) == measured


@pytest.mark.slow
def test_a_point_is_a_training_whose_held_out_loss_is_measured(make_model, small_files):
    recipe = override(Recipe(), mode="2", model=make_model(), num_train_epochs=2.0, **small_files)
    trained = advice.measure(recipe)
    assert 0 < trained["loss"] < 6 and trained["steps"] > 0
    slow = advice.measure(override(recipe, learning_rate=1e-8, cpt_learning_rate=1e-8))
    assert slow["loss"] > trained["loss"]
