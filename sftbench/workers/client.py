"""A run in a process of its own, which outlives tab and kernel: start it, look at it, stop it, let it go on.

All is by the run's folder, so any other process can do the same. Nothing here loads torch; the process itself
is `service`.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ..errors import BadInput
from ..recipes.modes import load_mode
from ..recipes.recipe import Recipe, override, recipe_from_dict, recipe_to_dict
from ..runs.events import read_events
from ..runs.folder import new_run_folder, read_json, runs_root
from ..runs.ownership import (
    FLAG,
    RECORD,
    claim_folder,
    host_name,
    live_owner,
    process_identity,
    read_owner_record,
    request_stop,
    update_owner_record,
)

LOG = "worker.log"
SOFT, HARD = 1.0, 5.0  # seconds from the flag to the first signal, and from the second signal to SIGKILL
_children: list[subprocess.Popen] = []  # kept so that those that ended are collected


class HelperProcess:
    """A process started ahead: it loads the libraries while the user still chooses, and answers questions.

    It ends when this process does, unless a run was handed to it; a run goes on by itself.
    """

    def __init__(self, log: Path | None = None):
        self.errors = open(log, "w+b") if log else tempfile.TemporaryFile()
        home = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        # -P: no file of the current folder may take the place of a library
        self.command = [sys.executable, "-P", "-m", "sftbench.workers.server"]
        self.child = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            encoding="utf-8", start_new_session=True, env={**os.environ, "PYTHONPATH": path})
        _children.append(self.child)
        self.ready, self.taken = threading.Event(), False
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._replies, self._asked = queue.Queue(), 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.child.stdout:
            reply = json.loads(line)
            if reply["id"] == 0:
                self.ready.set()
            else:
                self._replies.put(reply)
        self._replies.put(None)

    @property
    def free(self) -> bool:
        """Whether a run can be handed to it now: alive, and not taken."""
        return not self.taken and self.child.poll() is None

    def ask(self, request: dict, timeout: float = 120) -> dict:
        """The answer to one request, as `{"do": "look", "recipe": {…}}`, within `timeout` seconds.

        What cannot be answered comes back as `{"error": {"kind": "BadInput", "message": …}}`; kinds besides
        the errors' names are `Timeout`, `Died` for a process that is gone or has become a run, and `Dropped`
        for an answer that a run's start cut short.
        """
        with self._lock:
            if self.taken or not self._send({**request, "id": self._asked + 1}):
                return _error("Died", self._last_words())
            self._asked += 1
            until = time.monotonic() + timeout
            while True:
                try:
                    reply = self._replies.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    return _error("Timeout", f"no answer within {timeout:g} s")
                if reply is None:
                    self._replies.put(None)
                    return _error("Died", self._last_words())
                if reply["id"] == self._asked:  # a late answer to an earlier question is dropped
                    return reply["answer"]

    def hand_over(self, recipe: Recipe) -> bool:
        """Let the process run this recipe from now on, by itself; an answer on its way is dropped.

        False if it is gone.
        """
        self.taken, asked = True, self._lock.locked()
        sent = self._send({"id": -1, "run": recipe_to_dict(recipe)})
        if sent and asked and self.ready.is_set():
            self.child.send_signal(signal.SIGUSR1)
        return sent

    def _send(self, request: dict) -> bool:
        try:
            with self._writing:
                self.child.stdin.write(json.dumps({**request, "cwd": os.getcwd()}) + "\n")
                self.child.stdin.flush()
            return True
        except (OSError, ValueError):
            return False

    def _last_words(self) -> str:
        self.errors.seek(0)
        return _tail_of(self.errors.read()) or "the process is gone"

    def close(self) -> None:
        """End the process, unless it has become a run."""
        if not self.taken:
            self.child.kill()
            self.child.wait()


def start_helper() -> HelperProcess:
    """A process that loads the libraries from now on, for `start` and for questions (`Ahead.ask`)."""
    return HelperProcess()


def start_run(recipe: Recipe | dict, ahead: HelperProcess | None = None) -> Path:
    """Start the recipe's run in a process of its own and return its folder at once.

    `ahead` is taken if it is free, which saves the time to load libraries. A folder that holds a part of the
    same recipe's run goes on. Raises BadInput where a live process runs the folder; whatever else is wrong
    with the recipe's data or model, `state` tells.
    """
    recipe = recipe if isinstance(recipe, Recipe) else recipe_from_dict(recipe)
    load_mode(recipe.mode)
    folder = new_run_folder(recipe.mode, recipe.method, recipe.output_dir).resolve()
    recipe = override(recipe, output_dir=str(folder))
    claim_folder(folder)  # by this process for a moment: refuses before anything is started
    (folder / LOG).write_bytes(b"")
    helper = ahead if ahead is not None and ahead.free else HelperProcess(folder / LOG)
    update_owner_record(folder, **process_identity(helper.child.pid), group=True, command=helper.command,
                 recipe=recipe_to_dict(recipe))
    helper.hand_over(recipe)
    return folder


def stored_recipe(folder: Path | str) -> Recipe:
    """The recipe of a run's folder, as resolved, or as given where it stopped before that."""
    folder = Path(folder)
    record = read_owner_record(folder) or {}
    if not (folder / "recipe.json").exists() and "recipe" in record:
        return override(recipe_from_dict(record["recipe"]), output_dir=str(folder))
    return override(recipe_from_dict(read_json(folder, "recipe.json")["recipe"]), output_dir=str(folder))


