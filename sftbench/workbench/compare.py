"""The form's fourth step: the runs as a table, any of them in one plot, and what their recipes differ in."""

import ipywidgets as widgets

from .. import compare, runs, worker
from .parts import Fold, box, button, guarded, row, show, text

COLUMNS = ("run", "mode", "method", "state", "domain", "general", "time", "memory")
MOST = 20  # runs in the table, newest first


def cells_of(line: dict) -> list[str]:
    """A run's line as text, without its name; a dash where it has not come to a figure."""
    pairs = ["–" if pair is None else f"{pair[0]:.0%} → {pair[1]:.0%}" for pair in
             (line["domain"], line["general"])]
    return [line["mode"], line["method"], line["state"], *pairs,
            "–" if line["seconds"] is None else runs.duration(line["seconds"]),
            "–" if line["memory_bytes"] is None else f"{line['memory_bytes'] / 1e9:.2f} GB"]


class Compare:
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
        self.differ, self.left_out = text("", "sftb-pre"), text("", "sftb-quiet", "sftb-note")
        self.told = text("", "sftb-quiet")
        self.plane_fold = Fold("Domain gained against general lost", self.plane, self.left_out, is_open=True)
        note = text("While a stage trains, 64 rows of each probe are scored, at its end all of them: a line "
                    "may jump there.", "sftb-quiet", "sftb-note")
        self.chosen_part = box(row(self.kind, self.log), self.overlay, note,
                               Fold("What their recipes differ in", self.differ, is_open=True).widget)
        self.widget = box(row(self.told, button("Look again", self.refresh)), self.grid,
                          self.chosen_part, self.plane_fold.widget)

    def refresh(self) -> None:
        """Read the runs' folders anew; what was chosen stays chosen."""
        guarded(self.form.say, self._refresh)

    def _refresh(self) -> None:
        chosen = {name for name, mark in self.boxes.items() if mark.value} or None
        found = compare.folders()
        self.lines = [compare.line(folder) for folder in found[:MOST]]
        if chosen is None:  # the two newest that have something to show
            chosen = {line["name"] for line in [line for line in self.lines if line["domain"]][:2]}
        self.boxes = {}
        cells = [text(title, "sftb-quiet") for title in COLUMNS]
        for line in self.lines:
            mark = widgets.Checkbox(line["name"] in chosen, description=line["name"], indent=False,
                                    layout={"width": "auto"})
            mark.add_class("mathjax_ignore")
            mark.observe(lambda _: guarded(self.form.say, self._draw), "value")
            self.boxes[line["name"]] = mark
            if line["state"] != "done":
                line["state"] = worker.state(line["folder"])["state"]
            cells += [mark, *(text(cell) for cell in cells_of(line))]
        self.grid.children = cells if self.lines else ()
        more = f"; the newest {MOST} are shown" if len(found) > MOST else ""
        count = "1 run" if len(found) == 1 else f"{len(found)} runs"
        self.told.value = (f"{count} under {runs.root()}{more}. Domain and general: questions "
                           "answered exactly as wanted, before → after." if found else
                           f"No runs under {runs.root()} yet: start one in step 3.")
        self._draw()

    def _draw(self) -> None:
        from .. import plots  # matplotlib takes a second to load; the form is usable before
        chosen = [line["folder"] for line in self.lines if self.boxes[line["name"]].value]
        show(self.chosen_part, bool(chosen))
        if chosen:
            events = {folder.name: runs.read_events(folder) for folder in chosen}
            self.overlay.value = plots.png(plots.overlay_figure(events, self.kind.value, self.log.value))
            self.differ.value = compare.recipes_text(chosen)
        placed = [line for line in self.lines if line["domain"] and line["general"]]
        show(self.plane_fold.widget, bool(placed))
        if placed:
            self.plane.value = plots.png(plots.gain_figure(placed))
            rest = len(self.lines) - len(placed)
            self.left_out.value = f"{rest} runs without both accuracies are left out." if rest else ""
