"""A run's events: written as it goes on, followed by whoever looks, and what they add up to."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from .folder import mask_message, mask_token, write_text


def stamp_event(event: dict) -> dict:
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
    """Append one event as a whole line and return it as written, with its time; NaN and infinity are null."""
    event = stamp_event(event)
    with open(Path(folder) / "events.jsonl", "a", encoding="utf-8") as file:
        file.write(_event_line(event))
    return event


class EventTail:
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
    """All whole events of a run, in order; a torn last line and lines that are no events are passed over."""
    return EventTail(folder).read()


class RunLog:
    """Writes a run's events to `events.jsonl` and passes each to the callbacks.

    An event is one line of JSON. Every one has `time` (seconds since 1970), `stage` (`start` before the
    first) and `step` (0 before the stage's first step); the others come where there is something to report:

    - at the start `plan` (steps by stage), `forecast`, `warnings`;
    - before a stage's first step `steps`, and after a score `eval_<role>_<measure>` (loss in nats per token;
      accuracy and f1 from 0 to 1; within a stage of 64 rows a probe, between stages of all);
    - after a step `loss`, `learning_rate`, `grad_norm`, `tokens` (trained so far), `memory_bytes`;
    - `reused` for an event of a stage taken from the store, `waiting` while another run trains the stage,
      `resumed` and `passed_over` where a checkpoint was taken up, `callback_error`;
    - at the end `state` (done, stopped, failed), `message`, `reason`.

    A callback that raises is dropped, on record. Where the folder holds events of an earlier life of the run,
    they stay until `settle`: what the new life knows of them (scores, stages from the store, a stage up to
    its checkpoint) then takes their place in one move, so that the curve is complete at any time and steps
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
        self.unwritten.append(stamp_event(event))
        return self.unwritten[-1]

    def settle(self) -> None:
        """Let the events so far take the place of those of an earlier life."""
        if self.unwritten is not None:
            write_text(self.folder / "events.jsonl", "".join(map(_event_line, self.unwritten)))
            self.unwritten = None


def run_progress(events: list[dict], now: float | None = None) -> dict:
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


def format_duration(seconds: float | None) -> str:
    """Seconds as a person says them: `8 s`, `1 min 20 s`, `2 h 5 min`; `?` for None."""
    if seconds is None:
        return "?"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"

SPEED_WINDOW = 30  # steps over which speed is taken


def stage_progress(events: list[dict], alive: bool = True) -> list[dict]:
    """Each planned stage with `name`, steps `done` and `total`, and its `state` in a word or two.

    In a run that is not `alive` no stage trains; the one it lies in has stopped.
    """
    plan = next((event["plan"] for event in events if "plan" in event), {})
    current, found = events[-1]["stage"] if events else None, []
    for name, total in plan.items():
        mine = [event for event in events if event["stage"] == name]
        reused = any(event.get("reused") for event in mine)
        done = total if reused else max((event["step"] for event in mine), default=0)
        state = ("from the store" if reused else "done" if done >= total and mine else
                 "waiting" if name != current else "training" if alive else "stopped")
        found.append({"name": name, "done": min(done, total), "total": total, "state": state})
    return found


def describe_activity(events: list[dict]) -> str:
    """What a live run does now, in a few words; empty before its plan is known."""
    plan = next((event["plan"] for event in events if "plan" in event), None)
    if plan is None:
        return ""
    last = events[-1]
    if "waiting" in last:
        return f"waiting: {last['waiting']}"
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
