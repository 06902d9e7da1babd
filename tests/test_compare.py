"""Runs beside each other, from folders written by hand: figures, differences, pictures, and broken ones."""

import json
import os

import pytest

from sftbench.recipes.recipe import Recipe, override, recipe_to_dict
from sftbench.reports.comparison import (
    format_differences,
    format_won_and_lost,
    list_runs,
    summarise_run,
)
from sftbench.reports.plots import figure_png, gain_figure, loss_figure, overlay_figure
from sftbench.runs.answers import AnsweredRow, write_answers
from sftbench.workbench.changed_rows import PAGE
from sftbench.workbench.form import Form


def stage(name: str, accuracy: float, **more) -> dict:
    return {"name": name, "seconds": 10.0, "peak_memory_bytes": 5 * 10**8,
            "probes": {"domain_tasks": {"loss": 1.0, "accuracy": accuracy},
                       "general_tasks": {"accuracy": 0.8 - accuracy}}} | more


@pytest.fixture
def make(tmp_path):
    """A function that writes a run's folder from recipe values and a result."""
    def write(name: str, age: int, result: dict | None = None, **values):
        folder = tmp_path / name
        folder.mkdir()
        recipe = recipe_to_dict(override(Recipe(), **values))
        (folder / "recipe.json").write_text(json.dumps({"schema": 1, "recipe": recipe}))
        os.utime(folder / "recipe.json", (1e9 - age, 1e9 - age))
        if result:
            (folder / "result.json").write_text(json.dumps({"schema": 1, "complete": True, "state": "done",
                                                            "recipe": recipe} | result))
        return folder
    return write


DONE = {"start": {"probes": stage("", 0.0)["probes"]},
        "stages": [stage("cpt", 0.3), stage("sft", 0.7, seconds=5.5, peak_memory_bytes=6 * 10**8)]}


def test_a_run_is_one_line_of_figures(make):
    line = summarise_run(make("a", 0, DONE, mode="4", method="lora", cpt_method="full"))
    assert (line["mode"], line["method"], line["state"]) == ("4", "full, lora", "done")
    assert line["domain"] == (0.0, 0.7) and line["general"] == pytest.approx((0.8, 0.1))
    assert (line["seconds"], line["memory_bytes"]) == (15.5, 6 * 10**8)
    assert line["stages"] == ["cpt", "sft"]


def test_without_general_tasks_the_built_in_probe_counts(make):
    result = json.loads(json.dumps(DONE).replace("general_tasks", "yardstick"))
    assert summarise_run(make("a", 0, result))["general"] == pytest.approx((0.8, 0.1))


def test_runs_are_listed_newest_first_and_broken_ones_harm_none(make, tmp_path):
    make("old", 9, DONE)
    make("new", 1)
    torn = make("torn", 5)
    (torn / "result.json").write_text('{"stages": [')
    (torn / "recipe.json").write_text("[]")
    os.utime(torn / "recipe.json", (1e9 - 5, 1e9 - 5))
    (tmp_path / ".stages").mkdir()
    folders = list_runs(tmp_path)
    assert [folder.name for folder in folders] == ["new", "torn", "old"]
    lines = [summarise_run(folder) for folder in folders]
    assert [line["state"] for line in lines] == ["unfinished", "unfinished", "done"]
    assert lines[1]["domain"] is None and lines[1]["seconds"] is None


def test_differences_of_recipes_as_a_table(make):
    one, two = make("one", 0, method="lora", learning_rate=1e-3), make("two", 1, seed=2, output_dir="x")
    heading, rule, *rows = format_differences([one, two]).splitlines()
    assert heading.split() == ["recipe", "one", "two"] and set(rule) == {"-"}
    assert [row.split() for row in rows] == [
        ["method", "lora", "full"], ["learning_rate", "0.001", "None"], ["seed", "0", "2"]]
    assert format_differences([one, one]) == "Their recipes are the same."
    assert format_differences([one]) == "Choose two runs or more."


