"""A run in a process of its own, which outlives tab and kernel: start it, see its state, stop it, resume it.

Everything goes by the run's folder, so any other process can do the same. Nothing here loads torch; the
process itself is `server`.
"""

import contextlib
import json
import os
import signal
import socket
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
from ..runs import ownership
from ..runs.events import read_events
from ..runs.folder import new_run_folder, read_json, runs_root
from ..runs.ownership import live_owner, read_owner_record

LOG = "worker.log"
NO_REASON = "its process ended without a message"
FLAG_SECONDS, KILL_SECONDS = 1.0, 5.0  # from the flag to the first signal, from the second to SIGKILL


class HelperProcess:
    """A process started ahead: it loads the libraries while the user still chooses, and answers requests.

    It ends when this process does, unless a run was handed to it; a run goes on by itself.
    """

    def __init__(self, log: Path | None = None):
        self.log = open(log, "w+b") if log else tempfile.TemporaryFile()
        self.connection, remote = Pipe()
        package = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        # Not a multiprocessing.Process: at this process's exit that is waited for or killed, and it imports
        # the user's script anew. -P: no file of the current folder may take the place of a library.
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", "sftbench.workers.server", str(remote.fileno())],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
            pass_fds=[remote.fileno()],
            # the libraries' files and the log are UTF-8, whatever the terminal is
            env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1", "PYTHONIOENCODING": ""})
        remote.close()
        self.taken, self._number = False, 0
        self._ask_lock, self._send_lock = threading.Lock(), threading.Lock()
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
        with self._ask_lock:
            if self.taken:
                return _error("Died", "the process has become a run")
            self._number, until = self._number + 1, time.monotonic() + timeout
            try:
                with self._send_lock:
                    send_message(self.connection, {**request, "number": self._number, "cwd": os.getcwd()})
                while self.connection.poll(max(0.0, until - time.monotonic())):
                    reply = receive_message(self.connection)
                    if reply["number"] == self._number:  # else a late answer to an earlier request
                        return reply["answer"]
            except (EOFError, OSError):
                self.log.seek(0)
                return _error("Died", _last_lines(self.log.read()) or "the process is gone")
            return _error("Timeout", f"no answer within {timeout:g} s")

    def hand_over(self, recipe: Recipe) -> None:
        """Let the process run this recipe from now on, by itself; an answer on its way is dropped.

        The folder's lock travels with it, so that the folder is owned at every moment. Where the process is
        gone, the lock is freed and the folder's state is `killed`.
        """
        self.taken = True
        lock = ownership.detach_lock(recipe.output_dir)
        with lock, self._send_lock, contextlib.suppress(OSError):
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
    """Wait for the next dict that is sent through a pipe; raises EOFError where the other end is gone."""
    return json.loads(connection.recv_bytes())


def start_run(recipe: Recipe | dict, helper: HelperProcess | None = None) -> Path:
    """Start the recipe's run in a process of its own and return its folder at once.

    A `helper` that is free becomes the run, which saves the time to load libraries. A folder that holds a
    part of the same recipe's run goes on. Raises BadInput where a live process runs the folder; whatever else
    is wrong with the recipe's data or model, `run_state` reports.
    """
    recipe = recipe if isinstance(recipe, Recipe) else recipe_from_dict(recipe)
    load_mode(recipe.mode)
    folder = new_run_folder(recipe.mode, recipe.method, recipe.output_dir).resolve()
    recipe = override(recipe, output_dir=str(folder))
    ownership.claim_folder(folder)  # by this process for a moment: refuses before anything is started
    (folder / LOG).write_bytes(b"")
    helper = helper if helper and helper.free else HelperProcess(folder / LOG)
    ownership.update_owner_record(folder, pid=helper.child.pid, group=True, recipe=recipe_to_dict(recipe))
    helper.hand_over(recipe)
    return folder


def stored_recipe(folder: Path | str) -> Recipe:
    """The recipe of a run's folder: as resolved, or as given where it stopped before that."""
    record = read_owner_record(folder)
    given = "recipe" in record and not Path(folder, "recipe.json").exists()
    stored = record if given else read_json(folder, "recipe.json")
    return override(recipe_from_dict(stored["recipe"]), output_dir=str(folder))


def resume_run(folder: Path | str, helper: HelperProcess | None = None) -> Path:
    """Let a run that was stopped, killed or failed go on, as `start_run` does with its recipe."""
    return start_run(stored_recipe(folder), helper)


def stop_run(folder: Path | str, patience: float = 30) -> dict:
    """Stop the run in a folder, whoever started it, and return its `run_state` then.

    First a flag, seen after every step; then SIGTERM, and after `patience` seconds once more, which ends
    even a step that hangs; SIGKILL last. A run inside a notebook's kernel or a terminal is never killed.
    """
    folder, began, patience = Path(folder), time.monotonic(), max(patience, FLAG_SECONDS)
    if owner := live_owner(folder):
        (folder / ownership.FLAG).touch()
        for number, seconds in ((signal.SIGTERM, FLAG_SECONDS), (signal.SIGTERM, patience),
                                (signal.SIGKILL, patience + KILL_SECONDS)):
            if not _wait_for_end(folder, owner, began + seconds):
                _signal_owner(owner, number)
        _wait_for_end(folder, owner, time.monotonic() + KILL_SECONDS)
    return run_state(folder)


def _wait_for_end(folder: Path, owner: dict, until: float) -> bool:
    """Whether the owner stops running the folder before this moment."""
    while (now := live_owner(folder)) and (now["pid"], now["host"]) == (owner["pid"], owner["host"]):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _signal_owner(owner: dict, number: int) -> None:
    """Signal a worker's group; of a run inside another program only its process, and only by SIGINT."""
    if owner["host"] != socket.gethostname():
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if owner.get("group"):
            os.killpg(owner["pid"], number)
        elif number == signal.SIGTERM:
            os.kill(owner["pid"], signal.SIGINT)


def run_state(folder: Path | str) -> dict:
    """What a run's folder states of its run: `state`, `message` and whether its process is `alive`.

    States: none, preparing, running, stopping; done, stopped, failed; killed, where the process ended without
    a message of its own, with the last lines of its log as message.
    """
    folder = Path(folder)
    owner = live_owner(folder)
    record = read_owner_record(folder)  # second: the record of a free folder is final
    if owner:
        stopping = (folder / ownership.FLAG).exists()
        end = {"state": "stopping" if stopping else owner.get("state", "preparing")}
    elif record:
        log = (folder / LOG).read_bytes() if (folder / LOG).exists() else b""
        end = record.get("ended") or {"state": "killed", "message": _last_lines(log) or NO_REASON}
    elif (folder / "result.json").exists():
        try:
            end = read_json(folder, "result.json")
        except BadInput as error:
            end = {"message": str(error)}
    else:
        end = next((event for event in reversed(read_events(folder)) if "state" in event), {})
    return {"state": end.get("state", "none"), "message": end.get("message", ""), "alive": bool(owner)}


def running_folders(root: Path | str | None = None) -> list[Path]:
    """The folders under `root` (default: where runs lie) that a live process runs now, newest last."""
    records = [path for path in Path(root or runs_root()).glob(f"*/{ownership.RECORD}")
               if live_owner(path.parent)]
    return [path.parent for path in sorted(records, key=lambda path: path.stat().st_mtime)]


def _last_lines(log: bytes) -> str:
    """The last 12 lines of a log as text, at most 2000 characters."""
    return "\n".join(log.decode("utf-8", errors="replace").strip().splitlines()[-12:])[-2000:]


def _error(kind: str, message: str) -> dict:
    return {"error": {"kind": kind, "message": message}}
