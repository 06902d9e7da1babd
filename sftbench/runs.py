"""A run's folder: its events, its recipe, its result. Everything a person sees is read from these files.

`events.jsonl` is appended to while the run goes on, one whole line per event; `result.json` is written last,
in one move, and a run without `"complete": true` in it is not done.
"""

import json
import math
import os
import time
from datetime import datetime
from pathlib import Path

from .errors import BadInput

SCHEMA = 1


def root() -> Path:
    """The folder under which runs lie: `SFTBENCH_RUNS`, or `runs` in the current folder."""
    return Path(os.environ.get("SFTBENCH_RUNS", "runs"))


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


def write_json(path: Path, data: dict) -> None:
    """Write JSON in one move: a reader sees the old file or the whole new one, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def append_event(folder: Path, event: dict) -> dict:
    """Append one event as a whole line and return it as written, with its time; NaN and infinity are null."""
    event = {"time": round(time.time(), 3), **event}
    event = {key: None if isinstance(value, float) and not math.isfinite(value) else value
             for key, value in event.items()}
    line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
    with open(Path(folder) / "events.jsonl", "a", encoding="utf-8") as file:
        file.write(line)
    return event


def read_events(folder: Path) -> list[dict]:
    """All whole events of a run, in order; a torn last line and lines that are no events are passed over."""
    path = Path(folder) / "events.jsonl"
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict) and "stage" in event and "step" in event:
            events.append(event)
    return events


def read_json(folder: Path, name: str) -> dict:
    """A run's `recipe.json` or `result.json`; raises BadInput if it is missing, torn or of another schema."""
    path = Path(folder) / name
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: not there; is {folder} a run's folder, and the run "
                       "finished? The same command goes on with one that is not") from None
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
                       "run its recipe again")
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
    current, began = events[-1]["stage"], None
    for name, steps in planned.items():
        mine = [event for event in events if event["stage"] == name]
        step = max((event["step"] for event in mine), default=0)
        done += steps if any(event.get("reused") for event in mine) else step
        fresh = [event for event in mine if not event.get("reused")]
        if fresh and step and not any(event.get("reused") for event in mine):
            began = fresh[0]["time"]
            spent += (now if name == current and step < steps else fresh[-1]["time"]) - began
            timed_steps += step
    total = max(1, sum(planned.values()))
    left = spent / timed_steps * (total - done) if timed_steps else None
    share = min(1.0, done / total)
    return {"text": f"{current}: {done} of {total} steps", "share": share, "seconds_left": left}


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
