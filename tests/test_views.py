"""What a person sees: ledger, pictures, live view, look, answers."""

import io
import re

import pytest
from matplotlib.image import imread

from sftbench.recipes.recipe import Recipe, override
from sftbench.reports import progress
from sftbench.reports.ledger import COLUMNS, format_ledger, format_result_ledger
from sftbench.reports.plots import COLOURS, _smooth, figure_png, loss_figure
from sftbench.reports.progress import LivePlot
from sftbench.reports.text import ask_probes, format_recipe, look_at_data
from sftbench.runs.folder import write_json
from sftbench.training.chain import run_chain
from sftbench.training.prepare import prepare_recipe


def result(**last) -> dict:
    first = {"domain_tasks": {"loss": 3.0, "accuracy": 0.1, "f1": 0.2}, "general_text": {"loss": 1.0}}
    stage = {"name": "cpt", "method": "lora", "parameters": 1000, "trainable_parameters": 100, "steps": 7,
             "tokens": 12345, "seconds": 61, "reused": True,
             "probes": {"domain_tasks": {"loss": 1.0, "accuracy": 0.6, "f1": 0.7},
                        "general_text": {"loss": 1.8}} | last}
    return {"start": {"name": "base", "probes": first}, "stages": [stage]}


def test_the_ledger_lines_up_and_says_gain_and_loss():
    lines = format_result_ledger(result()).splitlines()
    assert lines[0].split() == ["domain", "tasks", "general", "text"]
    assert lines[1].split() == ["probe", "after", "loss", "accuracy", "f1", "loss"]
    assert lines[3].split() == ["start", "(base)", "3.00", "0.10", "0.20", "1.00"]
    assert lines[6].split() == ["change", "-2.00", "+0.50", "+0.50", "+0.80"]
    assert len({len(line) for line in lines[:7]}) == 1
    table = lines[8:lines.index("", 8)]
    costs = dict(re.split(r"\s{2,}", line.strip()) for line in table if "--" not in line)
    assert costs == {"stage": "cpt", "method": "lora", "parameters": "1,000", "trained": "100 (10.0%)",
                     "steps": "7", "tokens": "12,345", "time": "1 min 1 s", "from the store": "yes"}
    assert "10% of the probe's questions answered exactly as wanted before, 60% after" in lines[-2]
    assert "1.00 -> 1.80 nats per token; it rose" in lines[-1]
    little = format_result_ledger(result(general_text={"loss": 1.01}))
    assert "it rose by 0.01: little was forgotten" in little, "a small loss is reported as well"
    assert "it rose by 0.80: so much was forgotten" in lines[-1]
    assert "it hardly changed" in format_result_ledger(result(general_text={"loss": 1.0}))
    assert "it fell" in format_result_ledger(result(general_text={"loss": 0.9}))


def test_table_and_sentence_round_the_same_number_alike():
    text = format_result_ledger(result(domain_tasks={"loss": 0.125, "accuracy": 0.075, "f1": 0.285}))
    assert text.splitlines()[4].split()[1:4] == ["0.13", "0.08", "0.29"]
    assert text.splitlines()[6].split()[1:4] == ["-2.88", "-0.03", "+0.09"]
    assert "8% after" in text


def test_the_ledger_names_the_rows_of_each_probe_and_which_are_few(tmp_path):
    write_json(tmp_path / "result.json", {"schema": 1, "complete": True, **result(), "recipe": {
        "mode": "2", "probe_rows": 200}} | {"start": {**result()["start"], "model": "pocket"}})
    assert "At most 200 rows of each probe" in format_ledger(tmp_path), "a folder without their number"
    write_json(tmp_path / "recipe.json", {"schema": 1, "data": {
        "domain_tasks": {"probe_rows": 200}, "general_text": {"probe_rows": 1}}})
    text = format_ledger(tmp_path)
    assert text.startswith("Mode 2 from pocket\nRows scored: domain tasks 200, general text 1\n")
    assert text.endswith("too few probe rows to tell a change from chance: general text (1).")


def test_a_forecast_stands_beside_what_was_used(tmp_path):
    stage = result()["stages"][0] | {"reused": False, "peak_memory_bytes": 2 * 10**9}
    forecast = {"stages": {"cpt": {"seconds": 59, "peak_memory_bytes": 15 * 10**8}}}
    text = format_result_ledger(result() | {"stages": [stage], "forecast": forecast})
    assert re.search(r"time +1 min 1 s\n  forecast +59 s\nmemory +2.00 GB\n  forecast +1.50 GB\n", text)


def test_a_ledger_of_all_probes_stays_within_the_page():
    probes = {role: dict.fromkeys(("loss", "accuracy", "f1"), 100.0) for role in COLUMNS}
    yardstick = {"yardstick": {"loss": 1.0, "accuracy": 0.5, "accuracy_en": 0.5, "accuracy_zh": 0.5}}
    stages = [stage | {"name": f"{number} a stage of a mode with a long name", "probes": probes | yardstick}
              for number, stage in enumerate(result()["stages"] * 5)]
    start = {"name": "base", "probes": probes | yardstick}
    lines = format_result_ledger({"start": start, "stages": stages}).splitlines()
    assert max(map(len, lines)) <= 100 and all(line == line.rstrip() for line in lines)
    assert [word for line in lines for word in line.split()].count("yardstick") == 1


