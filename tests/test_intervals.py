"""95 % intervals: as wide as theory says, true in 95 of 100 draws, and honest where rows are few or alike."""

import numpy as np
import pytest

from sftbench.recipes.recipe import Recipe, override
from sftbench.reports.ledger import format_ledger, format_result_ledger
from sftbench.runs.answers import AnsweredRow
from sftbench.runs.folder import read_result
from sftbench.runs.intervals import MIN_ROWS, change_intervals, mean_scores, score_intervals
from sftbench.training.chain import run_chain
from tests.test_views import result


def rows(scores, nats=None, tokens=4) -> list[AnsweredRow]:
    nats = scores if nats is None else nats
    return [AnsweredRow("domain_tasks", number, "a", "b", "c", "c", "exact", float(score), float(score),
                        float(cost), tokens)
            for number, (score, cost) in enumerate(zip(scores, nats, strict=True), 1)]


def test_an_interval_is_as_wide_as_the_normal_law_says_and_the_same_each_time():
    own = rows([0, 1] * 200)
    low, high = score_intervals(own)["accuracy"]
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)
    assert score_intervals(own) == score_intervals(own)
    low, high = score_intervals(own)["loss"]
    assert (low, high) == pytest.approx(((0.5 - 0.049) / 4, (0.5 + 0.049) / 4), abs=0.002)


def test_it_holds_the_truth_in_some_95_of_100_draws():
    generator, held = np.random.default_rng(1), 0
    for _ in range(200):
        low, high = score_intervals(rows(generator.random(100) < 0.3))["accuracy"]
        held += low <= 0.3 <= high
    assert 0.9 < held / 200 < 0.99


def test_rows_that_are_all_alike_have_the_exact_bound():
    low, high = score_intervals(rows([0] * 200))["accuracy"]
    assert low == 0 and (1 - high) ** 200 == pytest.approx(0.025, rel=1e-3)
    low, high = score_intervals(rows([1] * 200))["accuracy"]
    assert high == 1 and low ** 200 == pytest.approx(0.025, rel=1e-3)


def test_too_few_rows_have_none():
    few = rows([0, 1] * (MIN_ROWS // 2))[1:]
    assert score_intervals(few) == {} and change_intervals(few, few) == {}
    assert mean_scores(few)["accuracy"] == pytest.approx(0.6)


def test_pairs_show_a_change_that_two_intervals_hide():
    generator = np.random.default_rng(2)
    nats = generator.uniform(1, 9, 100)
    before, after = rows([0] * 100, nats), rows([0] * 100, nats - generator.uniform(0.1, 0.3, 100))
    assert score_intervals(before)["loss"][0] < score_intervals(after)["loss"][1], "they overlap"
    low, high = change_intervals(before, after)["loss"]
    assert -0.3 / 4 < low < high < -0.1 / 4


@pytest.mark.parametrize(("gained", "by_chance"), [(0, True), (5, True), (6, False), (30, False)])
def test_a_change_of_few_rows_is_within_chance_as_a_sign_test_says(gained, by_chance):
    low, high = change_intervals(rows([0] * 100), rows([1] * gained + [0] * (100 - gained)))["accuracy"]
    assert (low <= 0 <= high) == by_chance


def test_rows_without_a_loss_are_in_no_pair():
    before = rows([0] * 20, [8.0] * 20)
    after = rows([0] * 20, [4.0] * 20)
    after[3:5] = [AnsweredRow("domain_tasks", 4, "a", "b", "c", "c", "exact", 0.0, 0.0)] * 2
    assert change_intervals(before, after)["loss"] == [-1.0, -1.0]


def spread(low: float, high: float) -> dict:
    about = result()
    about["start"]["intervals"] = {"domain_tasks": {"loss": [2.5, 10.333], "accuracy": [0.05, 0.15]}}
    about["stages"][0] |= {"intervals": {"domain_tasks": {"accuracy": [0.5, 0.7]}}, "change_intervals": {
        "domain_tasks": {"loss": [-2.5, -1.5], "accuracy": [low, high]}}}
    return about


def test_the_ledger_has_intervals_below_their_figures_and_says_what_is_chance():
    lines = format_result_ledger(spread(-0.1, 0.9)).splitlines()
    assert lines[4].split() == ["95", "%", "2.50–10.33", "0.05–0.15"]
    assert lines[6].split() == ["95", "%", "0.50–0.70"]
    assert lines[8].split() == ["change", "-2.00", "+0.50", "+0.50", "+0.80"]
    assert lines[9].split() == ["95", "%", "-2.50…-1.50", "-0.10…+0.90"]
    ends = {line.index(text) + len(text) for line, text in zip(
        (lines[1], lines[3], lines[4], lines[9]), ("loss", "3.00", "10.33", "-1.50"), strict=True)}
    assert len(ends) == 1, "figures and intervals end in one column"
    assert lines[-1] == "Within chance: accuracy of domain tasks (+0.50)."
    assert "Within chance" not in format_result_ledger(spread(0.1, 0.9))


def test_a_run_has_intervals_of_each_figure(make_model, small_files, tmp_path):
    recipe = override(Recipe(), mode="2", model=make_model(), max_steps=2, probe_rows=8, probe_share=0.4,
                      yardstick=True, output_dir=str(tmp_path), **small_files)
    done = read_result(run_chain(recipe))
    for entry in (done["start"], *done["stages"]):
        for role, figures in entry["probes"].items():
            for name in {"loss", "accuracy"} & figures.keys():
                low, high = entry["intervals"][role][name]
                assert low <= figures[name] <= high
    first, last = done["start"], done["stages"][-1]
    assert "change_intervals" not in first
    for role, spans in last["change_intervals"].items():
        low, high = spans["loss"]
        assert low <= last["probes"][role]["loss"] - first["probes"][role]["loss"] <= high
    assert max(map(len, format_ledger(tmp_path).splitlines())) <= 100
