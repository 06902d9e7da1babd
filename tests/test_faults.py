"""What a run leaves when it is cut off, stopped, out of memory or disk; and that it goes on from there."""

import gc
import itertools
import math
import os
import shutil
import signal
import weakref

import pytest
import torch

from sftbench.errors import RunFailed, Stopped
from sftbench.evaluation import scoring
from sftbench.recipes.recipe import Recipe, override
from sftbench.runs import checkpoints, events
from sftbench.runs.checkpoints import Checkpoints, _numbered
from sftbench.runs.events import read_events
from sftbench.runs.folder import read_json, read_result, write_json
from sftbench.runs.stage_store import PARTIAL, RUN_FILE, lock_stage, unused_stages
from sftbench.training import chain
from sftbench.training.chain import run_chain
from sftbench.training.prepare import prepare_recipe
from sftbench.training.trainer import StageTrainer
from tests.conftest import bad_input, run_failed

STEPS = 5
NUMBERS = itertools.count()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder of runs shared by this module, so that the start is scored once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def folder(shelf):
    """A run's folder of this test's own."""
    return shelf / f"run_{next(NUMBERS)}"


@pytest.fixture
def recipe(make_model, folder, small_files):
    """A function from changed fields to this test's recipe: a small stage, checkpoints after every step."""
    def make(**values) -> Recipe:
        return override(Recipe(), **{
            "mode": "1", "model": make_model(), "max_steps": STEPS, "probe_rows": 4, "max_new_tokens": 2,
            "save_steps": 1, "eval_steps": 100, "pretraining_learning_rate": 1e-2,
            "seed": int(folder.name[4:]), "output_dir": str(folder), **small_files, **values})
    return make


def at(step: int, act):
    """A callback that does something when the loss of this step is told."""
    return lambda event: act() if event["step"] == step and "loss" in event else None


def steps_told(folder) -> list[int]:
    return [event["step"] for event in read_events(folder) if "loss" in event]


def partial(folder):
    """Where the checkpoints of the run's unfinished stage lie."""
    return next(path for path in (folder.parent / ".stages" / PARTIAL).iterdir()
                if (path / RUN_FILE).read_text() == str(folder))


def at_call(monkeypatch, where, name: str, call: int, act):
    """Let the call of this number to `where.name` do something else, before it has done anything."""
    real, calls = getattr(where, name), []

    def broken(*args, **more):
        calls.append(name)
        if len(calls) == call:
            act()
        return real(*args, **more)
    monkeypatch.setattr(where, name, broken)


