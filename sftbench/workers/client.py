"""A run in a process of its own, which outlives tab and kernel: start it, look at it, stop it, let it go on.

All is by the run's folder, so any other process can do the same. Nothing here loads torch; the process itself
is `service`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import send_handle
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
    detach_lock,
    host_name,
    live_owner,
    read_owner_record,
    request_stop,
    update_owner_record,
)

LOG = "worker.log"
SILENT = "its process ended without a word"
SOFT, HARD = 1.0, 5.0  # seconds from the flag to the first signal, and from the second signal to SIGKILL


class HelperProcess:
    """A process started ahead: it loads the libraries while the user still chooses, and answers questions.

    It ends when this process does, unless a run was handed to it; a run goes on by itself.
    """

    def __init__(self, log: Path | None = None):
        self.log = open(log, "w+b") if log else tempfile.TemporaryFile()
        self.connection, theirs = Pipe()
        home = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        # Not a multiprocessing.Process: at this process's exit that is waited for or killed, and it imports
        # the user's script anew. -P: no file of the current folder may take the place of a library.
        self.command = [sys.executable, "-P", "-m", "sftbench.workers.server", str(theirs.fileno())]
        self.child = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
            pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": path})
        theirs.close()
        self.taken, self._number = False, 0
        self._asking, self._sending = threading.Lock(), threading.Lock()
        threading.Thread(target=self.child.wait, daemon=True).start()  # collects it, whenever it ends

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
        with self._asking:
            if self.taken:
                return _error("Died", "the process has become a run")
            self._number, until = self._number + 1, time.monotonic() + timeout
            try:
                with self._sending:
                    send_message(self.connection, {**request, "number": self._number, "cwd": os.getcwd()})
                while self.connection.poll(max(0.0, until - time.monotonic())):
                    reply = receive_message(self.connection)
                    if reply["number"] == self._number:  # else a late answer to an earlier question
                        return reply["answer"]
            except (EOFError, OSError):
                self.log.seek(0)
                return _error("Died", _tail_of(self.log.read()) or "the process is gone")
            return _error("Timeout", f"no answer within {timeout:g} s")

    def hand_over(self, recipe: Recipe) -> None:
        """Let the process run this recipe from now on, by itself; an answer on its way is dropped.

        The folder's lock travels with it, so that the folder is owned at every moment. Where the process is
        gone, the lock is freed and the folder's state is `killed`.
        """
        self.taken = True
        with detach_lock(recipe.output_dir) as lock, self._sending, contextlib.suppress(OSError):
            send_message(self.connection, {"run": recipe_to_dict(recipe), "cwd": os.getcwd()})
            send_handle(self.connection, lock.fileno(), self.child.pid)
        self.log.close()

    def close(self) -> None:
        """End the process, unless it has become a run."""
        if not self.taken:
            self.child.kill()
            self.child.wait()
            self.log.close()


def send_message(connection: Connection, message: dict) -> None:
    """Send a dict through a pipe, as JSON: unpickling an answer could load torch into the user's kernel."""
    connection.send_bytes(json.dumps(message).encode())


def receive_message(connection: Connection) -> dict:
    """The next dict that was sent through a pipe, waited for; raises EOFError where the other end is gone."""
    return json.loads(connection.recv_bytes())


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
    update_owner_record(folder, pid=helper.child.pid, group=True, recipe=recipe_to_dict(recipe))
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
    return one is not None and (one["pid"], one["host"]) == (other["pid"], other["host"])


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
    live = live_owner(folder)
    record = read_owner_record(folder)  # second: the record of a free folder is final
    if live:
        return _said("stopping" if (folder / FLAG).exists() else live.get("state", "preparing"), "", True)
    if record and "ended" in record:
        return _said(record["ended"]["state"], record["ended"].get("message", ""))
    if record:
        with contextlib.suppress(OSError):
            return _said("killed", _tail_of((folder / LOG).read_bytes()) or SILENT)
        return _said("killed", SILENT)
    if result := _result_of(folder):
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
