"""A run's folder: events, results, progress."""

import json

import pytest

from sftbench.runs.events import append_event, format_duration, read_events, run_progress
from sftbench.runs.folder import find_run, new_run_folder, read_result, write_json
from tests.conftest import bad_input


def test_events_are_whole_lines_with_null_for_what_is_no_number(tmp_path):
    append_event(tmp_path, {"stage": "cpt", "step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert event["loss"] is None and event["grad_norm"] is None and event["time"] > 1e9


def test_torn_and_foreign_lines_are_passed_over(tmp_path):
    append_event(tmp_path, {"stage": "cpt", "step": 1})
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('[1, 2]\n{"foreign": true}\n{"stage": "cpt", "st')
    assert [event["step"] for event in read_events(tmp_path)] == [1]
    assert read_events(tmp_path / "nowhere") == []


@pytest.mark.parametrize(("text", "name"), [
    (None, "result.json"), ('{"schema": 1, "comp', "result.json"), ('{"schema": 2}', "result.json"),
    ('{"schema": 1, "complete": false, "state": "stopped"}', ""),
])
def test_only_a_complete_known_result_counts(tmp_path, text, name):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with bad_input(where=tmp_path / name):
        read_result(tmp_path)


def test_json_is_written_in_one_move_and_refuses_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def event(stage, step, time, **more):
    return {"stage": stage, "step": step, "time": time, **more}


def test_progress_tells_share_and_time_left():
    plan = {"cpt": 30, "sft": 10}
    assert run_progress([])["share"] == 0
    events = [event("start", 0, 0, plan=plan), event("cpt", 0, 100, steps=30), event("cpt", 20, 110, loss=1)]
    now = run_progress(events, now=110)
    assert now["share"] == 0.5 and now["seconds_left"] == pytest.approx(10)
    assert now["text"] == "cpt: 20 of 40 steps of all stages"


def test_stages_from_the_store_cost_no_time():
    events = [event("start", 0, 0, plan={"cpt": 30, "sft": 10}),
              *(event("cpt", step, 1, loss=1, reused=True) for step in range(31)),
              event("sft", 0, 10, steps=10), event("sft", 5, 15, loss=1)]
    now = run_progress(events, now=15)
    assert now["share"] == pytest.approx(35 / 40) and now["seconds_left"] == pytest.approx(5)


def test_the_pause_of_a_stopped_run_is_no_time_of_training():
    events = [event("start", 0, 0, plan={"sft": 20}), event("sft", 0, 10),
              *(event("sft", step, 10 + step, loss=1) for step in range(1, 6))]
    assert run_progress(events, now=16)["seconds_left"] == pytest.approx(18)  # 6 seconds for 5 steps
    assert run_progress(events, now=5000)["seconds_left"] == pytest.approx(18)
    events += [event("sft", 5, 5000, resumed=True), event("sft", 6, 5001, loss=1)]
    assert run_progress(events, now=5001)["seconds_left"] == pytest.approx(14)


def test_a_run_is_found_by_its_path_or_by_its_name_where_runs_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/demo", "runs/both", "both", "runs/no_run"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("runs/demo", "runs/both"):
        (tmp_path / folder / "recipe.json").touch()
    assert [find_run(name).as_posix() for name in ("runs/demo", "demo", "both", "no_run", "none")] == [
        "runs/demo", "runs/demo", "both", "no_run", "none"]


@pytest.mark.parametrize(("seconds", "text"), [
    (None, "?"), (8.4, "8 s"), (80, "1 min 20 s"), (7500, "2 h 5 min"),
])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_new_folders_are_new(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTBENCH_RUNS", str(tmp_path))
    first = new_run_folder("2", "full", None)
    first.mkdir()
    assert new_run_folder("2", "full", None) != first and first.parent == tmp_path
    assert new_run_folder("2", "full", "x/y").as_posix() == "x/y"


def test_a_file_in_place_of_a_run_is_refused_wherever_a_run_is_named(tmp_path):
    (tmp_path / "result.json").touch()
    with bad_input(where=tmp_path / "result.json"):
        find_run(tmp_path / "result.json")
    assert find_run(tmp_path) == tmp_path and find_run(tmp_path / "new") == tmp_path / "new"