def resume_run(folder: Path | str, ahead: HelperProcess | None = None) -> Path:
    """Let a run that was stopped, killed or failed go on, as `start` does with its recipe."""
    return start_run(stored_recipe(folder), ahead)


def stop_run(folder: Path | str, patience: float = 30) -> dict:
    """Stop the run in a folder, whoever started it, and return its `state` then.

    First a flag, seen after every step; then SIGTERM, and after `patience` seconds once more, which ends
    even a step that hangs; SIGKILL last. A run inside a notebook's kernel or a terminal is never killed.
    """
    folder, began = Path(folder), time.monotonic()
    record = live_owner(folder)
    if not request_stop(folder):
        return run_state(folder)
    steps = [(SOFT, signal.SIGTERM), (max(patience, SOFT), signal.SIGTERM),
             (max(patience, SOFT) + HARD, signal.SIGKILL)]
    while _same(live_owner(folder), record) and steps:
        if time.monotonic() - began > steps[0][0]:
            _signal(record, steps.pop(0)[1])
        time.sleep(0.05)
    until = time.monotonic() + HARD
    while _same(live_owner(folder), record) and time.monotonic() < until:
        time.sleep(0.05)
    return run_state(folder)


def _same(one: dict | None, other: dict | None) -> bool:
    return one is not None and (one["pid"], one.get("born")) == (other["pid"], other.get("born"))


def _signal(record: dict, number: int) -> None:
    """Signal a worker's whole group; of a run inside another program only its process, and gently."""
    if record["host"] != host_name():
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if record.get("group"):
            os.killpg(record["pid"], number)
        elif number == signal.SIGTERM:
            os.kill(record["pid"], signal.SIGINT)


def run_state(folder: Path | str) -> dict:
    """What a run's folder says of its run: `state`, `message` and whether its process is `alive`.

    States: none, preparing, running, stopping; done, stopped, failed; killed, where the process ended without
    a word, with the last lines of its log as message.
    """
    folder = Path(folder)
    for child in [child for child in _children if child.poll() is not None]:
        _children.remove(child)
    record = read_owner_record(folder)
    if live_owner(folder):
        return _said("stopping" if (folder / FLAG).exists() else record.get("state", "preparing"), "",
                     True)
    result = _result_of(folder)
    if record and "ended" in record:
        return _said(record["ended"]["state"], record["ended"].get("message", ""))
    if record and read_owner_record(folder):  # else it ended in order just now
        try:
            words = _tail_of((folder / LOG).read_bytes())
        except OSError:
            words = ""
        return _said("killed", words or "its process ended without a word")
    result = result or _result_of(folder)
    if result:
        return _said(result["state"], result.get("message", ""))
    last = next((event for event in reversed(read_events(folder)) if "state" in event), None)
    return _said(last["state"], last.get("message", "")) if last else _said("none", "")


def _said(state: str, message: str, alive: bool = False) -> dict:
    return {"state": state, "message": message, "alive": alive}


def _result_of(folder: Path) -> dict | None:
    if not (folder / "result.json").exists():
        return None
    try:
        result = read_json(folder, "result.json")
    except BadInput as error:
        return {"state": "none", "message": str(error)}
    return result if isinstance(result.get("state"), str) else None


def running_folders(root: Path | str | None = None) -> list[Path]:
    """The folders under `root` (default: where runs lie) that a live process runs now, newest last."""
    root = Path(root) if root else runs_root()
    found = [path.parent for path in root.glob(f"*/{RECORD}") if live_owner(path.parent)]
    return sorted(found, key=lambda folder: (folder / RECORD).stat().st_mtime)


def _tail_of(log: bytes, lines: int = 12, most: int = 2000) -> str:
    """The last lines of a log as text."""
    return "\n".join(log.decode("utf-8", errors="replace").strip().splitlines()[-lines:])[-most:]


def _error(kind: str, message: str) -> dict:
    return {"error": {"kind": kind, "message": message}}
