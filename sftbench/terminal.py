"""How far a run is, told in a terminal while it goes on: one line rewritten, or a few in a log."""

import contextlib
import sys
import threading
import time
from pathlib import Path

from . import process, runs
from .table import forecast_text


def say(text: str = "") -> None:
    """One line to the terminal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def progress(folder: Path, warn: bool = True):
    """While the block runs, tell how far the run in `folder` is: one line rewritten, or a few in a log.

    With `warn` the recipe's warnings go to stderr, before the first step.
    """
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, done, warn), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(folder: Path, done: threading.Event, warn: bool) -> None:
    began, last, terminal = time.time(), "", sys.stdout.isatty()
    shown_at, told, tail = 0.0, False, runs.Tail(folder)
    while not done.wait(0.5):
        tail.read()
        now = any("plan" in event and event["time"] >= began for event in tail.events)
        told = told or now and _tell_forecast(tail.events, terminal, warn)
        if now and "state" in tail.events[-1]:
            continue
        line = _progress_line(tail.events if now else [], time.time() - began)
        if (folder / process.FLAG).exists() and now:
            line = "stopping after this step, with a checkpoint; Ctrl-C once more stops at once"
        if terminal and line != last:
            sys.stdout.write("\r\x1b[2K" + line)
            sys.stdout.flush()
        elif not terminal and time.time() - shown_at > 10:
            say(line)
            shown_at = time.time()
        last = line
    if terminal:
        sys.stdout.write("\r\x1b[2K")
    if not told:
        _tell_forecast(runs.read_events(folder), terminal, warn)


def _tell_forecast(events: list[dict], terminal: bool, warn: bool) -> bool:
    """Show the run's forecast and what its recipe is warned of, once they are there."""
    found = next((event for event in events if "forecast" in event), None)
    if found:
        say(("\r\x1b[2K" if terminal else "") + forecast_text(found["forecast"]) + "\n")
        for warning in found.get("warnings", []) if warn else []:
            sys.stderr.write(f"warning: {warning}\n")
    return found is not None


def _progress_line(events: list[dict], seconds: float) -> str:
    if not events:
        return f"loading libraries, model and data ({runs.duration(seconds)})"
    now = runs.progress(events)
    filled = round(now["share"] * 20)
    loss = next((f", loss {event['loss']:.2f}" for event in reversed(events)
                 if event.get("loss") is not None), "")
    left = f", {runs.duration(now['seconds_left'])} left" if now["seconds_left"] is not None else ""
    return f"[{'#' * filled}{'.' * (20 - filled)}] {now['share']:4.0%}  {now['text']}{loss}{left}"
