"""A run's folder: its events, its recipe, its result. Everything a person sees is read from these files.

`events.jsonl` is appended to while the run goes on, one whole line per event; `result.json` is written last,
in one move, and a run without `"complete": true` in it is not done.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from .errors import BadInput

SCHEMA = 1


def root() -> Path:
    """The folder under which runs lie: `SFTBENCH_RUNS`, or `runs` in the current folder."""
    return Path(os.environ.get("SFTBENCH_RUNS", "runs"))


def find(run: str | Path) -> Path:
    """A run's folder by its path, or by its name alone where it lies under `root()`."""
    named = root() / run
    return named if not Path(run).exists() and (named / "recipe.json").exists() else Path(run)


def folder_for(mode: str, method: str, output_dir: str | None) -> Path:
    """The run's folder: `output_dir`, or a new one under `root()` named by mode, method and time."""
    if output_dir is not None:
        return Path(output_dir)
    stem = f"mode_{Path(mode).stem}-{method}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = (root() / (stem if number == 1 else f"{stem}-{number}") for number in range(1, 1000))
    return next(path for path in candidates if not path.exists())


def store_of(folder: Path) -> Path:
    """The stage store that a run's folder uses: `.stages` beside it."""
    return Path(folder).resolve().parent / ".stages"


def without_tokens(text: str) -> str:
    """Text without tokens of a model hub: the environment's, and whatever looks like one."""
    mine = os.environ.get("HF_TOKEN", "")
    return re.sub(r"hf_[A-Za-z0-9]{16,}", "hf_***", text.replace(mine, "hf_***") if len(mine) > 8 else text)


def write_text(path: Path, text: str) -> None:
    """Write a file in one move: a reader sees the old one or the whole new one, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(without_tokens(text))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, data: dict) -> None:
    """Write JSON in one move, as `write_text`; NaN and infinity are refused."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))


def stamped(event: dict) -> dict:
    """The event as it is written: with its time, and null for NaN and infinity."""
    event = {"time": round(time.time(), 3), **event}
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in event.items()}


def _line(event: dict) -> str:
    return without_tokens(json.dumps(event, ensure_ascii=False, allow_nan=False)) + "\n"


def append_event(folder: Path, event: dict) -> dict:
    """Append one event as a whole line and return it as written, with its time; NaN and infinity are null."""
    event = stamped(event)
    with open(Path(folder) / "events.jsonl", "a", encoding="utf-8") as file:
        file.write(_line(event))
    return event


