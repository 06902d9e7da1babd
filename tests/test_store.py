"""The stage store: whole or not at all, once for all, and never damaged silently."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from sftbench.cli import main
from sftbench.errors import RunFailed
from sftbench.runs.stage_store import build_stage, find_stage, hash_key, lock_stage, unused_stages


def write_text(text):
    def write(place):
        (place / "model").mkdir()
        (place / "model" / "weights").write_text(text)
    return write


def test_keys_depend_on_content_alone():
    assert hash_key(a=1, b={"x": [1, 2]}) == hash_key(b={"x": [1, 2]}, a=1)
    assert hash_key(a=1) != hash_key(a=1.5) and len(hash_key(a=1)) == 20


def test_a_built_stage_is_found_and_sealed(tmp_path):
    assert find_stage(tmp_path, "k") is None
    folder = build_stage(tmp_path, "k", write_text("one"))
    assert find_stage(tmp_path, "k") == folder and (folder / "model" / "weights").read_text() == "one"
    assert list(json.loads((folder / "manifest.json").read_text())) == ["model/weights"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(place):
        (place / "half").write_text("x")
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError):
        build_stage(tmp_path, "k", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", [lambda path: path.write_text("two"), lambda path: path.unlink()])
def test_damage_is_named(tmp_path, harm):
    folder = build_stage(tmp_path, "k", write_text("one"))
    harm(folder / "model" / "weights")
    with pytest.raises(RunFailed, match="damaged.*remove"):
        find_stage(tmp_path, "k")


def test_an_unfinished_folder_of_the_same_key_is_replaced(tmp_path):
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "junk").write_text("x")
    assert find_stage(tmp_path, "k") is None
    assert not (build_stage(tmp_path, "k", write_text("one")) / "junk").exists()


def _hold(folder, started):
    with lock_stage(folder, "k"):
        started.set()
        time.sleep(60)


def test_a_lock_whose_owner_died_is_free_again(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    owner = context.Process(target=_hold, args=(tmp_path, started))
    owner.start()
    assert started.wait(30)
    with pytest.raises(TimeoutError):
        lock_stage(tmp_path, "k").acquire(timeout=0.2)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    with lock_stage(tmp_path, "k").acquire(timeout=5):
        pass


def test_unused_stages_are_listed_and_not_removed(tmp_path):
    shelf = tmp_path / ".stages"
    for key in ("used", "spare"):
        build_stage(shelf, key, write_text(key))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps({"stages": [{"key": "used"}]}))
    assert [path.name for path in unused_stages(shelf)] == ["spare"] and (shelf / "spare").exists()


def test_the_command_lists_and_removes_the_stages_beside_the_runs_of_a_folder(tmp_path, capsys):
    for key in ("used", "spare"):
        build_stage(tmp_path / ".stages", key, write_text(key))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps({"stages": [{"key": "used"}]}))
    assert main(["stages", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "1 stages" in printed and str(tmp_path / ".stages" / "spare") in printed
    assert main(["stages", str(tmp_path), "--remove"]) == 0
    assert [path.name for path in (tmp_path / ".stages").iterdir() if "lock" not in path.name] == ["used"]
    assert main(["stages", str(tmp_path / "none")]) == 2
