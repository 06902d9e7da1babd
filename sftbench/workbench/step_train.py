"""The form's third step: start, stop and resume a run in its own process, and follow it by its folder."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets

from ..errors import BadInput
from ..recipes.serialize import format_run_cell
from ..reports.comparison import list_runs
from ..reports.ledger import format_ledger, format_partial_ledger
from ..runs.events import (
    EventTail,
    describe_activity,
    format_duration,
    format_last_values,
    run_progress,
    stage_progress,
)
from ..workers.client import resume_run, run_state, running_folders, start_run, stop_run
from .widgets import Fold, button, column, grid, log_checkbox, row, set_class, show, text_label

TICK = 0.3  # seconds between two looks at the folder
DRAWING_SHARE = 0.25  # of the following thread's time, at most
LOW_PRIORITY = 15  # of 19, the scheduler's lowest
STATES = {"none": "no run yet", "preparing": "loading libraries, model and data", "running": "running",
          "stopping": "stopping after this step", "done": "done", "stopped": "stopped; it can be resumed",
          "failed": "failed", "killed": "its process was killed; it can be resumed"}
RESUMABLE = ("stopped", "failed", "killed")
NEXT = {"done": "is done. Next: compare it with another run, or talk to it.",
        "stopped": "has stopped, and its state is saved. Resume continues from there."}
NO_CURVE = ("The curve appears with the first steps, a few seconds after Start. The run continues if this "
            "page is closed; open the form again to follow it.")

HUB = ("This JupyterHub may stop a server on which nothing happens, and its runs with it. A run that is "
       "followed here, or trains in a cell, counts as activity as long as its notebook's kernel lives, even "
       "with the page closed; a run whose kernel has ended does not.")


class TrainStep:
    """The step's widgets, and the run that is followed; `widget` is what to show."""

    def __init__(self, form):
        self.form, self.folder, self.events = form, None, []
        self.follower = None  # a thread follows its run as long as this is the object it was started with
        self.state = {"state": "none", "message": "", "alive": False}
        self.lock, self.listing = threading.Lock(), threading.local()
        self.start_button = button("Start", self.start, "sftb-main")
        self.stop_button = button("Stop", self.stop)
        self.resume_button = button("Resume", self.resume)
        self.run_list = widgets.Dropdown(description="run", layout={"flex": "1 1 280px"},
                                         style={"description_width": "30px"})
        self.run_list.observe(self._select_run, "value")
        self.log = log_checkbox()
        self.log.observe(self._draw, "value")
        self.warnings = text_label("", "sftb-warn", "sftb-lines")
        self.headline, self.values = text_label("", "sftb-head"), text_label("", "sftb-quiet")
        self.bars, self.bar_rows = grid("sftb-bars"), []
        self.picture, self.ledger = widgets.Image(format="png"), text_label("", "sftb-pre")
        self.no_curve = text_label(NO_CURVE, "sftb-quiet")
        self.widget = column(
            row(self.start_button, self.stop_button, self.resume_button, self.run_list), self.warnings,
            self._hub_note(), self.headline, self.bars, row(self.values, self.log), self.picture,
            self.no_curve, self.ledger)
        self._draw()
        self._show_state()
        self.refresh()

    def _hub_note(self) -> widgets.Widget:
        """On a JupyterHub: what its culler does, and the recipe as a cell that trains in a kernel."""
        cell = widgets.Textarea(description="cell", layout={"width": "auto"},
                                style={"description_width": "30px"})

        def refresh() -> None:
            wrong = "\n".join(f"# first correct {line}" for line in self.form.to_correct())
            cell.value = wrong or format_run_cell(self.form.recipe)
            cell.rows = len(cell.value.splitlines()) + 1

        self.form.watch(refresh, "recipe", "errors")
        fold = Fold("The recipe as a cell that trains in its own kernel, to copy", cell)
        note = column(text_label(HUB, "sftb-quiet"), fold.widget)
        show(note, "JUPYTERHUB_API_URL" in os.environ)
        return note

    # buttons

    def start(self) -> None:
        """Start the form's recipe and follow it."""
        self._act(self.start_button, self._start)

    def stop(self) -> None:
        """Stop the run after its step; it can be resumed later."""
        self._act(self.stop_button, lambda: stop_run(self.folder))

    def resume(self) -> None:
        """Continue the run from its last checkpoint."""
        self._act(self.resume_button, self._resume)

    def _act(self, pressed: widgets.Button, act: Callable[[], None]) -> None:
        def act_then_enable() -> None:
            try:
                act()
            finally:
                self._enable_buttons()

        pressed.disabled = True
        self.form.status.call_in_thread(act_then_enable)

    def _start(self) -> None:
        if self.form.errors:
            self.refresh()
            raise BadInput("first correct " + "; ".join(self.form.to_correct()))
        self.follow(start_run(self.form.recipe, self.form.helper))
        self.form.status.report("Started. The first loss shows in a few seconds.")

    def _resume(self) -> None:
        resume_run(self.folder, self.form.helper)
        self.follow(self.folder)
        self.form.status.report(f"{self.folder.name} continues.")

    def _enable_buttons(self) -> None:
        """Only the buttons that can do something now; the one to press next stands out."""
        alive, state = self.state["alive"], self.state["state"]
        self.start_button.disabled = alive
        self.stop_button.disabled = not alive or state == "stopping"
        self.resume_button.disabled = alive or state not in RESUMABLE
        set_class(self.resume_button, "sftb-main", not self.resume_button.disabled)
        set_class(self.start_button, "sftb-main", self.resume_button.disabled)

    # which run

    def refresh(self) -> None:
        """Show the recipe's warnings, and list the runs, newest first; the followed one stays chosen."""
        self.warnings.value = "\n".join(f"! {line}" for line in self.form.to_correct() + self.form.warnings())
        show(self.warnings, bool(self.warnings.value))
        followed = str(self.folder) if self.folder else ""
        options = [(folder.name, str(folder.resolve())) for folder in list_runs()]
        if self.folder and followed not in dict(options).values():
            options.insert(0, (self.folder.name, followed))
        options.append(("–", ""))
        self.listing.now = True  # by thread: the user may choose a run while another thread lists them
        try:
            if list(self.run_list.options) != options:
                self.run_list.options = options
            self.run_list.value = followed
        finally:
            self.listing.now = False

    def _select_run(self, change) -> None:
        if change.new and not getattr(self.listing, "now", False):
            self.follow(Path(change.new))

    def follow(self, folder: Path) -> None:
        """Show this run from now on: what it has done, and what it does."""
        self.folder, self.follower, self.events = Path(folder).resolve(), object(), []
        self.refresh()
        self.form.status.call_in_thread(self._follow, self.folder, self.follower)

    def attach(self) -> bool:
        """Follow the newest run that is running; without one, the newest of all if it can be resumed."""
        if running := running_folders():
            self.follow(running[-1])
            self.form.status.report(f"{running[-1].name} is running; this is its curve so far.")
        elif (newest := list_runs()[:1]) and run_state(newest[0])["state"] in RESUMABLE:
            self.follow(newest[0])
            self.form.status.report(f"{newest[0].name} has stopped before its end. "
                                    "In step 3, Resume continues it.")
        return bool(running)

    # following, in a thread

    def _follow(self, folder: Path, follower: object) -> None:
        _lower_priority()
        tail, shown_state, drawn, next_drawing = EventTail(folder), None, -1, 0.0
        while self.follower is follower:
            state = run_state(folder)  # before the events: what a run wrote last is then read below
            new = tail.read()
            if self.follower is not follower:
                return
            self.events = tail.events
            if new or state != shown_state:
                with self.form.status.guard():
                    self._show_state(state)
                shown_state = state
            now, ended = time.monotonic(), not state["alive"]
            if len(self.events) != drawn and (now >= next_drawing or ended):
                drawn = len(self.events)
                self._draw()
                next_drawing = time.monotonic() + max(1.0, (time.monotonic() - now) / DRAWING_SHARE)
            if ended and not new:
                self.refresh()
                return
            time.sleep(TICK)

    def _show_state(self, state: dict | None = None) -> None:
        """State, progress, last values and ledger in words."""
        before, self.state = self.state, state or self.state
        name, message = self.state["state"], (self.state["message"] or "").strip()
        words = name == "running" and describe_activity(self.events) or STATES.get(name, name)
        self.headline.value = f"{self.folder.name}: {words}" if self.folder else ""
        if message and name in ("failed", "killed"):
            self.form.status.report(message, error=True)
        elif name in NEXT and before["alive"]:
            self.form.status.report(f"{self.folder.name} {NEXT[name]}")
        self._show_progress()
        self.values.value = format_last_values(self.events)
        self.ledger.value = (format_ledger(self.folder) if name == "done" else
                             format_partial_ledger(self.events))
        show(self.ledger, bool(self.ledger.value))
        self._enable_buttons()

    def _show_progress(self) -> None:
        """A bar for the run and one for each stage, with words beside."""
        stages = stage_progress(self.events, self.state["alive"])
        lines = [(stage["name"].replace("_", " "), stage["done"] / max(stage["total"], 1),
                  f"{stage['done']:,} of {stage['total']:,} steps, {stage['state']}") for stage in stages]
        if lines:
            run = run_progress(self.events)
            left = f", {format_duration(run['seconds_left'])} left" if (
                self.state["alive"] and run["seconds_left"] is not None) else ""
            lines.insert(0, ("all stages", run["share"], f"{run['share']:.0%}{left}"))
        if len(self.bar_rows) != len(lines):
            self.bar_rows = [(text_label(), _bar(), text_label("", "sftb-quiet")) for _ in lines]
            self.bars.children = [cell for cells in self.bar_rows for cell in cells]
        for (label, bar, note), (name, share, words) in zip(self.bar_rows, lines, strict=True):
            label.value, bar.value, bar.tooltip, note.value = name, share, words, words

    def _draw(self, _=None) -> None:
        planned = any("plan" in event for event in self.events)
        with self.form.status.guard(), self.lock:
            if planned:
                from ..reports.plots import figure_png, loss_figure  # matplotlib takes a second to load
                self.picture.value = figure_png(loss_figure(self.events, log=self.log.value, rates=True))
        show(self.picture, planned)
        show(self.log, planned)
        show(self.no_curve, not planned)


def _bar() -> widgets.FloatProgress:
    return widgets.FloatProgress(max=1.0, style={"bar_color": "#0072B2"}, layout={"width": "auto"})


def draw_once() -> None:
    """Load matplotlib and draw once: the first picture of a fresh kernel otherwise waits six seconds."""
    from ..reports.plots import figure_png, loss_figure
    figure_png(loss_figure([]))


def _lower_priority() -> None:
    """Let this thread run only where nothing else wants to, so that drawing takes nothing from training."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux has a priority by thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
