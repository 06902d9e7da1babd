"""report_to: off by default, passed on to a tracker on this machine, refused where it is not installed."""

import os
from pathlib import Path

import pytest

from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.events import read_events
from sftbench.training import prepare
from sftbench.training.chain import run_chain
from tests.conftest import bad_input


@pytest.fixture
def recipe(make_model, small_files, tmp_path):
    return override(Recipe(), mode="1", model=make_model(), max_steps=3, probe_rows=4,
                    output_dir=str(tmp_path / "run"), **small_files)


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(recipe, monkeypatch, tmp_path):
    assert recipe.report_to is None
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with bad_input("report_to", match=r"trackio .*-e '\.\[eval,track\]'"):
        run_chain(override(recipe, report_to="trackio"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_tensorboard_gets_the_losses(recipe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder = run_chain(override(recipe, report_to="tensorboard"))
    seen = EventAccumulator(str(folder / "tensorboard" / "domain_sft"))
    seen.Reload()
    told = [event["loss"] for event in read_events(folder) if "loss" in event]
    assert [point.value for point in seen.Scalars("train/loss")] == pytest.approx(told, rel=1e-5)


@pytest.mark.slow
def test_trackio_gets_the_losses_locally(recipe):
    from trackio.sqlite_storage import SQLiteStorage
    folder = run_chain(override(recipe, report_to="trackio"))
    told = [event["loss"] for event in read_events(folder) if "loss" in event]
    seen = SQLiteStorage.get_logs("sftbench", "run-domain_sft")
    assert [log["train/loss"] for log in seen if "train/loss" in log] == pytest.approx(told, rel=1e-5)
    assert list(Path(os.environ["TRACKIO_DIR"]).iterdir())
