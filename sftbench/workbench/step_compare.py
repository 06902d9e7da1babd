"""The form's fourth step: the runs as a table, any of them in one plot, and what their recipes differ in."""

import ipywidgets as widgets

from ..reports.comparison import format_differences, list_runs, summarise_run
from ..runs.events import format_duration, read_events
from ..runs.folder import runs_root
from ..workers.client import run_state
from .widgets import Fold, box, button, guarded, row, show, text_label

COLUMNS = ("run", "mode", "method", "state", "domain", "general", "time", "memory")
MOST = 20  # runs in the table, newest first


def cells_of(line: dict) -> list[str]:
    """A run's line as text, without its name; a dash where it has not come to a figure."""
    pairs = ["–" if pair is None else f"{pair[0]:.0%} → {pair[1]:.0%}" for pair in
             (line["domain"], line["general"])]
    return [line["mode"], line["method"], line["state"], *pairs,
            "–" if line["seconds"] is None else format_duration(line["seconds"]),
            "–" if line["memory_bytes"] is None else f"{line['memory_bytes'] / 1e9:.2f} GB"]


class CompareStep:
    """The step's widgets and the runs it lists; `widget` is what to show."""

    def __init__(self, form):
        self.form, self.lines, self.boxes = form, [], {}
        self.grid = box(classes=("sftb-runs",), kind=widgets.Box)
        self.kind = widgets.Dropdown(options=["tasks", "text"], description="held-out",
                                     style={"description_width": "66px"}, layout={"width": "180px"})
        self.log = widgets.Checkbox(True, description="log scale", indent=False, layout={"width": "auto"})
        for control in (self.kind, self.log):
            control.observe(lambda _: guarded(form.say, self._draw), "value")
        self.overlay, self.plane = (widgets.Image(format="png") for _ in range(2))
        self.differ, self.left_out = text_label("", "sftb-pre"), text_label("", "sftb-quiet", "sftb-note")
        self.told = text_label("", "sftb-quiet")
        self.plane_fold = Fold("Domain gained against general lost", self.plane, self.left_out, is_open=True)
        note = text_label(
            "While a stage trains, 64 rows of each probe are scored, at its end all of them: a line "
            "may jump there.",
            "sftb-quiet",
            "sftb-note",
        )
        self.chosen_part = box(row(self.kind, self.log), self.overlay, note,
                               Fold("What their recipes differ in", self.differ, is_open=True).widget)
        self.widget = box(row(self.told, button("Look again", self.refresh)), self.grid,
                          self.chosen_part, self.plane_fold.widget)

    def refresh(self) -> None:
        """Read the runs' folders anew; what was chosen stays chosen."""
        guarded(self.form.say, self._refresh)

    def _refresh(self) -> None:
        chosen = {name for name, mark in self.boxes.items() if mark.value} or None
        found = list_runs()
        self.lines = [summarise_run(folder) for folder in found[:MOST]]
        if chosen is None:  # the two newest that have something to show
            chosen = {line["name"] for line in [line for line in self.lines if line["domain"]][:2]}
        self.boxes = {}
        cells = [text_label(title, "sftb-quiet") for title in COLUMNS]
        for line in self.lines:
            mark = widgets.Checkbox(line["name"] in chosen, description=line["name"], indent=False,
                                    layout={"width": "auto"})
            mark.add_class("mathjax_ignore")
            mark.observe(lambda _: guarded(self.form.say, self._draw), "value")
            self.boxes[line["name"]] = mark
            if line["state"] != "done":
                line["state"] = run_state(line["folder"])["state"]
            cells += [mark, *(text_label(cell) for cell in cells_of(line))]
        self.grid.children = cells if self.lines else ()
        more = f"; the newest {MOST} are shown" if len(found) > MOST else ""
        count = "1 run" if len(found) == 1 else f"{len(found)} runs"
        self.told.value = (f"{count} under {runs_root()}{more}. Domain and general: questions "
                           "answered exactly as wanted, before → after." if found else
                           f"No runs under {runs_root()} yet: start one in step 3.")
        self._draw()

    def _draw(self) -> None:
        from ..reports.plots import (  # matplotlib takes a second to load; the form is usable before
            figure_png,
            gain_figure,
            overlay_figure,
        )
        chosen = [line["folder"] for line in self.lines if self.boxes[line["name"]].value]
        show(self.chosen_part, bool(chosen))
        if chosen:
            events = {folder.name: read_events(folder) for folder in chosen}
            self.overlay.value = figure_png(overlay_figure(events, self.kind.value, self.log.value))
            self.differ.value = format_differences(chosen)
        placed = [line for line in self.lines if line["domain"] and line["general"]]
        show(self.plane_fold.widget, bool(placed))
        if placed:
            self.plane.value = figure_png(gain_figure(placed))
            rest = len(self.lines) - len(placed)
            self.left_out.value = f"{rest} runs without both accuracies are left out." if rest else ""