def test_the_plane_places_each_run_by_what_it_gained_and_lost(make):
    axes = gain_figure([summarise_run(make("a", 0, DONE))]).axes[0]
    (point,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((0.7, 0.7))
    assert [note.get_text() for note in axes.texts] == ["mode 2 full"]
    alike = gain_figure([summarise_run(make(name, 0, DONE)) for name in ("b", "c")]).axes[0]
    assert [note.get_text() for note in alike.texts] == ["b", "c"]


def test_no_label_of_the_plane_covers_a_point_or_another_label():
    scores = [(0.88, 0.87), (0.92, 0.74), (0.9, 0.76), (0.1, 0.0)]
    runs = [{"mode": number, "method": "full", "domain": (0, domain), "general": (0, general)}
            for number, (domain, general) in enumerate(scores)]
    figure = gain_figure(runs)
    figure.draw_without_rendering()
    axes, = figure.axes
    boxes = [note.get_window_extent() for note in axes.texts]
    points = axes.transData.transform([(-run["general"][1], run["domain"][1]) for run in runs])
    assert not any(box.count_contains(points) for box in boxes)
    assert all(box.count_overlaps(boxes) == 1 for box in boxes), "each overlaps itself alone"


def test_an_overlay_has_each_run_once_in_both_panels():
    events = [{"stage": "start", "step": 0, "plan": {"cpt": 4, "sft": 2}},
              {"stage": "cpt", "step": 2, "eval_domain_tasks_loss": 2.0, "eval_general_tasks_loss": 1.0},
              {"stage": "sft", "step": 1, "eval_domain_tasks_loss": 1.5}]
    figure = overlay_figure({"a": events, "b$x": events[:2]})
    domain, general = figure.axes
    assert [line.get_label() for line in domain.lines] == [" a", " b\\$x"]
    assert list(domain.lines[0].get_xdata()) == [2, 5] and list(general.lines[0].get_ydata()) == [1.0]
    assert domain.lines[0].get_linestyle() != domain.lines[1].get_linestyle()
    assert figure_png(figure).startswith(b"\x89PNG")


def test_the_learning_rate_is_drawn_under_the_loss():
    events = [{"stage": "start", "step": 0, "plan": {"sft": 4}}] + [
        {"stage": "sft", "step": number, "loss": 1.0, "learning_rate": number / 1000}
        for number in range(1, 5)]
    loss, rate = loss_figure(events, rates=True).axes
    assert list(rate.lines[0].get_ydata()) == [0.001, 0.002, 0.003, 0.004]
    assert len(loss_figure(events).axes) == 1


def task(number: int, score: float, answer: str) -> AnsweredRow:
    return AnsweredRow("domain_tasks", number, f"Where is item {number}?", "Oslo", answer, answer, "exact",
                       score, score, 2.0, 2)


def states(right: dict[str, set[int]], count: int = 20) -> dict:
    """Rows by state; those of the numbers in `right` are answered right."""
    return {name: {"domain_tasks": [task(number, float(number in numbers), "Oslo" if number in numbers else
                                         f"<b>{name}</b>\nnot {number}") for number in range(1, count + 1)]}
            for name, numbers in right.items()}


@pytest.fixture
def two_runs(make, tmp_path, monkeypatch):
    """The folders of two runs with answers, of which the form knows."""
    monkeypatch.setenv("SFTBENCH_RUNS", str(tmp_path))
    one, two = make("one", 0, DONE), make("two", 1, DONE)
    write_answers(one, states({"start": {1}, "cpt": {1, 2}, "sft": {2, 3, 4}}))
    write_answers(two, states({"start": {1}, "prompt alone": set(), "cpt": set(), "sft": {3}}))
    return one, two


def test_what_each_stage_won_and_lost_is_a_table(two_runs):
    heading, rule, *rows = format_won_and_lost(two_runs).splitlines()
    assert heading.split() == ["won", "and", "lost", "by", "domain", "tasks"]
    assert [row.split() for row in rows] == [
        ["one,", "cpt", "+1", "−0"], ["one,", "sft", "+2", "−1"], ["two,", "cpt", "+0", "−1"],
        ["two,", "sft", "+1", "−0"]]


def heads(part) -> list[str]:
    return [fold.children[0].description for fold in part.list.children]


def test_the_form_lists_rows_between_any_two_states_and_opens_them(two_runs):
    form = Form()
    compare = form.parts["compare"]
    compare.refresh()
    part = compare.changed
    assert [label for label, _ in part.before.options] == [
        "one, start", "one, cpt", "one, sft", "two, start", "two, prompt alone", "two, cpt", "two, sft"]
    assert (part.before.label, part.after.label) == ("one, start", "one, sft")
    assert [head.split(" · ")[0] for head in heads(part)] == ["▸ wrong → right"] * 3
    assert part.role.label == "all probes"
    part.which.value = "lost"
    assert [head.split(" · ")[2] for head in heads(part)] == ["Where is item 1?"]
    part.before.label, part.after.label = "one, sft", "two, sft"
    assert [head.split(" · ")[1] for head in heads(part)] == ["domain tasks 2", "domain tasks 4"]
    head, body = part.list.children[0].children
    assert body.children == () and body.layout.display == "none"
    head.click()
    assert body.layout.display is None
    prompt, answers = body.children[0].children
    assert prompt.value == "Where is item 2?"
    assert [[label.value for label in column.children] for column in answers.children] == [
        ["wanted", "Oslo", ""], ["one, sft", "Oslo", "right, loss 1.00"],
        ["two, sft", "<b>sft</b>\nnot 2", "wrong, loss 1.00"]]
    assert form.status.label.value == ""


def test_long_lists_are_shown_in_pieces_and_states_that_are_gone_are_replaced(two_runs):
    form = Form()
    compare = form.parts["compare"]
    compare.refresh()
    part = compare.changed
    part.which.value = "wrong"
    assert len(part.list.children) == PAGE and part.more.layout.display is None
    part.more.click()
    assert len(part.list.children) == 17 and part.more.layout.display == "none"
    part.after.label = "two, sft"
    compare.marks["two"].value = False
    assert part.after.label == "one, sft" and len(part.after.options) == 3
    compare.marks["one"].value = False
    assert compare.chosen_part.layout.display == "none"


def test_a_run_without_answers_has_no_list(make, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTBENCH_RUNS", str(tmp_path))
    make("old", 0, DONE)
    form = Form()
    form.parts["compare"].refresh()
    assert form.parts["compare"].changed.widget.layout.display == "none"
    assert form.status.label.value == ""
