"""Whose process runs a folder, and how that process is asked to stop.

A running folder holds `worker.json`: host, process id, and when the process was born, so that a process that
was later given the same id is not taken for it. To stop it, a file `stop` is put beside; signals come second.
"""

import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path

import psutil

from ..errors import BadInput, Stopped
from .folder import write_json

RECORD, FLAG = "worker.json", "stop"


def host_name() -> str:
    """The name of this machine."""
    return socket.gethostname()


def process_birth(pid: int) -> float | None:
    """Seconds between boot and the process's start, the same whatever the clock says; None if it is dead."""
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return round(process.create_time() - psutil.boot_time(), 2)
    except psutil.Error:
        return None


def read_owner_record(folder: Path) -> dict | None:
    """What `worker.json` says, or None where there is none that can be read."""
    try:
        record = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("pid"), int) else None


def live_owner(folder: Path) -> dict | None:
    """The record of the live process that runs this folder, or None.

    A process of another host cannot be looked at; it counts as alive until its record is removed.
    """
    record = read_owner_record(folder)
    if record is None or "ended" in record:
        return None
    if record.get("host") != host_name():
        return record
    born = process_birth(record["pid"])
    return record if born is not None and abs(born - record.get("born", 0)) < 0.5 else None


def process_identity(pid: int | None = None) -> dict:
    """What tells a process (by default this one) from any other: `pid`, `born`, `host`."""
    pid = pid or os.getpid()
    return {"pid": pid, "born": process_birth(pid), "host": host_name()}


def claim_folder(folder: Path) -> None:
    """Put this process on record as the one that runs `folder`, which is made if needed.

    A flag to stop that an earlier process left is removed. Raises BadInput where another live process runs
    the folder, or where it cannot be written.
    """
    folder, live = Path(folder), live_owner(folder)
    if live and process_identity().items() <= live.items():
        return
    if live:
        raise BadInput(f"{folder} is being run by process {live['pid']} on {live['host']}; wait for it, or "
                       f"stop it with: sftbench stop {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FLAG).unlink(missing_ok=True)
        write_json(folder / RECORD, process_identity())
    except OSError as error:
        raise BadInput(f"{folder} cannot be written ({error.strerror}); take another output_dir") from error


def update_owner_record(folder: Path, **more) -> None:
    """Add to the record of this process, for whoever looks at the folder."""
    record = read_owner_record(folder)
    if record and record["pid"] == os.getpid():
        write_json(Path(folder) / RECORD, {**record, **more})


def release_folder(folder: Path, ended: dict | None = None) -> None:
    """Take the record of this process back; with `ended` it stays, and says how the process ended."""
    record = read_owner_record(folder)
    if record is None or record["pid"] != os.getpid():
        return
    with contextlib.suppress(OSError):
        if ended:
            write_json(Path(folder) / RECORD, {**record, "ended": ended})
        else:
            (Path(folder) / RECORD).unlink(missing_ok=True)
        (Path(folder) / FLAG).unlink(missing_ok=True)


def request_stop(folder: Path) -> bool:
    """Put the flag that a run looks for after every step; False, and no flag, where no process runs it."""
    if live_owner(folder) is None:
        return False
    (Path(folder) / FLAG).touch()
    return True


class StopSignal:
    """Whether this process's run is to stop: by the flag in its folder, or by SIGINT or SIGTERM.

    Used as a context around the run. While `training`, the first signal lets the step end and a checkpoint
    be saved; at other times, when nothing would be lost, and at the second signal, it raises Stopped at once.
    """

    def __init__(self, folder: Path):
        self.flag, self.training, self.signals = Path(folder) / FLAG, False, 0
        self.before: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._signalled)
                           for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _signalled(self, number, frame) -> None:
        self.signals += 1
        with contextlib.suppress(OSError):
            self.flag.touch()  # so that all who look at the folder see that it stops
        if not self.training or self.signals > 1:
            raise Stopped("stopped at once" if self.training else "stopped")

    def __call__(self) -> bool:
        return self.signals > 0 or self.flag.exists()

    def check(self) -> None:
        """Raise Stopped if the run is to stop; for places where nothing needs to be saved."""
        if self():
            raise Stopped("stopped")
