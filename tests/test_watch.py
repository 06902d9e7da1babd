"""A run as it goes on: stages, last values, ledger so far, a terminal's line, from events written by hand."""

import io
import sys
import time

import pytest

from sftbench.reports import progress
from sftbench.reports.ledger import format_partial_ledger
from sftbench.reports.progress import show_progress
from sftbench.runs.events import (
    append_event,
    describe_activity,
    format_last_values,
    stage_progress,
    tokens_per_second,
)
from sftbench.runs.ownership import FLAG

PLAN = {"stage": "start", "step": 0, "time": 0.0, "plan": {"cpt": 4, "sft": 2}}
SCORED = {"stage": "start", "step": 0, "time": 1.0, "eval_domain_tasks_loss": 3.0,
          "eval_domain_tasks_accuracy": 0.1, "eval_general_text_loss": 2.0}


def step(stage: str, number: int, **more) -> dict:
    return {"stage": stage, "step": number, "time": 10.0 + number, "loss": 2.0, "learning_rate": 1e-3,
            "tokens": 100 * number, "memory_bytes": 5 * 10**8, **more}


def states(events, alive=True):
    return [(stage["name"], stage["done"], stage["total"], stage["state"])
            for stage in stage_progress(events, alive)]


def test_each_stage_has_its_state():
    assert stage_progress([]) == []
    assert states([PLAN]) == [("cpt", 0, 4, "waiting"), ("sft", 0, 2, "waiting")]
    going = [PLAN, step("cpt", 1), step("cpt", 2)]
    assert states(going) == [("cpt", 2, 4, "training"), ("sft", 0, 2, "waiting")]
    assert states(going, alive=False)[0] == ("cpt", 2, 4, "stopped")
    later = [PLAN, step("cpt", 3, reused=True), step("sft", 2)]
    assert states(later) == [("cpt", 4, 4, "from the store"), ("sft", 2, 2, "done")]


def test_what_a_run_does_in_words():
    assert describe_activity([]) == ""
    assert describe_activity([PLAN]) == "scoring the start model"
    assert describe_activity([PLAN, SCORED]) == "training" == describe_activity([PLAN, step("cpt", 2)])
    assert describe_activity([PLAN, step("cpt", 4)]) == "scoring after cpt"
    waiting = {"stage": "sft", "step": 0, "waiting": True}
    assert describe_activity([PLAN, waiting]) == "waiting for another run that trains this stage"


def test_speed_is_of_the_stage_that_trains_and_not_of_the_store():
    assert tokens_per_second([PLAN, step("cpt", 1)]) is None
    assert tokens_per_second([PLAN, step("cpt", 1), step("cpt", 3)]) == pytest.approx(100)
    assert tokens_per_second([PLAN, step("cpt", 1, reused=True), step("cpt", 2, reused=True)]) is None
    later = [PLAN, step("cpt", 9), step("sft", 1), step("sft", 2, tokens=400)]
    assert tokens_per_second(later) == pytest.approx(300)


def test_last_values_in_words():
    assert format_last_values([PLAN]) == ""
    assert format_last_values([PLAN, step("cpt", 1), step("cpt", 2)]) == (
        "loss 2.000 · learning rate 0.001 · 100 tokens/s · 0.50 GB")
    assert format_last_values([PLAN, step("cpt", 1, loss=None)]).startswith("loss is no number")


def test_the_ledger_fills_as_stages_end_and_passes_over_scores_within_them():
    assert format_partial_ledger([PLAN]) == ""
    start = format_partial_ledger([PLAN, SCORED]).splitlines()
    assert [line.split() for line in start[-1:]] == [["start", "3.00", "0.10", "2.00"]]
    within = [{"stage": "cpt", "step": 0, "steps": 4, "eval_domain_tasks_loss": 9.0},
              {"stage": "cpt", "step": 2, "eval_domain_tasks_loss": 8.0}]
    assert format_partial_ledger([PLAN, SCORED, *within]).splitlines() == start
    ended = SCORED | {"stage": "cpt", "step": 4, "eval_domain_tasks_accuracy": 0.35}
    lines = format_partial_ledger([PLAN, SCORED, *within, ended]).splitlines()
    assert lines[-1].split() == ["change", "+0.00", "+0.25", "+0.00"] and lines[-3].startswith("cpt")


class Terminal(io.StringIO):
    """Text that is written to a terminal, or to a log."""

    def __init__(self, is_terminal: bool):
        super().__init__()
        self.isatty = lambda: is_terminal


FORECAST = {"steps": {"cpt": 4, "sft": 2}, "seconds": 9, "probe_seconds": 1, "fits": None,
            "stages": dict.fromkeys(("cpt", "sft"), {"seconds": 4, "memory": {}, "peak_memory_bytes": None})}


def begun() -> dict:
    """The event by which a run begins now."""
    return PLAN | {"time": time.time() + 60, "forecast": FORECAST, "warnings": ["too bold"]}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_one_line_in_a_terminal_and_a_few_in_a_log(is_terminal, tmp_path, monkeypatch):
    out, err = Terminal(is_terminal), Terminal(is_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(progress, "READ_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)

    def wait_for(text: str) -> None:
        for _ in range(1000):
            if text in out.getvalue():
                return
            time.sleep(0.01)
        pytest.fail(f"{text!r} not in {out.getvalue()!r}")

    append_event(tmp_path, PLAN | {"time": 1.0, "forecast": {}, "warnings": ["of an earlier life"]})
    with show_progress(tmp_path):
        wait_for("loading libraries")
        append_event(tmp_path, begun())
        append_event(tmp_path, {"stage": "cpt", "step": 3, "loss": 1.25})
        wait_for("[##########..........]  50%")
        (tmp_path / FLAG).touch()
        wait_for("Ctrl-C once more")
    text = out.getvalue()
    assert "loss 1.25, cpt: 3 of 6 steps" in text
    assert text.count("Time: 9 s") == text.count("Ctrl-C once more") == 1
    assert err.getvalue().strip() == "warning: too bold"
    assert ("\r" in text) == is_terminal, "a log has lines only"
    assert text.lstrip("\r").startswith("[....................]   0%  loading libraries, model and data")


def test_a_run_of_a_moment_shows_its_forecast_and_warnings_too(tmp_path, capsys):
    with show_progress(tmp_path):
        append_event(tmp_path, begun())
    out, err = capsys.readouterr()
    assert "Time: 9 s" in out and "warning: too bold" in err
    with show_progress(tmp_path, warn=False):
        append_event(tmp_path, begun())
    assert "too bold" not in capsys.readouterr().err
