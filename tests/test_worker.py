"""Runs in processes of their own: handed over, watched, stopped, killed, gone on, outliving who began."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from sftbench.recipes.recipe import Recipe, override, recipe_to_dict
from sftbench.runs.events import EventTail, append_event, read_events
from sftbench.runs.folder import write_text
from sftbench.runs.ownership import claim_folder, live_owner, release_folder
from sftbench.workers.client import (
    HelperProcess,
    resume_run,
    run_state,
    running_folders,
    start_run,
    stop_run,
    stored_recipe,
)
from tests.conftest import bad_input

ROOT = Path(__file__).parent.parent


@pytest.fixture
def recipe(make_model, small_files, tmp_path):
    """A small recipe whose one stage takes some seconds."""
    return override(Recipe(), mode="1", model=make_model(), probe_rows=4, max_new_tokens=2, eval_steps=1000,
                    pretraining_learning_rate=1e-3, num_train_epochs=60.0, per_device_train_batch_size=1,
                    packing=False, max_steps=400, output_dir=str(tmp_path / "runs" / "one"), **small_files)


def wait(what, seconds: float = 120):
    """Wait until `what()` is true; returns what it gave."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_worker_answers_then_runs_is_killed_and_goes_on(recipe, tmp_path):
    helper = HelperProcess()
    assert helper.ask({"do": "look", "recipe": {}}, timeout=0.01)["error"]["kind"] == "Timeout"
    looked = helper.ask({"do": "look", "recipe": recipe_to_dict(recipe)})
    assert "Lisbon<eos>»" in looked["text"].replace("|", "") and looked["plan"] == {"domain_sft": 400}
    assert looked["recipe"]["max_length"] and "R8" in looked["reasons"]["learning_rate"]
    refused = helper.ask({"do": "look", "recipe": {"mode": "44"}})["error"]
    assert refused["kind"] == "BadInput" and refused["message"].startswith("unknown mode '44'")
    assert "do must be one of" in helper.ask({"do": "dance"})["error"]["message"]

    late: list[dict] = []
    asked = threading.Thread(target=lambda: late.append(helper.ask({"do": "forecast", "recipe": {}})))
    asked.start()
    time.sleep(0.5)  # the answer, of the pocket, is on its way
    folder = start_run(recipe, helper)
    asked.join()
    assert late[0]["error"]["kind"] == "Dropped"
    assert run_state(folder)["alive"] and not helper.free
    assert helper.ask({"do": "look"})["error"]["kind"] == "Died"
    with bad_input("output_dir", folder, match=str(helper.child.pid)):
        start_run(recipe)
    tail = EventTail(folder)
    wait(lambda: (tail.read(), any(event["step"] >= 3 and "loss" in event for event in tail.events))[1])
    assert run_state(folder)["state"] == "running" and running_folders(tmp_path / "runs") == [folder]
    assert json.loads((folder / "worker.json").read_text())["pid"] == helper.child.pid

    with open(folder / "worker.log", "a") as log:
        log.write("the last words\n")
    os.killpg(helper.child.pid, signal.SIGKILL)
    killed = wait(lambda: (now := run_state(folder))["state"] == "killed" and now)
    assert killed["message"].endswith("the last words")
    assert not killed["alive"] and running_folders(tmp_path / "runs") == []

    resumed = time.time()
    assert resume_run(folder) == folder
    assert run_state(folder) == {"state": "preparing", "message": "", "alive": True}
    wait(lambda: any(event["time"] > resumed and "loss" in event for event in read_events(folder)))
    stopped = stop_run(folder)
    assert stopped["state"] == "stopped" and "after step" in stopped["message"]
    assert live_owner(folder) is None
    left = {"loss.png", "worker.json", "worker.lock", "stop"}
    assert left & {path.name for path in folder.iterdir()} == set()


