"""The form's third step: start, stop and take up a run in its own process, and follow it by its folder."""

import contextlib
import os
import threading
import time
from pathlib import Path

import ipywidgets as widgets

from ..errors import BadInput
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
from .widgets import box, button, guarded, in_background, row, show, text_label

TICK = 0.3  # seconds between two looks at the folder
SHARE = 0.25  # drawing may take this part of its thread, which gives way to all else (`_give_way`)
WORDS = {"none": "no run yet", "preparing": "loading libraries, model and data", "running": "running",
         "stopping": "stopping after this step", "done": "done", "stopped": "stopped; it can go on",
         "failed": "failed", "killed": "its process was killed; it can go on"}
CAN_GO_ON = ("stopped", "failed", "killed")

NEXT = {"done": "is done. Next: compare it with another run, or talk to it.",
        "stopped": "has stopped and kept its state. Resume goes on from there."}


class TrainStep:
    """The step's widgets, and the run that is followed; `widget` is what to show."""

    def __init__(self, form):
        self.form, self.folder, self.token, self.events = form, None, None, []
        self.alive = self.followed_live = False
        self.start_button = button("Start", self.start, "sftb-main")
        self.stop_button = button("Stop", self.stop)
        self.resume_button = button("Resume", self.resume)
        self.which = widgets.Dropdown(description="run", layout={"flex": "1 1 280px"},
                                      style={"description_width": "30px"})
        self.which.observe(self._chosen, "value")
        self.log = widgets.Checkbox(True, description="log scale", indent=False, layout={"width": "auto"})
        self.log.observe(lambda _: guarded(form.say, self._draw), "value")
        self.state, self.facts = text_label("", "sftb-head"), text_label("", "sftb-quiet")
        self.bars = box(classes=("sftb-bars",), kind=widgets.Box)
        self.picture = widgets.Image(format="png")
        self.ledger = text_label("", "sftb-pre")
        self.empty = text_label(
            "The curve appears with the first steps, a few seconds after Start. The run goes "
            "on if this page is closed; open the form again to follow it.",
            "sftb-quiet",
        )
        self.warned = text_label("", "sftb-warn", "sftb-lines")
        self.widget = box(row(self.start_button, self.stop_button, self.resume_button, self.which),
                          self.warned, self.state, self.bars, row(self.facts, self.log), self.picture,
                          self.empty, self.ledger)
        self.lock = threading.Lock()
        show(self.picture, False)
        show(self.log, False)
        self._tell({"state": "none", "message": "", "alive": False})
        self.refresh()

    # what the buttons do

    def start(self) -> None:
        """Start the form's recipe and follow it."""
        def act() -> None:
            if self.form.errors:
                self.refresh()
                raise BadInput("first correct " + "; ".join(self.form.to_correct()))
            self.follow(start_run(self.form.recipe, self.form.helper))
            self.form.say("Started. The first loss shows in a few seconds.")
        self._act(self.start_button, act)

    def stop(self) -> None:
        """Ask the run to stop after its step; it can go on later."""
        self._act(self.stop_button, lambda: stop_run(self.folder))

    def resume(self) -> None:
        """Let the run go on from its last checkpoint."""
        def act() -> None:
            resume_run(self.folder, self.form.helper)
            self.follow(self.folder)
            self.form.say(f"{self.folder.name} goes on.")
        self._act(self.resume_button, act)

    def _act(self, made: widgets.Button, act) -> None:
        made.disabled = True
        in_background(lambda: (guarded(self.form.say, act), self._allow()))

    # which run

    def refresh(self) -> None:
        """List the runs that there are, newest first; the followed one stays chosen. Repeat the warnings."""
        self.warned.value = "\n".join(f"! {line}" for line in self.form.to_correct() + self.form.warnings())
        show(self.warned, bool(self.warned.value))
        found = [(folder.name, str(folder.resolve())) for folder in list_runs()]
        here = str(self.folder) if self.folder else ""
        if self.folder and here not in dict(found).values():
            found.insert(0, (self.folder.name, here))
        found.append(("–", ""))
        with self.form.quiet():
            if list(self.which.options) != found:
                self.which.options = found
            self.which.value = here

    def _chosen(self, change) -> None:
        if change.new and not self.form.is_quiet:
            self.follow(Path(change.new))

    def follow(self, folder: Path) -> None:
        """Show this run from now on: whole, and as it goes on."""
        self.folder, self.token, self.events = Path(folder).resolve(), object(), []
        self.refresh()
        in_background(self._follow, self.folder, self.token)

    def attach(self) -> bool:
        """Follow the newest run that goes on; with none, the newest of all where it stopped on its way."""
        if live := running_folders():
            self.follow(live[-1])
            self.form.say(f"{live[-1].name} is going on; this is its curve so far.")
        elif (newest := list_runs()[:1]) and run_state(newest[0])["state"] in CAN_GO_ON:
            self.follow(newest[0])
            self.form.say(f"{newest[0].name} has stopped on its way. In step 3, Resume lets it go on.")
        return bool(live)

    # following, in a thread

    def _follow(self, folder: Path, token: object) -> None:
        _give_way()
        tail, told, due, drawn = EventTail(folder), None, 0.0, -1
        while self.token is token:
            state = run_state(folder)  # before the events: what a run wrote last is then read below
            new = tail.read()
            if self.token is not token:
                return
            self.events = tail.events
            if new or state != told:
                guarded(self.form.say, self._tell, state)
                told = state
            now = time.monotonic()
            ended = not state["alive"]
            if len(self.events) != drawn and (now >= due or ended):
                drawn = len(self.events)
                guarded(self.form.say, self._draw)
                due = time.monotonic() + max(1.0, (time.monotonic() - now) / SHARE)
            if ended and not new:
                self.refresh()
                return
            time.sleep(TICK)

    def _tell(self, state: dict) -> None:
        """State, progress, last values and ledger in words."""
        self.alive, self.run_state = state["alive"], state["state"]
        words = WORDS.get(state["state"], state["state"])
        if state["state"] == "running":
            words = describe_activity(self.events) or words
        message = (state["message"] or "").strip()
        self.state.value = f"{self.folder.name}: {words}" if self.folder else ""
        if message and state["state"] in ("failed", "killed"):
            self.form.say(message, bad=True)
        elif state["state"] in NEXT and self.followed_live:
            self.form.say(f"{self.folder.name} {NEXT[state['state']]}")
        self.followed_live = state["alive"]
        self._progress()
        self.facts.value = format_last_values(self.events)
        self.ledger.value = (format_ledger(self.folder) if state["state"] == "done"
                             else format_partial_ledger(self.events))
        show(self.ledger, bool(self.ledger.value))
        self._allow()

    def _allow(self) -> None:
        """Only the buttons that can do something now."""
        self.start_button.disabled = self.alive
        self.stop_button.disabled = not self.alive or self.run_state == "stopping"
        self.resume_button.disabled = self.alive or self.run_state not in CAN_GO_ON
        following = self.start_button if self.resume_button.disabled else self.resume_button
        for made in (self.start_button, self.resume_button):
            (made.add_class if made is following else made.remove_class)("sftb-main")

    def _progress(self) -> None:
        """A bar for the run and one for each stage, with words beside."""
        stages = stage_progress(self.events, self.alive)
        lines = []
        if stages:
            now = run_progress(self.events)
            left = f", {format_duration(now['seconds_left'])} left" if (
                self.alive and now["seconds_left"] is not None) else ""
            lines = [("whole run", now["share"], f"{now['share']:.0%}{left}")]
            lines += [(stage["name"].replace("_", " "), stage["done"] / max(stage["total"], 1),
                       f"{stage['done']:,} of {stage['total']:,} steps, {stage['state']}")
                      for stage in stages]
        cells = list(self.bars.children)
        if len(cells) != 3 * len(lines):
            cells = [
                cell
                for _ in lines
                for cell in (
                    text_label(),
                    widgets.FloatProgress(max=1.0, style={"bar_color": "#0072B2"}, layout={"width": "auto"}),
                    text_label("", "sftb-quiet"),
                )
            ]
            self.bars.children = cells
        for number, (name, share, words) in enumerate(lines):
            cells[3 * number].value, cells[3 * number + 1].value = name, share
            cells[3 * number + 1].tooltip = cells[3 * number + 2].value = words

    def _draw(self) -> None:
        from ..reports.plots import (  # matplotlib takes a second to load; the form is usable before
            figure_png,
            loss_figure,
        )
        has = any("plan" in event for event in self.events)
        with self.lock:
            if has:
                figure = loss_figure(self.events, log=self.log.value, rates=True)
                self.picture.value = figure_png(figure)
        show(self.picture, has)
        show(self.log, has)
        show(self.empty, not has)


def ready_to_draw() -> None:
    """Load matplotlib and draw once, so that a run's first picture need not wait for it."""
    from ..reports.plots import figure_png, loss_figure
    figure_png(loss_figure([]))


def _give_way() -> None:
    """Let this thread run only where nothing else wants to, so that drawing takes nothing from training."""
    with contextlib.suppress(OSError, AttributeError):  # Linux has priorities by thread; others leave it be
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