def killed(act) -> None:
    """Call `act` in a child of this process, which is killed (SIGKILL) on the way."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(
    "point", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state", "seal_folder"])
def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(recipe, folder, monkeypatch, point):
    where, mine = checkpoints if point == "seal_folder" else StageTrainer, recipe()
    with monkeypatch.context() as patch:
        # the stage's own seal comes after those of its checkpoints
        at_call(patch, where, point, 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        killed(lambda: run_chain(mine))
    assert [path.name for path in _numbered(partial(folder))][-1] == (
        "checkpoint-2" if point == "save_model" else "checkpoint-3")
    run_chain(mine)
    said = next(event for event in read_events(folder) if "resumed" in event)
    assert said["resumed"] == "goes on from checkpoint-2"
    assert ("checkpoint-3: not whole" in said.get("passed_over", "")) == (point != "save_model")
    assert steps_told(folder) == [1, 2, 3, 4, 5]
    with pytest.raises(StopIteration):
        partial(folder)


def test_damage_to_any_file_of_a_checkpoint_is_seen(recipe, folder, tmp_path):
    with pytest.raises(Stopped):
        run_chain(recipe(), [at(2, lambda: (folder / "stop").touch())])
    place = partial(folder)
    assert [path.name for path in _numbered(place)] == ["checkpoint-2", "checkpoint-3"]
    names = [path.name for path in (place / "checkpoint-3").iterdir()]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
            "progress.json", "manifest.json"} <= set(names)
    for name in names:
        for number, harm in enumerate((lambda file: file.unlink(), lambda file: os.truncate(file, 5))):
            copy = tmp_path / f"{name}-{number}"
            shutil.copytree(place, copy)
            harm(copy / "checkpoint-3" / name)
            kept = Checkpoints(copy, None, lambda: False, [])
            assert kept.resolve() == ["checkpoint-3"] and kept.progress["step"] == 2, (name, number)
            assert not (copy / "checkpoint-3").exists()


def test_stop_saves_within_a_step_and_the_run_goes_on_with_its_whole_curve(recipe, folder):
    live, told = [], []
    with pytest.raises(Stopped, match=r"after step 2 of 5 of stage domain_sft"):
        run_chain(recipe(save_steps=None), [live.append, at(1, lambda: (folder / "stop").touch())])
    assert read_events(folder) == live and live[-1]["state"] == "stopped" and live[-1]["step"] == 2
    result = read_json(folder, "result.json")
    assert (result["complete"], result["state"]) == (False, "stopped")
    assert {path.name for path in folder.iterdir()} == {"recipe.json", "events.jsonl", "result.json",
                                                        "answers.jsonl"}
    assert partial(folder) not in unused_stages(folder.parent / ".stages")  # it is waited for
    run_chain(recipe(save_steps=None), [told.append])
    events = read_events(folder)
    assert steps_told(folder) == [1, 2, 3, 4, 5] and events == told
    before = {event["step"]: event for event in live if "loss" in event}
    assert all(event == before[event["step"]] for event in events if "loss" in event and event["step"] < 3)
    assert read_result(folder)["stages"][0]["steps"] == 5
    other = run_chain(recipe(output_dir=f"{folder}-again"))
    assert read_result(other)["stages"][0]["reused"]


def test_interrupts_stop_after_a_step_first_and_at_once_second(recipe, folder):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match="after step 2 of 5"):
        run_chain(recipe(save_steps=None), [at(1, lambda: os.kill(os.getpid(), signal.SIGINT))])
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(Stopped, match="at once"):
        run_chain(recipe(), [at(4, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])])
    assert [path.name for path in _numbered(partial(folder))] == ["checkpoint-2", "checkpoint-3"]
    run_chain(recipe())
    assert steps_told(folder) == [1, 2, 3, 4, 5]
    assert [event["resumed"][-1] for event in read_events(folder) if "resumed" in event] == ["2", "3"]


def test_a_loss_that_is_no_number_leaves_no_checkpoint_from_there_on(recipe, folder, monkeypatch):
    real, calls = StageTrainer.compute_loss, []

    def poisoned(*args, **more):
        calls.append(1)
        return real(*args, **more) * (math.nan if len(calls) == 3 else 1)
    monkeypatch.setattr(StageTrainer, "compute_loss", poisoned)
    with run_failed("non-finite", match="step 3"):
        run_chain(recipe())
    assert [path.name for path in _numbered(partial(folder))] == ["checkpoint-1", "checkpoint-2"]
    losses = [event["loss"] for event in read_events(folder) if "loss" in event]
    assert len(losses) == 3 and losses[-1] is None
    result = read_json(folder, "result.json")
    assert (result["state"], result["reason"]) == ("failed", "non-finite")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_is_said_with_remedies_and_all_is_given_back(recipe, folder, monkeypatch, error):
    held = []
    with monkeypatch.context() as patch:
        def full(self, model, *args, **more):
            held.append(weakref.ref(model))
            raise error
        patch.setattr(StageTrainer, "compute_loss", full)
        with run_failed("memory", match=r"\d GB.*smaller batch.*max_length.*lora"):
            run_chain(recipe())
    assert read_events(folder)[-1]["reason"] == "memory"
    gc.collect()
    assert held[0]() is None  # although the error is still at hand
    assert read_result(run_chain(recipe()))["state"] == "done"


def test_out_of_memory_in_a_probe_is_said_too(recipe, monkeypatch):
    at_call(monkeypatch, scoring, "answer_probe", 1, full_memory)
    with run_failed("memory", match="domain_sft at step 5"):
        run_chain(recipe())


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def full_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize(("where", "name", "call"), [
    (StageTrainer, "_save_optimizer_and_scheduler", 3), (checkpoints, "seal_folder", 3),
    (events, "append_event", 6)])
def test_a_full_disk_is_said_and_earlier_checkpoints_stay(recipe, folder, monkeypatch, where, name, call):
    with monkeypatch.context() as patch:
        at_call(patch, where, name, call, full_disk)
        with run_failed("disk"):
            run_chain(recipe())
    assert read_json(folder, "result.json")["reason"] == "disk"
    kept = Checkpoints(partial(folder), None, lambda: False, [])
    kept.resolve()
    assert kept.progress["step"] >= 2
    run_chain(recipe())
    assert steps_told(folder) == [1, 2, 3, 4, 5]


def test_a_result_that_finds_no_room_does_not_make_a_run_done(recipe, folder, monkeypatch):
    real = write_json

    def full(path, data):
        if isinstance(data, dict) and data.get("complete"):
            full_disk()
        real(path, data)
    monkeypatch.setattr(chain, "write_json", full)
    with run_failed("disk"):
        run_chain(recipe())
    assert read_json(folder, "result.json")["state"] == "failed"


def test_too_little_room_is_refused_before_anything_starts(recipe, folder, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with bad_input("output_dir", folder.parent, match=r"0\.0 GB free"):
        run_chain(recipe())
    assert not folder.exists()


def test_going_on_with_anything_else_is_refused_by_name(recipe, folder, small_files, make_model, tmp_path):
    with pytest.raises(Stopped):
        run_chain(recipe(), [at(2, lambda: (folder / "stop").touch())])
    with bad_input("output_dir", folder, match="weight_decay, seed"):
        run_chain(recipe(seed=99, weight_decay=0.1))
    with open(small_files["domain_tasks"], "a") as file:
        file.write('{"prompt": "Where is item 99?", "completion": "Rome"}\n')
    with bad_input("output_dir", folder, match="domain_tasks"):
        run_chain(recipe())
    assert len(_numbered(partial(folder))) == 2


def test_another_revision_of_the_model_is_refused(recipe, folder, tmp_path):
    moved = shutil.copytree(recipe().model, tmp_path / "model")
    with pytest.raises(Stopped):
        run_chain(recipe(model=str(moved)), [at(2, lambda: (folder / "stop").touch())])
    config = (moved / "generation_config.json")
    config.write_text(config.read_text().replace("{", '{"temperature": 0.5, ', 1))
    with bad_input("output_dir", folder, match="revision"):
        run_chain(recipe(model=str(moved)))


def test_a_stage_that_another_run_trains_is_waited_for(recipe, folder):
    key = prepare_recipe(recipe()).stages[0].key
    held = lock_stage(folder.parent / ".stages", key)
    held.acquire()
    waited = []

    def release(event):
        if "waiting" in event:
            waited.append(event)
            held.release()
    run_chain(recipe(), [release])
    assert len(waited) == 1 and waited[0]["stage"] == "domain_sft"


def test_waiting_can_be_stopped(recipe, folder):
    key = prepare_recipe(recipe()).stages[0].key
    with lock_stage(folder.parent / ".stages", key), pytest.raises(Stopped):
        run_chain(recipe(), [lambda event: (folder / "stop").touch() if "waiting" in event else None])


def test_a_folder_removed_in_mid_run_is_said(recipe, folder):
    with pytest.raises(RunFailed, match="is gone: it was removed"):
        run_chain(recipe(), [at(2, lambda: shutil.rmtree(folder))])


def test_a_folder_that_cannot_be_written_is_refused(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "one", "/proc/sftbench/run"):
        with bad_input("output_dir", folder):
            run_chain(recipe(output_dir=str(folder)))
