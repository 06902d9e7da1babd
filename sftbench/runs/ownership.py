"""Which process runs a folder, and how that process is requested to stop.

The owner holds a lock on `worker.lock` for as long as it lives. The system frees it when the process ends,
however it ends, so the lock alone decides whether a folder is owned; `worker.json` beside it names the owner,
for messages and signals, and stays behind where a process was killed. To stop a run, a file `stop` is put
beside; signals come second.
"""

import contextlib
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..distributed import STOP_SIGNALS, process_count
from ..errors import BadInput, Stopped
from .folder import try_read_json, write_json

LOCK, RECORD, FLAG = "worker.lock", "worker.json", "stop"
URGENT = (signal.SIGINT, signal.SIGTERM)  # the second of these stops at once
CLAIM_SECONDS = 0.5  # for which a claim tries again, since who only looks has the lock for microseconds
UNKNOWN = {"pid": 0, "host": ""}  # an owner without a record; no host of that name is ever signalled
_locks: dict[Path, BinaryIO] = {}  # what this process owns: folder -> the open file that carries the lock


def read_owner_record(folder: Path) -> dict:
    """What `worker.json` states; empty where there is none that can be read."""
    record = try_read_json(Path(folder) / RECORD)
    return record if isinstance(record.get("pid"), int) else {}


def live_owner(folder: Path) -> dict | None:
    """The record of the live process that runs this folder, on whatever host, or None."""
    for pause in (0.001, 0.01, 0.1):
        if not _is_locked(Path(folder) / LOCK):
            return None
        if record := read_owner_record(folder):
            return record
        time.sleep(pause)  # the owner is about to write its record, or has removed it and is about to go
    return UNKNOWN


def _is_locked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(path, "rb") as lock:
        try:
            # shared, so that two who look at once do not take each other for the owner
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def claim_folder(folder: Path) -> None:
    """Make this process the one that runs `folder`, which is created if needed.

    A flag to stop that an earlier process left is removed. Raises BadInput where another live process runs
    the folder, or where it cannot be written.
    """
    folder = Path(folder).resolve()
    if folder in _locks:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock_file(folder / LOCK)
        if lock:
            (folder / FLAG).unlink(missing_ok=True)
            write_json(folder / RECORD, {"pid": os.getpid(), "host": socket.gethostname()})
    except OSError as error:
        raise BadInput(f"{folder} cannot be written ({error.strerror}); take another output_dir",
                       field="output_dir", where=str(folder)) from error
    if lock is None:
        owner = live_owner(folder) or UNKNOWN
        raise BadInput(f"{folder} is being run by process {owner['pid']} on {owner['host']}; wait for it, or "
                       f"stop it with: sftbench stop {folder}", field="output_dir", where=str(folder))
    _locks[folder] = lock


def _lock_file(path: Path) -> BinaryIO | None:
    """The file, open and locked; None where another process has locked it.

    By `flock` itself, which filelock's FileLock uses too: a FileLock cannot be handed to another process, as
    it refuses to work there and unlocks for both when the first one collects it (filelock 4.2.12).
    """
    until = time.monotonic() + CLAIM_SECONDS
    while time.monotonic() < until:
        lock = open(path, "a+b")  # writable: NFS grants an exclusive lock on no other
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                return lock  # else its owner has just removed it, and someone may have created another
        lock.close()
        time.sleep(0.01)
    return None


def detach_lock(folder: Path) -> BinaryIO:
    """Give up a folder without freeing it: the lock lies in the open file, for another process to hold."""
    return _locks.pop(Path(folder).resolve())


def attach_lock(folder: Path, descriptor: int) -> None:
    """Own a folder from now on, by the lock that another process detached and sent."""
    _locks[Path(folder).resolve()] = open(descriptor, "rb")


def update_owner_record(folder: Path, **more) -> None:
    """Add to the record of a folder that this process owns, for whoever looks at it."""
    write_json(Path(folder) / RECORD, read_owner_record(folder) | more)


def release_folder(folder: Path, ended: dict | None = None) -> None:
    """Free a folder that this process owns; with `ended` its record stays, and states how it ended."""
    folder = Path(folder).resolve()
    if folder not in _locks:
        return
    with _locks.pop(folder), contextlib.suppress(OSError):  # the record goes first: a free folder's is final
        if ended:
            update_owner_record(folder, ended=ended)
        for name in (FLAG, LOCK) if ended else (RECORD, FLAG, LOCK):
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def catch_stops(handler: Callable | None = None):
    """Give the signals that stop a run to `handler` while the block runs; None: they raise Stopped.

    Of those that this process ignored before, as SIGHUP under nohup, only Ctrl-C and SIGTERM count. Where a
    launcher started several processes all do: torchrun (torch 2.13) passes SIGHUP on in any case, and kills
    30 seconds later who is still there.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            heeded = number in URGENT or process_count() > 1 or signal.getsignal(number) != signal.SIG_IGN
            if heeded and signal.getsignal(number) is not None:  # None: a handler that Python cannot restore
                before[number] = signal.signal(number, handler or _raise_stopped)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _raise_stopped(number, frame) -> None:
    raise Stopped("stopped")


class StopSignal:
    """Whether this process's run is to stop: by the flag in its folder, or by a signal (`STOP_SIGNALS`).

    Used as a context around the run. While `training`, the first signal lets the step end and a checkpoint
    be saved; at other times, when nothing would be lost, and at the second Ctrl-C or SIGTERM, it raises
    Stopped at once. The others never do in mid step, however often they come: as a terminal ends, its system
    and its shell both send SIGHUP.
    """

    def __init__(self, folder: Path):
        self.flag, self.training, self.stopped, self.urgent = Path(folder) / FLAG, False, False, 0
        self.caught = catch_stops(self._on_signal)

    def __enter__(self):
        self.caught.__enter__()
        return self

    def __exit__(self, *_):
        self.caught.__exit__(None, None, None)

    def _on_signal(self, number, frame) -> None:
        self.stopped = True
        self.urgent += number in URGENT
        with contextlib.suppress(OSError):
            self.flag.touch()  # so that all who look at the folder see that it stops
        if not self.training or self.urgent > 1 and number in URGENT:
            raise Stopped("stopped at once" if self.training else "stopped")

    def __call__(self) -> bool:
        return self.stopped or self.flag.exists()

    def check(self) -> None:
        """Raise Stopped if the run is to stop; for places where nothing needs to be saved."""
        if self():
            raise Stopped("stopped")