def events(steps: int = 20) -> list[dict]:
    made = [{"stage": "start", "step": 0, "time": 0, "plan": {"cpt": steps, "domain_sft": steps}},
            {"stage": "start", "step": 0, "time": 1, "eval_domain_tasks_loss": 5.0}]
    for offset, stage in enumerate(("cpt", "domain_sft")):
        made.append({"stage": stage, "step": 0, "steps": steps, "time": 2, "eval_domain_tasks_loss": 9.0})
        made += [{"stage": stage, "step": step, "time": 3 + offset * steps + step, "loss": 5 / step}
                 for step in range(1, steps + 1)]
        made.append({"stage": stage, "step": steps, "time": 9, "eval_domain_tasks_loss": 1.0})
    return made


def test_the_curve_holds_every_series_and_names_the_stages():
    figure = loss_figure(events())
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["training (thin: each step)", "domain tasks, held out"]
    assert [text.get_text() for text in axes.texts] == ["cpt", "domain sft"] and axes.get_xlim() == (0, 40)
    probe = next(line for line in axes.get_lines() if line.get_label() == "domain tasks, held out")
    assert list(probe.get_xdata()) == [0, 20, 40] and list(probe.get_ydata()) == [5.0, 1.0, 1.0]
    assert probe.get_color() == COLOURS["domain"]
    assert "training 0.25" in figure.get_supxlabel() and "domain tasks 1.00" in figure.get_supxlabel()
    assert imread(io.BytesIO(figure_png(figure))).shape[:2] == (480, 960)


def test_a_missing_loss_is_a_gap_and_smoothing_starts_anew_at_a_border():
    points = [(1, 4.0), (2, None), (3, 2.0), (4, 2.0), (5, 8.0)]
    smoothed = _smooth(points, {0, 4})
    assert smoothed[0] == (1, pytest.approx(4)) and (2, None) in smoothed
    assert smoothed[-1] == (5, pytest.approx(8.0)) and (4, None) in smoothed


@pytest.mark.parametrize("made", [[], events()[:1], events()[:3], events(1)])
@pytest.mark.parametrize("log", [False, True])
def test_short_and_empty_runs_draw_too(made, log):
    assert figure_png(loss_figure(made, log=log))[:4] == b"\x89PNG"


def test_live_drawing_is_at_most_once_a_second_and_two_percent(monkeypatch):
    drawn, shown = [], []

    class Handle:
        def update(self, *args, **more):
            shown.append(args[0])
    monkeypatch.setattr(progress, "_display", lambda *args, **more: Handle())
    clock = iter([number * 0.01 for number in range(100_000)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    plot = LivePlot()
    monkeypatch.setattr(plot, "draw", lambda: drawn.append(len(plot.events)))
    for event in events(400):
        plot(event)
    seconds = 806 * 0.01  # one reading of the clock an event, at least
    assert 1 <= len(drawn) <= seconds + 2
    plot({"stage": "cpt", "step": 1, "time": 9, "state": "done"})
    assert drawn[-1] == len(plot.events)


def test_the_live_line_has_state_and_time_left(monkeypatch):
    handle = type("Handle", (), {"update": lambda *args, **more: None})
    monkeypatch.setattr(progress, "_display", lambda *args, **more: handle())
    plot = LivePlot()
    plot.events = events()[:10]
    assert "of 40 steps of all stages" in plot.status() and plot.status().endswith("left")
    plot.events.append({"stage": "cpt", "step": 9, "time": 65.0, "state": "failed",
                        "message": "non-finite loss"})
    assert plot.status() == "failed after 1 min 5 s: non-finite loss"


@pytest.fixture(scope="module")
def ready(make_model, tmp_path_factory):
    import json

    from tests.conftest import small_rows
    folder, paths = tmp_path_factory.mktemp("views"), {}
    for role in ("domain_text", "domain_tasks", "general_tasks"):
        paths[role] = str(folder / f"{role}.jsonl")
        with open(paths[role], "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in small_rows(role))
    return prepare_recipe(override(Recipe(), mode="4", model=make_model(), max_steps=2, probe_rows=4,
                            learning_rate=1e-3, output_dir=str(folder / "run"), **paths))


def test_the_recipe_as_text_gives_each_value_its_reason(ready):
    text = format_recipe(ready)
    assert re.search("^learning_rate +0.001 as you set it$", text, re.M)
    assert "bnb_4bit" not in text, "of another method"
    assert "(R8)" in text and "num_train_epochs" in text and "answers end with '<eos>'" in text
    assert all(len(line) <= 100 for line in text.splitlines())
    bold = override(ready.recipe, learning_rate=5.0)
    assert format_recipe(prepare_recipe(bold)).splitlines()[-1].startswith("Warning: learning_rate 5 is ")
    assert "probe_share" not in text and "probe_share" in format_recipe(ready, everything=True)


def test_look_shows_mask_and_shares(ready):
    text = look_at_data(ready)
    tokens = text.replace("\n      ", "")
    assert "«Where" not in tokens and "<assistant>« Lisbon|<eos>»" in tokens
    assert "<user> Where is item" in tokens.replace("|", "")
    assert "% of the stage" in text and "Stage mixed_sft" in text


def test_ask_shows_the_wanted_and_the_given_answer(ready):
    before = ask_probes(ready, ready, rows=2)
    assert before.count("wanted:") == 4 and "Where is person" in before
    folder = run_chain(ready)
    assert ask_probes(folder, ready, rows=1).count("answer:") == 2
