"""The live view of a run in a notebook cell: one picture and one line of progress, redrawn at each event."""

import time

from IPython.display import Image, display

from .plots import loss_figure, png
from .runs import duration, progress

SHARE = 0.02  # drawing may take this part of the time, and never happens more than once a second


class LivePlot:
    """A callback for `run`: called with events, draws into the cell it was made in; `log`: a log scale."""

    def __init__(self, title: str = "", log: bool = True):
        self.title, self.log, self.events = title, log, []
        self.due = 0.0
        self.line = display({"text/plain": "preparing"}, raw=True, display_id=True)
        self.picture = None

    def __call__(self, event: dict) -> None:
        self.events.append(event)
        if "state" in event:
            self.draw()
        elif time.monotonic() >= self.due and not event.get("reused"):
            began = time.monotonic()
            self.draw()
            self.due = time.monotonic() + max(1.0, (time.monotonic() - began) / SHARE)

    def draw(self) -> None:
        """Draw now, whatever the time."""
        image = Image(data=png(loss_figure(self.events, self.title, self.log)), format="png")
        if self.picture is None:
            self.picture = display(image, display_id=True)
        else:
            self.picture.update(image)
        self.line.update({"text/plain": self.status()}, raw=True)

    def status(self) -> str:
        """How far the run is, in words."""
        last = self.events[-1]
        if "state" in last:
            return f"{last['state']} after {duration(last['time'] - self.events[0]['time'])}" + (
                f": {last['message']}" if last.get("message") else "")
        now = progress(self.events)
        return f"{now['text']} ({now['share']:.0%}), {duration(now['seconds_left'])} left"
