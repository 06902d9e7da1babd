"""Signals that stop a run: from the terminal's end, a scheduler or `kill`, to real processes in mid stage."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sftbench.cli import main
from sftbench.distributed import STOP_SIGNALS
from sftbench.errors import Stopped
from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.events import read_events
from sftbench.runs.folder import read_json, read_result
from sftbench.runs.ownership import StopSignal, catch_stops
from sftbench.training.chain import run_chain
from sftbench.workers.client import run_state, start_run

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SFTBENCH = [sys.executable, "-m", "sftbench"]
HUP, USR1, XCPU, TERM = signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU, signal.SIGTERM


@pytest.fixture(autouse=True)
def heeded():
    """The signals heeded, as processes inherit which ones are not: of tests under nohup, SIGHUP."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS
              if number != signal.SIGINT}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def values(make_model, small_files):
    """A recipe of one stage, long enough to be stopped on its way."""
    return {"model": make_model(), "probe_rows": 4, "max_new_tokens": 2, "eval_steps": 1000,
            "pretraining_learning_rate": 1e-3, "num_train_epochs": 60.0, "per_device_train_batch_size": 1,
            "packing": False, "max_steps": 200, **small_files}


def words(values: dict, folder: Path) -> list[str]:
    pairs = [word for name, value in values.items() for word in ("-p", name, str(value))]
    return ["run", "1", *pairs, "--out", str(folder)]


def losses(folder: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in read_events(folder) if "loss" in event}


def wait_for_step(folder: Path, step: int, process: subprocess.Popen | None = None) -> None:
    """Wait until the run in `folder` has done this step."""
    until = time.monotonic() + 120
    while max(losses(folder), default=0) < step:
        assert time.monotonic() < until and (process is None or process.poll() is None), "no such step"
        time.sleep(0.02)


def started(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=ENVIRONMENT)


@pytest.mark.slow
def test_each_of_these_signals_stops_with_a_checkpoint_and_the_end_is_that_of_an_uninterrupted_run(
        values, tmp_path):
    folder, reached = tmp_path / "stopped" / "run", 0
    for command, signals in ((words(values, folder), [HUP, HUP]), (["resume", str(folder)], [USR1]),
                             (["resume", str(folder)], [XCPU, XCPU, TERM])):
        process = started([*SFTBENCH, *command])
        wait_for_step(folder, reached + 10, process)
        for number in signals:
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and f"go on with: sftbench resume {folder}" in said
        assert read_json(folder, "result.json")["state"] == "stopped"
        assert f"stopped after step {max(losses(folder))} of 200" in said and "Traceback" not in said
        assert list(losses(folder)) == list(range(1, max(losses(folder)) + 1))
        assert max(losses(folder)) >= reached + 10, "the last signal's checkpoint was taken up"
        reached = max(losses(folder))
    assert main(["resume", str(folder)]) == 0
    whole = run_chain(override(Recipe(), mode="1", **values, output_dir=str(tmp_path / "whole" / "run")))
    assert losses(folder) == pytest.approx(losses(whole), abs=1e-6)
    one, other = (read_result(path)["stages"][0]["probes"] for path in (folder, whole))
    assert one == other and not read_result(whole)["stages"][0]["reused"]


@pytest.mark.slow
def test_under_nohup_a_run_survives_the_terminals_end_and_a_scheduler_still_stops_it(values, tmp_path):
    process = started(["nohup", *SFTBENCH, *words(values, tmp_path / "run")])
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(HUP)
    wait_for_step(tmp_path / "run", 15, process)
    assert run_state(tmp_path / "run")["state"] == "running"
    process.send_signal(USR1)
    process.communicate(timeout=60)
    assert process.returncode == 130 and run_state(tmp_path / "run")["state"] == "stopped"