@pytest.mark.slow
def test_a_run_outlives_who_began_it_and_a_process_ahead_does_not(recipe, tmp_path):
    recipe = override(recipe, max_steps=20)
    code = ("import json, os, sys\nfrom sftbench.workers.client import HelperProcess, start_run\n"
            "helper = HelperProcess()\n"
            "folder = start_run(json.loads(sys.argv[1]))\n"
            "print(helper.child.pid, folder, flush=True)\nos.kill(os.getpid(), 9)")
    said = subprocess.run(
        [sys.executable, "-c", code, json.dumps(recipe_to_dict(recipe))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    pid, folder = said.split()
    tail = EventTail(Path(folder))  # as a second tab does
    wait(lambda: not run_state(folder)["alive"])
    tail.read()
    assert run_state(folder) == {"state": "done", "message": "", "alive": False}
    assert [event["step"] for event in tail.events if "loss" in event] == list(range(1, 21))
    wait(lambda: not psutil.pid_exists(int(pid)))
    wait((Path(folder) / "loss.png").exists)


@pytest.mark.slow
def test_a_stop_while_libraries_load_is_no_death(recipe):
    folder = start_run(recipe)
    assert stop_run(folder) == {"state": "stopped", "message": "stopped", "alive": False}
    assert stored_recipe(folder) == override(recipe, output_dir=str(folder))


@pytest.mark.slow
def test_what_is_wrong_with_a_recipe_is_told_by_the_folder(recipe, small_files):
    Path(small_files["domain_tasks"]).write_text('{"prompt": "a"}\n')
    folder = start_run(recipe)
    told = wait(lambda: not (now := run_state(folder))["alive"] and now)
    assert told["state"] == "failed" and "line 1" in told["message"]
    assert not (folder / "result.json").exists() and not (folder / "recipe.json").exists()
    assert stored_recipe(folder) == override(recipe, output_dir=str(folder))  # to be mended, and run again


def test_the_lock_decides_and_not_the_record(tmp_path):
    # as a run on another host, or in a container since restarted, left it
    (tmp_path / "worker.json").write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere"}))
    assert live_owner(tmp_path) is None and run_state(tmp_path)["state"] == "killed"
    claim_folder(tmp_path)
    claim_folder(tmp_path)  # again by the same process: nothing happens
    assert live_owner(tmp_path) == {"pid": os.getpid(), "host": socket.gethostname()}
    (tmp_path / "worker.json").unlink()
    assert run_state(tmp_path) == {"state": "preparing", "message": "", "alive": True}
    release_folder(tmp_path)
    assert live_owner(tmp_path) is None and list(tmp_path.iterdir()) == []


def claimer(folder, go) -> subprocess.Popen:
    """A process that waits for the file `go`, then claims the folder, reports, and lives on."""
    code = ("import sys, time, pathlib\nfrom sftbench.errors import BadInput\n"
            "from sftbench.runs.ownership import claim_folder\nprint('ready', flush=True)\n"
            "while not pathlib.Path(sys.argv[2]).exists(): pass\n"
            "try: claim_folder(sys.argv[1]); print('owns', flush=True)\n"
            "except BadInput as error: print(error, flush=True)\ntime.sleep(60)")
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(go)], stdout=subprocess.PIPE,
                            text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_of_processes_that_claim_at_once_one_gets_the_folder_and_its_death_frees_it(tmp_path):
    folder, go = tmp_path / "run", tmp_path / "go"
    claimers = [claimer(folder, go) for _ in range(4)]
    assert [one.stdout.readline() for one in claimers] == ["ready\n"] * 4
    go.touch()
    answers = [one.stdout.readline() for one in claimers]
    assert answers.count("owns\n") == 1
    owner = claimers[answers.index("owns\n")]
    assert live_owner(folder)["pid"] == owner.pid
    assert all("is being run by process" in answer for answer in answers if answer != "owns\n")
    owner.kill()
    owner.wait()
    assert live_owner(folder) is None and run_state(folder)["state"] == "killed"
    claim_folder(folder)
    assert live_owner(folder)["pid"] == os.getpid()
    release_folder(folder)
    for one in claimers:
        one.kill()
        one.communicate()


def test_stopping_what_does_not_run_leaves_no_flag(tmp_path):
    assert stop_run(tmp_path) == {"state": "none", "message": "", "alive": False}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "state"), [
    ('{"schema": 1, "complete": true, "state": "done"}', "done"),
    ('{"schema": 1, "complete": false, "state": "failed", "message": "no"}', "failed"),
    ('{"schema": 7, "state": "done"}', "none"), ('{"schema": 1, "comp', "none")])
def test_the_state_follows_the_result(tmp_path, text, state):
    (tmp_path / "result.json").write_text(text)
    assert run_state(tmp_path)["state"] == state


def test_a_tail_takes_whole_lines_and_starts_over_with_a_new_file(tmp_path):
    tail, path = EventTail(tmp_path), tmp_path / "events.jsonl"
    assert tail.read() == []
    for step in (1, 2):
        append_event(tmp_path, {"stage": "a", "step": step})
    with open(path, "a") as file:
        file.write('{"stage": "a", "st')
    assert [event["step"] for event in tail.read()] == [1, 2]
    with open(path, "a") as file:
        file.write('ep": 3}\n')
    assert [event["step"] for event in tail.read()] == [3] and len(tail.events) == 3
    write_text(path, '{"stage": "a", "step": 1}\n' * 9)
    assert len(tail.read()) == 9 and len(tail.events) == 9
    os.truncate(path, len('{"stage": "a", "step": 1}\n'))
    assert len(tail.read()) == 1 and len(tail.events) == 1
    assert tail.read() == [] and len(tail.events) == 1
