"""The form's fifth step: one prompt to several checkpoints, their answers side by side, as plain text."""

import ipywidgets as widgets

from ..errors import BadInput
from ..reports.comparison import list_runs, summarise_run
from ..reports.text_table import mark_cut
from .widgets import button, column, grid, row, text_label


class TalkStep:
    """The step's widgets; the helper loads the models and answers."""

    def __init__(self, form):
        self.form = form
        common = {"layout": {"width": "auto"}, "style": {"description_width": "110px"}}
        self.prompt = widgets.Textarea(description="prompt", rows=2, **common,
                                       placeholder="empty: the first questions of the run's own probes")
        self.system = widgets.Text(description="system prompt", placeholder="none", **common)
        self.checkpoints = widgets.SelectMultiple(description="checkpoints", rows=6, **common)
        self.ask_button = button("Ask", self.ask, "sftb-main")
        self.note, self.answers = text_label("", "sftb-quiet"), column()
        self.widget = column(self.prompt, self.system, self.checkpoints, row(self.ask_button, self.note),
                             self.answers)

    def refresh(self) -> None:
        """List the start model and the states of all finished runs, newest first."""
        before = self.checkpoints.value
        options = [(f"start model {self.form.recipe.model}", self.form.recipe.model)]
        for run in map(summarise_run, list_runs()):
            if run["state"] == "done":
                options += [(f"{run['name']}, {state}", f"{run['folder']}:{state}")
                            for state in reversed(["start", *run["stages"]])]
        self.checkpoints.options, self.checkpoints.rows = options, min(max(len(options), 4), 12)
        names = [name for _, name in options]
        self.checkpoints.value = [name for name in before if name in names] or names[:2]
        self.note.value = "Choose several with Ctrl or Shift." if len(options) > 1 else \
            "Finished runs appear here beside the start model."

    def ask(self) -> None:
        """Ask the chosen checkpoints."""
        self.note.value, self.ask_button.disabled = "Asking …", True
        self.form.status.call_in_thread(self._ask)

    def _ask(self) -> None:
        try:
            if not self.checkpoints.value:
                raise BadInput("choose at least one checkpoint")
            prompts = [self.prompt.value] if self.prompt.value.strip() else None
            answer = self.form.ask({"do": "talk", "checkpoints": list(self.checkpoints.value),
                                    "prompts": prompts, "system": self.system.value.strip() or None})
            self._show_answers(answer["answers"])
            self.note.value = ""
        except Exception:
            self.note.value = "No answer: see below."
            raise
        finally:
            self.ask_button.disabled = False

    def _show_answers(self, answers: list[dict]) -> None:
        """For each prompt one line of columns, a checkpoint each."""
        labels, parts = {name: label for label, name in self.checkpoints.options}, []
        for prompt in dict.fromkeys(answer["prompt"] for answer in answers):
            same = [answer for answer in answers if answer["prompt"] == prompt]
            wanted = f"   (wanted: {same[0]['wanted']})" if "wanted" in same[0] else ""
            columns = [column(text_label(labels.get(name := answer["checkpoint"], name), "sftb-quiet"),
                              text_label(mark_cut(answer), "sftb-pre", "sftb-wrap"))
                       for answer in same]
            parts += [text_label(f"{prompt}{wanted}", "sftb-head", "sftb-lines"),
                      grid("sftb-answers", *columns)]
        self.answers.children = parts
