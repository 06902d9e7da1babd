"""The form's fourth step: the runs as a table, any in one plot, what they differ in, and their rows."""

import ipywidgets as widgets

from ..reports.comparison import format_differences, list_runs, run_cells, summarise_run
from ..runs.events import read_events
from ..runs.folder import runs_root
from ..workers.client import run_state
from .changed_rows import ChangedRows
from .widgets import Fold, add_classes, button, column, grid, log_checkbox, row, show, text_label

COLUMNS = ("run", "mode", "method", "state", "domain", "general", "time", "memory")
MAX_RUNS = 20  # in the table, newest first
SCORING = ("While a stage trains, 16 to 64 rows of each probe are scored, at its end all of them: a line may "
           "jump there.")


class CompareStep:
    """The step's widgets and the runs it lists; `widget` is what to show."""

    def __init__(self, form):
        self.form, self.runs, self.marks = form, [], {}  # the checkboxes, by the run's name
        self.note, self.table = text_label("", "sftb-quiet"), grid("sftb-runs")
        self.kind = widgets.Dropdown(options=["tasks", "text"], description="held-out",
                                     style={"description_width": "66px"}, layout={"width": "180px"})
        self.log = log_checkbox()
        for control in (self.kind, self.log):
            control.observe(self._draw, "value")
        self.overlay, self.plane = (widgets.Image(format="png") for _ in range(2))
        self.differences = text_label("", "sftb-pre")
        self.left_out = text_label("", "sftb-quiet", "sftb-note")
        self.changed = ChangedRows(form)
        self.chosen_part = column(row(self.kind, self.log), self.overlay,
                                  text_label(SCORING, "sftb-quiet", "sftb-note"),
                                  Fold("What their recipes differ in", self.differences, is_open=True).widget,
                                  self.changed.widget)
        self.plane_fold = Fold("Domain gained against general lost", self.plane, self.left_out, is_open=True)
        self.widget = column(row(self.note, button("Look again", self.refresh)), self.table, self.chosen_part,
                             self.plane_fold.widget)

    def refresh(self) -> None:
        """Read the runs' folders anew; the choice stays, at first the two newest runs with a result."""
        with self.form.status.guard():
            folders = list_runs()
            self.runs = [summarise_run(folder) for folder in folders[:MAX_RUNS]]
            chosen = {name for name, mark in self.marks.items() if mark.value} or {
                run["name"] for run in [run for run in self.runs if run["domain"]][:2]}
            self._fill_table(chosen)
            count = "1 run" if len(folders) == 1 else f"{len(folders)} runs"
            more = f"; the newest {MAX_RUNS} are shown" if len(folders) > MAX_RUNS else ""
            self.note.value = (f"{count} under {runs_root()}{more}. Domain and general: questions answered "
                               "exactly as wanted, before → after." if folders else
                               f"No runs under {runs_root()} yet: start one in step 3.")
            self._draw()

    def _fill_table(self, chosen: set[str]) -> None:
        self.marks, cells = {}, [text_label(title, "sftb-quiet") for title in COLUMNS]
        for run in self.runs:
            if run["state"] != "done":
                run["state"] = run_state(run["folder"])["state"]
            mark = widgets.Checkbox(run["name"] in chosen, description=run["name"], indent=False,
                                    layout={"width": "auto"})
            mark.observe(self._draw, "value")
            self.marks[run["name"]] = add_classes(mark, "mathjax_ignore")
            cells += [mark, *map(text_label, run_cells(run))]
        self.table.children = cells if self.runs else ()

    def _draw(self, _=None) -> None:
        with self.form.status.guard():
            self._draw_chosen([run["folder"] for run in self.runs if self.marks[run["name"]].value])
            self._draw_plane([run for run in self.runs if run["domain"] and run["general"]])

    def _draw_chosen(self, folders: list) -> None:
        show(self.chosen_part, bool(folders))
        if folders:
            from ..reports.plots import figure_png, overlay_figure  # matplotlib takes a second to load
            events = {folder.name: read_events(folder) for folder in folders}
            self.overlay.value = figure_png(overlay_figure(events, self.kind.value, self.log.value))
            self.differences.value = format_differences(folders)
            self.changed.show_runs(folders)

    def _draw_plane(self, runs: list[dict]) -> None:
        show(self.plane_fold.widget, bool(runs))
        if runs:
            from ..reports.plots import figure_png, gain_figure
            self.plane.value = figure_png(gain_figure(runs))
            rest = len(self.runs) - len(runs)
            self.left_out.value = f"{rest} runs without both accuracies are left out." if rest else ""
