"""The live view of a run in a notebook cell: one picture and one line of progress, redrawn at each event."""

import contextlib
import sys
import threading
import time
from pathlib import Path

from ..runs.events import EventTail, format_duration, read_events, run_progress
from ..runs.ownership import FLAG
from .ledger import format_forecast

DRAWING_SHARE = 0.02  # drawing may take this part of the time, and never happens more than once a second


class LivePlot:
    """A callback for `run`: called with events, draws into the cell it was made in; `log`: a log scale."""

    def __init__(self, title: str = "", log: bool = True):
        self.title, self.log, self.events = title, log, []
        self.due = 0.0
        self.line = _display({"text/plain": "preparing"}, raw=True, display_id=True)
        self.picture = None

    def __call__(self, event: dict) -> None:
        self.events.append(event)
        if "state" in event:
            self.draw()
        elif time.monotonic() >= self.due and not event.get("reused"):
            began = time.monotonic()
            self.draw()
            self.due = time.monotonic() + max(1.0, (time.monotonic() - began) / DRAWING_SHARE)

    def draw(self) -> None:
        """Draw now, whatever the time."""
        # IPython and matplotlib take a second to load, and the command line reports progress without them
        from IPython.display import Image

        from .plots import figure_png, loss_figure
        image = Image(data=figure_png(loss_figure(self.events, self.title, self.log)), format="png")
        if self.picture is None:
            self.picture = _display(image, display_id=True)
        else:
            self.picture.update(image)
        self.line.update({"text/plain": self.status()}, raw=True)

    def status(self) -> str:
        """How far the run is, in words."""
        last = self.events[-1]
        if "state" in last:
            return f"{last['state']} after {format_duration(last['time'] - self.events[0]['time'])}" + (
                f": {last['message']}" if last.get("message") else "")
        now = run_progress(self.events)
        return f"{now['text']} ({now['share']:.0%}), {format_duration(now['seconds_left'])} left"


def _display(*shown, **options):
    """IPython's `display`, loaded when a notebook first draws."""
    from IPython.display import display
    return display(*shown, **options)


def print_line(text: str = "") -> None:
    """One line to the terminal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def show_progress(folder: Path, warn: bool = True):
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
    shown_at, told, tail = 0.0, False, EventTail(folder)
    while not done.wait(0.5):
        tail.read()
        now = any("plan" in event and event["time"] >= began for event in tail.events)
        told = told or now and _tell_forecast(tail.events, terminal, warn)
        if now and "state" in tail.events[-1]:
            continue
        line = _progress_line(tail.events if now else [], time.time() - began)
        if (folder / FLAG).exists() and now:
            line = "stopping after this step, with a checkpoint; Ctrl-C once more stops at once"
        if terminal and line != last:
            sys.stdout.write("\r\x1b[2K" + line)
            sys.stdout.flush()
        elif not terminal and time.time() - shown_at > 10:
            print_line(line)
            shown_at = time.time()
        last = line
    if terminal:
        sys.stdout.write("\r\x1b[2K")
    if not told:
        _tell_forecast(read_events(folder), terminal, warn)


def _tell_forecast(events: list[dict], terminal: bool, warn: bool) -> bool:
    """Show the run's forecast and what its recipe is warned of, once they are there."""
    found = next((event for event in events if "forecast" in event), None)
    if found:
        print_line(("\r\x1b[2K" if terminal else "") + format_forecast(found["forecast"]) + "\n")
        for warning in found.get("warnings", []) if warn else []:
            sys.stderr.write(f"warning: {warning}\n")
    return found is not None


def _progress_line(events: list[dict], seconds: float) -> str:
    if not events:
        return f"loading libraries, model and data ({format_duration(seconds)})"
    now = run_progress(events)
    filled = round(now["share"] * 20)
    loss = next((f", loss {event['loss']:.2f}" for event in reversed(events)
                 if event.get("loss") is not None), "")
    left = f", {format_duration(now['seconds_left'])} left" if now["seconds_left"] is not None else ""
    return f"[{'#' * filled}{'.' * (20 - filled)}] {now['share']:4.0%}  {now['text']}{loss}{left}"