class Tail:
    """A run's events as they are written: `events` holds all so far, `read` takes in what is new.

    Only whole lines count, and lines that are no events are passed over. A file that was replaced or
    shortened, as when a stopped run goes on, starts over; `restarted` says so of the last `read`.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / "events.jsonl"
        self.events: list[dict] = []
        self.restarted, self._place, self._position = False, None, 0

    def read(self) -> list[dict]:
        """The events that came since the last call (after a restart: all), now also in `events`."""
        self.restarted, data = False, b""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if self._place != status.st_ino or status.st_size < self._position:
                    self.restarted = self._place is not None
                    self._place, self._position, self.events = status.st_ino, 0, []
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            pass
        whole, newline, _ = data.rpartition(b"\n")
        self._position += len(whole) + len(newline)
        new = [event for line in whole.decode("utf-8", errors="replace").split("\n")
               if (event := _event_of(line))]
        self.events += new
        return new


def _event_of(line: str) -> dict | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "stage" in event and "step" in event else None


def read_events(folder: Path) -> list[dict]:
    """All whole events of a run, in order; a torn last line and lines that are no events are passed over."""
    return Tail(folder).read()


class Recorder:
    """Writes a run's events and tells each callback; a callback that raises is dropped, on record.

    Where the folder holds events of an earlier life of the run, they stay until `settle`: what the new life
    knows of them (scores, stages from the store, a stage up to its checkpoint) then takes their place in one
    move, so that the curve is whole at any time and steps that were lost after a checkpoint are gone.
    """

    def __init__(self, folder: Path, callbacks: list[Callable[[dict], None]]):
        self.folder, self.callbacks, self.last = Path(folder), callbacks, {"stage": "start", "step": 0}
        self.waiting: list[dict] | None = [] if (self.folder / "events.jsonl").exists() else None

    def __call__(self, event: dict) -> None:
        self.last = event = self._write(event)
        for callback in list(self.callbacks):
            try:
                callback(event)
            except Exception as error:
                self.callbacks.remove(callback)
                self._write({"stage": event["stage"], "step": event["step"],
                             "callback_error": f"{type(error).__name__}: {error}"})

    def _write(self, event: dict) -> dict:
        if self.waiting is None:
            return append_event(self.folder, event)
        self.waiting.append(stamped(event))
        return self.waiting[-1]

    def settle(self) -> None:
        """Let the events so far take the place of those of an earlier life."""
        if self.waiting is not None:
            write_text(self.folder / "events.jsonl", "".join(map(_line, self.waiting)))
            self.waiting = None


def read_json(folder: Path, name: str) -> dict:
    """A run's `recipe.json` or `result.json`; raises BadInput if it is missing, torn or of another schema."""
    path = Path(folder) / name
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not Path(folder).exists():
            raise BadInput(f"{folder}: there is no run of that name, neither as a folder nor under "
                           f"{root()}/") from None
        raise BadInput(f"{path}: not there; either {folder} is no run's folder, or its run has not finished "
                       f"and goes on with: sftbench resume {folder}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not readable as JSON: {error}") from None
    if data.get("schema") != SCHEMA:
        raise BadInput(f"{path}: schema {data.get('schema')!r} is not known here (known: {SCHEMA}); "
                       "update sftbench")
    return data


def read_result(folder: Path) -> dict:
    """The result of a finished run; raises BadInput where the run is not done."""
    result = read_json(folder, "result.json")
    if result.get("complete") is not True:
        raise BadInput(f"{folder}: the run is not complete (state: {result.get('state')}); "
                       f"go on with it: sftbench resume {folder}")
    return result


def progress(events: list[dict], now: float | None = None) -> dict:
    """How far a run is, from its events: `text`, `share` done (0 to 1), `seconds_left` (None while unknown).

    Steps of stages that were taken from the store count as done at no cost.
    """
    planned = next((event["plan"] for event in events if "plan" in event), None)
    if planned is None:
        return {"text": "preparing", "share": 0.0, "seconds_left": None}
    now = time.time() if now is None else now
    done, spent, timed_steps = 0, 0.0, 0
    current = events[-1]["stage"]
    for name, steps in planned.items():
        mine = [event for event in events if event["stage"] == name]
        step = max((event["step"] for event in mine), default=0)
        done += steps if any(event.get("reused") for event in mine) else step
        fresh = [event for event in mine if not event.get("reused") and "waiting" not in event]
        if fresh and step and not any(event.get("reused") for event in mine):
            gaps = [later["time"] - earlier["time"] for earlier, later in zip(fresh, fresh[1:], strict=False)
                    if "resumed" not in later]
            spent += sum(gaps)
            if name == current and step < steps:  # a longer silence is no training: the run had stopped
                spent += min(now - fresh[-1]["time"], max(gaps, default=math.inf))
            timed_steps += step
    total = max(1, sum(planned.values()))
    left = max(0.0, spent) / timed_steps * (total - done) if timed_steps else None
    share = min(1.0, done / total)
    text = f"{current}: {done} of {total} steps of all stages"
    if "waiting" in events[-1]:
        text += ", waiting for another run that trains this stage"
    return {"text": text, "share": share, "seconds_left": left}


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `8 s`, `1 min 20 s`, `2 h 5 min`; `?` for None."""
    if seconds is None:
        return "?"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
