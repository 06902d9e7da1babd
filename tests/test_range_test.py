"""The range test: the rate rises step by step from a fresh start, and the advice takes what it chose."""

import json
import math

import pytest

from sftbench.calibration import range_test
from sftbench.calibration.range_test import (
    RANGE,
    RangeTest,
    add_tests,
    advise_measured,
    choose_rate,
    has_diverged,
    measure_rates,
    smooth_losses,
)
from sftbench.cli import main
from sftbench.errors import RunFailed
from sftbench.recipes.facts import Facts
from sftbench.recipes.hyperparameters import resolve_recipe
from sftbench.recipes.recipe import METHODS, Recipe, override
from sftbench.training.prepare import prepare_recipe
from tests.conftest import bad_input

STEPS = 12


@pytest.fixture
def recipe(make_model, small_files, monkeypatch):
    """A recipe of a tiny model whose tests take a few steps."""
    monkeypatch.setattr(range_test, "STEPS", STEPS)
    return override(Recipe(), mode="2", model=make_model(), **small_files)


RATES = [1e-5 * 10 ** (step / 8) for step in range(33)]


def test_the_rate_is_a_tenth_of_that_of_the_lowest_loss():
    losses = [3.0] * 12 + [1.0] * 13 + [2.0] * 8
    assert choose_rate(RATES, losses) == pytest.approx(RATES[24] / 10, rel=0.05)
    assert choose_rate(RATES, [1.0, 2.0, 3.0]) is None  # it never falls
    for far in (math.inf, math.nan):
        assert choose_rate(RATES, [3.0, 2.0, far]) == pytest.approx(RATES[1] / 10, rel=0.05)


def test_far_above_its_lowest_the_loss_has_diverged():
    losses = [2.0 if rate < 1e-2 else 100.0 for rate in RATES]
    assert has_diverged(losses[:26]) and not has_diverged(losses[:24])


def test_an_easy_first_row_is_no_divergence():
    assert not has_diverged([0.1, 3.0, 2.0]) and not has_diverged([0.1] + [3.0] * 30)


def test_smoothing_starts_at_the_first_loss_and_follows_slowly():
    assert smooth_losses([3.0, 3.0, 3.0]) == pytest.approx([3, 3, 3])
    jump = smooth_losses([1.0] * 20 + [11.0])
    assert jump[0] == pytest.approx(1) and 1.9 < jump[-1] < 2.3


def test_each_kind_of_stage_is_tried_by_its_method_over_the_same_range(recipe, tmp_path):
    mixed = override(recipe, method="lora", cpt_method="full")
    tests, advised = measure_rates(mixed, tmp_path / "curve"), prepare_recipe(mixed).recipe
    assert [(test.kind, test.method) for test in tests] == [("cpt", "full"), ("sft", "lora")]
    for test, rate in zip(tests, (advised.cpt_learning_rate, advised.learning_rate), strict=True):
        assert len(test.rates) == len(test.losses) == len(test.smoothed) <= STEPS
        assert test.rates[0] == pytest.approx(rate / RANGE)
        steps = [after / before for before, after in zip(test.rates, test.rates[1:], strict=False)]
        assert steps == pytest.approx([RANGE ** (2 / (STEPS - 1))] * len(steps))
    stored = json.loads((tmp_path / "curve" / "rates.json").read_text())["tests"]
    assert [one["losses"] for one in stored] == [list(test.losses) for test in tests]
    assert (tmp_path / "curve" / "rates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_can_be_tried(recipe, tmp_path, method):
    test, = measure_rates(override(recipe, mode="1", method=method), tmp_path / "curve")
    assert test.method == method and len(test.losses) >= range_test.SETTLED


def test_the_trained_rate_is_the_risen_one(recipe, tmp_path, monkeypatch):
    seen = []

    def train(model, context):
        seen.extend(context.settings.learning_rate * context.schedule(step) for step in range(STEPS))
        model.train()
        return real(model, context)

    real = range_test.train_stage
    monkeypatch.setattr(range_test, "train_stage", train)
    test, = measure_rates(override(recipe, mode="1"), tmp_path / "curve")
    assert seen[:len(test.rates)] == pytest.approx(test.rates)


def test_a_loss_that_diverges_ends_the_test(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(range_test, "STEPS", 2 * STEPS)
    monkeypatch.setattr(range_test, "RANGE", 1e7)
    test, = measure_rates(override(recipe, mode="1"), tmp_path / "curve")
    assert len(test.rates) == len(test.losses) < 2 * STEPS and all(map(math.isfinite, test.losses))
    assert test.diverged and 10 * test.chosen < test.rates[-1]
    assert test.chosen == choose_rate(list(test.rates), list(test.losses))


def test_a_failure_that_is_none_of_the_rate_is_reported(recipe, tmp_path, monkeypatch):
    def fail(model, context):
        raise RunFailed("no weight changed", "unchanged")
    monkeypatch.setattr(range_test, "train_stage", fail)
    with pytest.raises(RunFailed):
        measure_rates(override(recipe, mode="1"), tmp_path / "curve")


def test_the_advice_takes_the_chosen_rate_for_the_method_that_was_tried():
    tests = [RangeTest("sft", "lora", (1e-4,), (1.0,), (1.0,), True, 2e-3),
             RangeTest("cpt", "lora", (1e-4,), (1.0,), (1.0,), False, None)]
    facts = add_tests(Facts(), tests)
    recipe, reasons = resolve_recipe(override(Recipe(), method="lora"), facts)
    assert recipe.learning_rate == 2e-3 and "range test" in reasons["learning_rate"].reason
    assert "range test" not in reasons["cpt_learning_rate"].reason
    assert "range test" not in resolve_recipe(Recipe(), facts)[1]["learning_rate"].reason


def test_a_folder_that_has_a_curve_is_refused_before_any_work(recipe, tmp_path, monkeypatch):
    (tmp_path / "rates.json").write_text("{}")
    monkeypatch.setattr(range_test, "advise_recipe", lambda *_: pytest.fail("work began"))
    with bad_input("output_dir", tmp_path):
        advise_measured(recipe, {}, tmp_path)


def test_the_command_measures_and_names_the_curve(recipe, tmp_path, capsys):
    words = [word for name in ("model", "domain_tasks") for word in ("-p", name, getattr(recipe, name))]
    told = ["advise", "1", "--quick", "--measure", *words]
    assert main([*told, "-p", "output_dir", str(tmp_path / "a"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    chosen = json.loads((tmp_path / "a" / "rates.json").read_text())["tests"][0]["chosen"]
    assert data["curve"] == str(tmp_path / "a" / "rates.png")
    assert chosen is None or data["values"]["learning_rate"]["value"] == chosen
    assert main([*told, "-p", "output_dir", str(tmp_path / "b")]) == 0
    assert str(tmp_path / "b" / "rates.png") in capsys.readouterr().out
