"""The form's fifth step: one prompt to several checkpoints, their answers side by side, as plain text."""

import ipywidgets as widgets

from ..errors import BadInput
from ..reports.comparison import list_runs, summarise_run
from .widgets import box, button, row, text_label


class TalkStep:
    """The step's widgets; the worker loads the models and answers."""

    def __init__(self, form):
        self.form = form
        self.prompt = widgets.Textarea(description="prompt", rows=2, layout={"width": "auto"},
                                       style={"description_width": "110px"},
                                       placeholder="empty: the first questions of the run's own probes")
        self.system = widgets.Text(description="system prompt", placeholder="none", layout={"width": "auto"},
                                   style={"description_width": "110px"})
        self.which = widgets.SelectMultiple(description="checkpoints", rows=6, layout={"width": "auto"},
                                            style={"description_width": "110px"})
        self.ask_button = button("Ask", self.ask, "sftb-main")
        self.told, self.answers = text_label("", "sftb-quiet"), box()
        self.widget = box(self.prompt, self.system, self.which, row(self.ask_button, self.told), self.answers)

    def refresh(self) -> None:
        """List the start model and the states of all finished runs, newest first."""
        before = self.which.value
        options = [(f"start model {self.form.recipe.model}", self.form.recipe.model)]
        for line in map(summarise_run, list_runs()):
            if line["state"] == "done":
                folder = line["folder"]
                options += [(f"{folder.name}, {name}", f"{folder}:{name}")
                            for name in ["start", *line["stages"]][::-1]]
        self.which.options, self.which.rows = options, min(max(len(options), 4), 12)
        there = [value for _, value in options]
        self.which.value = [value for value in before if value in there] or there[:2]
        self.told.value = "Choose several with Ctrl or Shift." if len(options) > 1 else \
            "Finished runs appear here beside the start model."

    def ask(self) -> None:
        """Ask the chosen checkpoints."""
        self.told.value = "Asking …"
        self.ask_button.disabled = True
        self.form.in_background(self._ask)

    def _ask(self) -> None:
        try:
            if not self.which.value:
                raise BadInput("choose at least one checkpoint")
            prompts = [self.prompt.value] if self.prompt.value.strip() else None
            answer = self.form.ask({"do": "talk", "checkpoints": list(self.which.value), "prompts": prompts,
                                    "system": self.system.value.strip() or None})
            self._show(answer["answers"])
            self.told.value = ""
        except Exception:
            self.told.value = "No answer: see below."
            raise
        finally:
            self.ask_button.disabled = False

    def _show(self, answers: list[dict]) -> None:
        """For each prompt one line of columns, a checkpoint each."""
        names = {value: label for label, value in self.which.options}
        parts = []
        for prompt in dict.fromkeys(entry["prompt"] for entry in answers):
            mine = [entry for entry in answers if entry["prompt"] == prompt]
            wanted = f"   (wanted: {mine[0]['wanted']})" if "wanted" in mine[0] else ""
            columns = [box(text_label(names.get(entry["checkpoint"], entry["checkpoint"]), "sftb-quiet"),
                           text_label(entry["answer"] or "(nothing)", "sftb-pre", "sftb-wrap"))
                       for entry in mine]
            parts += [text_label(f"{prompt}{wanted}", "sftb-head", "sftb-lines"),
                      box(*columns, classes=("sftb-answers",), kind=widgets.Box)]
        self.answers.children = parts