@pytest.mark.slow
def test_as_a_terminal_ends_its_run_stops_with_a_checkpoint_and_one_in_a_worker_goes_on(values, tmp_path):
    """The terminal is a real one: it hangs up, and whatever is then written to it fails."""
    recipe = override(Recipe(), mode="1", **values | {"seed": 1},
                      output_dir=str(tmp_path / "worker" / "run"))
    code = (f"from sftbench.cli import main; from sftbench.workers.client import start_run; "
            f"from sftbench.recipes.recipe import Recipe\nstart_run({recipe!r})\n"
            f"main({words(values, tmp_path / 'mine' / 'run')!r})")
    child, terminal = pty.fork()
    if not child:  # its process leads a session whose terminal this is
        os.execve(sys.executable, [sys.executable, "-c", code], ENVIRONMENT)
    for name in ("worker", "mine"):
        wait_for_step(tmp_path / name / "run", 2)
    os.close(terminal)
    os.waitpid(child, 0)
    stopped = read_json(tmp_path / "mine" / "run", "result.json")
    assert stopped["state"] == "stopped" and stopped["message"].startswith("stopped after step")
    wait_for_step(tmp_path / "worker" / "run", 200)
    until = time.monotonic() + 60
    while run_state(tmp_path / "worker" / "run")["alive"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert run_state(tmp_path / "worker" / "run") == {"state": "done", "message": "", "alive": False}


@pytest.mark.slow
@pytest.mark.parametrize("number", [HUP, USR1])
def test_torchrun_passes_the_signal_on_and_all_its_processes_stop_together(values, tmp_path, number):
    folder = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
              "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
              "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "-m", "sftbench"]
    process = started(["nohup", *launch, *words(values, folder)])
    wait_for_step(folder, 3, process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, said = process.communicate(timeout=90)
    assert not psutil.wait_procs(ranks, timeout=10)[1]
    assert run_state(folder)["state"] == "stopped", said
    reached = max(losses(folder))
    checkpoints = [path.name for path in (tmp_path / ".stages" / ".partial").glob("*/checkpoint-*")]
    assert checkpoints == [f"checkpoint-{reached}"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [HUP, TERM])
def test_a_headless_notebook_stops_its_run_with_a_checkpoint(values, tmp_path, number):
    command = words(values, tmp_path / "run")
    process = started([*SFTBENCH, "notebook", *command[1:]])
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and f"go on with: sftbench resume {tmp_path / 'run'}" in said
    assert read_json(tmp_path / "run", "result.json")["message"].startswith("stopped after step")


@pytest.mark.slow
@pytest.mark.parametrize("number", [HUP, USR1])
def test_a_worker_stops_with_a_checkpoint_by_each_of_them(values, tmp_path, number):
    recipe = override(Recipe(), mode="1", **values, output_dir=str(tmp_path / "run"))
    folder = start_run(recipe)
    wait_for_step(folder, 3)
    os.kill(json.loads((folder / "worker.json").read_text())["pid"], number)
    until = time.monotonic() + 60
    while run_state(folder)["alive"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert run_state(folder)["message"].startswith("stopped after step")


def test_ignored_signals_stay_ignored_and_handlers_come_back(monkeypatch):
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with pytest.raises(Stopped), catch_stops():
            os.kill(os.getpid(), HUP)
            assert signal.getsignal(HUP) == signal.SIG_IGN
            os.kill(os.getpid(), XCPU)
        assert signal.getsignal(XCPU) == signal.SIG_DFL
        monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it, which passes the signal on
        with pytest.raises(Stopped), catch_stops():
            os.kill(os.getpid(), HUP)
    finally:
        signal.signal(HUP, before)


@pytest.mark.parametrize(("signals", "at_once"), [
    ([HUP] * 3, False), ([USR1, HUP], False), ([XCPU, TERM], False), ([USR1, TERM, HUP], False),
    ([TERM, TERM], True), ([signal.SIGINT, TERM], True), ([HUP, TERM, signal.SIGINT], True)])
def test_only_a_second_interrupt_or_sigterm_breaks_a_step_off(tmp_path, signals, at_once):
    stopped = []
    with StopSignal(tmp_path) as stop:
        stop.training = True
        assert not stop()
        for number in signals:
            try:
                os.kill(os.getpid(), number)
            except Stopped as error:
                stopped.append(str(error))
        assert stop() and (tmp_path / "stop").exists()
    assert stopped == ["stopped at once"] * at_once
