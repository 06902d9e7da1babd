"""A run's events: written while it goes on, followed by readers, and summed up as progress."""

import itertools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from .folder import mask_message, mask_token, write_text

SPEED_WINDOW = 30  # steps over which speed is measured
WAITING = "waiting for another run that trains this stage"


def _stamp_event(event: dict) -> dict:
    """The event as it is written: with its time, and null for NaN and infinity."""
    event = {"time": round(time.time(), 3), **event}
    for name in ("message", "callback_error"):
        if name in event:
            event[name] = mask_message(event[name])
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in event.items()}


def _event_line(event: dict) -> str:
    return mask_token(json.dumps(event, ensure_ascii=False, allow_nan=False)) + "\n"


def append_event(folder: Path, event: dict) -> dict:
    """Append one event as a whole line and return it as written; see `_stamp_event`."""
    event = _stamp_event(event)
    with open(Path(folder) / "events.jsonl", "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(_event_line(event))
    return event


class EventTail:
    """A run's events as they are written: `events` holds all so far, `read` takes in what is new.

    Only whole lines count, and lines that are no events are passed over. A file that was replaced or
    shortened, as when a stopped run goes on, is read anew.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / "events.jsonl"
        self.events: list[dict] = []
        self._inode, self._position = None, 0

    def read(self) -> list[dict]:
        """The events that came since the last call (of a new file: all), now also in `events`."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if self._inode != status.st_ino or status.st_size < self._position:
                    self._inode, self._position, self.events = status.st_ino, 0, []
                file.seek(self._position)
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return []
        lines = data[:data.rfind(b"\n") + 1]
        self._position += len(lines)
        # split at "\n" alone: `splitlines` also does at characters that JSON leaves as they are
        new = [event for line in lines.decode("utf-8", errors="replace").split("\n")
               if (event := _parse_event(line))]
        self.events += new
        return new


def _parse_event(line: str) -> dict | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "stage" in event and "step" in event else None


def read_events(folder: Path) -> list[dict]:
    """All events of a run, in order; a torn last line and lines that are no events are passed over."""
    return EventTail(folder).read()


class RunLog:
    """Writes a run's events to `events.jsonl` and passes each to the callbacks.

    An event is one line of JSON. Every one has `time` (seconds since 1970), `stage` (`start` before the
    first) and `step` (0 before the stage's first step); the others come where there is something to report:

    - at the start `plan` (steps by stage), `forecast`, `warnings`;
    - before a stage's first step `steps`, and after a score `eval_<role>_<measure>` (loss in nats per token;
      accuracy and f1 from 0 to 1; within a stage of 16 to 64 rows a probe, between stages of all);
    - after a step `loss`, `learning_rate`, `grad_norm`, `tokens` (trained so far), `memory_bytes`;
    - `reused` for an event of a stage taken from the store, `waiting` while another run trains the stage,
      `resumed` and `passed_over` where a checkpoint was taken up, `callback_error`;
    - at the end `state` (done, stopped, failed), `message`, `reason`.

    A callback that raises is dropped, on record. Where the folder holds events of an earlier life of the run,
    they stay until `settle`: what the new life knows of them (scores, stages from the store, a stage up to
    its checkpoint) then replaces them in one move, so that the curve is complete at any time and steps
    that were lost after a checkpoint are gone.
    """

    def __init__(self, folder: Path, callbacks: list[Callable[[dict], None]]):
        self.folder, self.callbacks, self.last = Path(folder), callbacks, {"stage": "start", "step": 0}
        self.unwritten: list[dict] | None = [] if (self.folder / "events.jsonl").exists() else None

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
        if self.unwritten is None:
            return append_event(self.folder, event)
        self.unwritten.append(_stamp_event(event))
        return self.unwritten[-1]

    def settle(self) -> None:
        """Replace the events of an earlier life by those so far."""
        if self.unwritten is not None:
            write_text(self.folder / "events.jsonl", "".join(map(_event_line, self.unwritten)))
            self.unwritten = None


def _planned_steps(events: list[dict]) -> dict[str, int]:
    """The steps of each stage by the run's plan; empty before it is known."""
    return next((event["plan"] for event in events if "plan" in event), {})


def stage_progress(events: list[dict], alive: bool = True) -> list[dict]:
    """Each planned stage with `name`, steps `done` and `total`, and its `state` in a word or two.

    In a run that is not `alive` no stage trains; the one it was in has stopped.
    """
    stages = []
    for name, total in _planned_steps(events).items():
        own = [event for event in events if event["stage"] == name]
        reused = any(event.get("reused") for event in own)
        done = total if reused else max((event["step"] for event in own), default=0)
        state = ("from the store" if reused else "done" if done >= total and own else
                 "waiting" if name != events[-1]["stage"] else "training" if alive else "stopped")
        stages.append({"name": name, "done": min(done, total), "total": total, "state": state})
    return stages


def run_progress(events: list[dict], now: float | None = None) -> dict:
    """How far a run is, from its events: `text`, `share` done (0 to 1), `seconds_left` (None while unknown).

    Steps of stages that were taken from the store count as done at no cost.
    """
    stages = stage_progress(events)
    if not stages:
        return {"text": "preparing", "share": 0.0, "seconds_left": None}
    now = time.time() if now is None else now
    done, total = (sum(stage[name] for stage in stages) for name in ("done", "total"))
    trained = [stage for stage in stages if stage["done"] and stage["state"] != "from the store"]
    seconds = max(0.0, sum(_training_seconds(events, stage, now) for stage in trained))
    steps = sum(stage["done"] for stage in trained)
    text = f"{events[-1]['stage']}: {done} of {total} steps of all stages"
    return {"text": f"{text}, {WAITING}" if "waiting" in events[-1] else text, "share": done / total,
            "seconds_left": seconds / steps * (total - done) if steps else None}


def _training_seconds(events: list[dict], stage: dict, now: float) -> float:
    """The time that a stage has trained for; a pause before it was resumed does not count."""
    own = [event for event in events if event["stage"] == stage["name"] and "waiting" not in event]
    gaps = [later["time"] - earlier["time"] for earlier, later in itertools.pairwise(own)
            if "resumed" not in later]
    if stage["state"] == "training":  # a longer silence is no training: the run had stopped
        gaps.append(min(now - own[-1]["time"], max(gaps, default=math.inf)))
    return sum(gaps)


def format_duration(seconds: float | None) -> str:
    """Seconds as a person reads them: `8 s`, `1 min 20 s`, `2 h 5 min`; `?` for None."""
    if seconds is None:
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def describe_activity(events: list[dict]) -> str:
    """What a live run does now, in a few words; empty before its plan is known."""
    plan = _planned_steps(events)
    if not plan:
        return ""
    last = events[-1]
    if "waiting" in last:
        return WAITING
    if last["stage"] == "start" and not any(name.startswith("eval_") for name in last):
        return "scoring the start model"
    if last["step"] == plan.get(last["stage"]) and "loss" in last:
        return f"scoring after {last['stage'].replace('_', ' ')}"
    return "training"


def tokens_per_second(events: list[dict]) -> float | None:
    """Tokens a second over the last steps of the stage that trains, or None where none does."""
    steps = [event for event in events if "tokens" in event and not event.get("reused")]
    steps = [event for event in steps if event["stage"] == steps[-1]["stage"]][-SPEED_WINDOW:]
    if len(steps) < 2 or steps[-1]["time"] <= steps[0]["time"]:
        return None
    return (steps[-1]["tokens"] - steps[0]["tokens"]) / (steps[-1]["time"] - steps[0]["time"])


def format_last_values(events: list[dict]) -> str:
    """One line of the last values: loss, learning rate, speed, memory; empty before the first step."""
    last = next((event for event in reversed(events) if "loss" in event), None)
    if last is None:
        return ""
    rate = tokens_per_second(events)
    parts = ["loss is no number" if last["loss"] is None else f"loss {last['loss']:.3f}",
             f"learning rate {last['learning_rate']:.2g}" if last.get("learning_rate") is not None else "",
             f"{rate:,.0f} tokens/s" if rate else "",
             f"{last['memory_bytes'] / 1e9:.2f} GB" if last.get("memory_bytes") else ""]
    return " · ".join(part for part in parts if part)
