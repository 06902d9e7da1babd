"""A run in progress: a picture in a notebook cell, a rewritten line in a terminal, lines in a log."""

import contextlib
import io
import sys
import threading
import time
from pathlib import Path

from ..runs.events import EventTail, format_duration, run_progress
from ..runs.ownership import FLAG

READ_SECONDS = 0.5  # between two looks at a run's events
LOG_SECONDS = 10  # between two lines of progress in a log
LOADING = "loading libraries, model and data"
STOPPING = "stopping after this step, with a checkpoint; Ctrl-C once more stops at once"
DRAWING_SHARE = 0.02  # drawing may take this part of the time, and never happens more than once a second


class LivePlot:
    """A callback for `run`: called with events, draws into the cell it was created in; `log`: a log scale."""

    def __init__(self, log: bool = True):
        self.log, self.events, self.due = log, [], 0.0
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
        image = Image(data=figure_png(loss_figure(self.events, self.log)), format="png")
        if self.picture is None:
            self.picture = _display(image, display_id=True)
        else:
            self.picture.update(image)
        self.line.update({"text/plain": self.status()}, raw=True)

    def status(self) -> str:
        """How far the run is, as text."""
        last = self.events[-1]
        if "state" in last:
            text = f"{last['state']} after {format_duration(last['time'] - self.events[0]['time'])}"
            return ": ".join(filter(None, [text, last.get("message")]))
        now = run_progress(self.events)
        return f"{now['text']} ({now['share']:.0%}), {format_duration(now['seconds_left'])} left"


def _display(*shown, **options):
    """IPython's `display`, loaded when a notebook first draws."""
    from IPython.display import display
    return display(*shown, **options)


def print_line(text: str = "") -> None:
    """One line to the terminal, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def show_progress(folder: Path, warn: bool = True):
    """While the block runs, report how far the run in `folder` is: one line rewritten, or a few in a log.

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
    from tqdm import tqdm  # here, as the command line starts without it
    began, terminal, tail = time.time(), sys.stdout.isatty(), EventTail(folder)
    printed, ended, forecast_shown, stop_shown = 0.0, False, False, False
    # tqdm rewrites its line by carriage returns; in a log those run together, so lines are printed there
    bar = tqdm(total=1, file=sys.stdout if terminal else io.StringIO(), disable=False, leave=False,
               ascii=".#", bar_format="[{bar:20}] {percentage:3.0f}%  {desc}", desc=LOADING,
               dynamic_ncols=terminal)
    while not ended:
        ended = done.wait(READ_SECONDS)
        tail.read()
        # until a resumed run has its plan, the events are those of its earlier life
        plan = next((event for event in tail.events if "plan" in event and event["time"] >= began), None)
        if plan and not forecast_shown:
            _show_forecast(plan, warn)
            forecast_shown = True
        if plan and not stop_shown and (folder / FLAG).exists():
            tqdm.write(STOPPING)
            stop_shown = True
        if ended or plan and "state" in tail.events[-1]:
            continue
        bar.n, text = _status(tail.events if plan else [], time.time() - began)
        bar.set_description_str(text, refresh=terminal)
        if not terminal and time.time() - printed > LOG_SECONDS:
            print_line(str(bar))
            printed = time.time()
    bar.close()


def _show_forecast(plan: dict, warn: bool) -> None:
    """Show the run's forecast and what its recipe is warned of, above the line of progress."""
    from tqdm import tqdm

    from .ledger import format_forecast
    if "forecast" in plan:
        tqdm.write(format_forecast(plan["forecast"]) + "\n")
    for warning in plan.get("warnings", []) if warn else []:
        tqdm.write(f"warning: {warning}", file=sys.stderr)


def _status(events: list[dict], seconds: float) -> tuple[float, str]:
    """The share of the run that is done, and its line, of which a narrow terminal cuts off the end."""
    if not events:
        return 0.0, f"{LOADING} ({format_duration(seconds)})"
    progress = run_progress(events)
    left = [f"{format_duration(progress['seconds_left'])} left"] * (progress["seconds_left"] is not None)
    losses = [event["loss"] for event in events if event.get("loss") is not None]
    loss = [f"loss {value:.2f}" for value in losses[-1:]]
    return progress["share"], ", ".join([*left, *loss, progress["text"]])
