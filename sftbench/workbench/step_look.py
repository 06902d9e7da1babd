"""The form's second step: what the model will read: data by role, rows with their mask, shares, steps."""

import ipywidgets as widgets

from ..recipes.facts import Facts, facts_from_dict
from ..recipes.recipe import ROLES, recipe_to_dict
from .step_choose import SHADES, share_bar
from .widgets import Fold, box, button, html_area, row, show, text_label


class LookStep:
    """The step's widgets; what they show comes from the worker, which has the tokenizer."""

    def __init__(self, form):
        self.form, self.seen = form, None
        self.told = text_label("", "sftb-quiet")
        self.roles = box(classes=("sftb-roles",), kind=widgets.Box)
        self.plan = box(classes=("sftb-plan",), kind=widgets.Box)
        self.forecast = text_label("", "sftb-pre", "sftb-wrap")
        self.time = button("Measure a few steps", self.measure)
        self.rows = html_area("sftb-seen")
        self.resolved = text_label("", "sftb-pre", "sftb-wrap")
        self.whole = box(
            text_label("Data by role", "sftb-head"),
            self.roles,
            text_label("Stages", "sftb-head"),
            self.plan,
            row(text_label("Forecast", "sftb-head"), self.time),
            self.forecast,
            text_label("Rows token by token", "sftb-head"),
            text_label(
                "What is trained is bold, on blue, between « and »; what is only read is on grey; special "
                "tokens are brown; ↵ is a line's end.",
                "sftb-quiet",
                "sftb-note",
            ),
            self.rows,
            Fold("The resolved recipe, each value with its reason", self.resolved).widget,
        )
        self.widget = box(row(self.told, button("Look again", self.look)), self.whole)
        show(self.whole, False)

    def refresh(self) -> None:
        """Ask the worker about the form's recipe, unless it was asked about the same before."""
        recipe = recipe_to_dict(self.form.recipe) | {"output_dir": None}
        if recipe != self.seen or self.form.errors:
            self.look()

    def look(self) -> None:
        """Ask the worker about the form's recipe."""
        if self.form.errors:
            self.seen, self.told.value = None, "First correct " + "; ".join(self.form.to_correct())
            show(self.whole, False)
            return
        self.told.value = "Reading data and tokenizer …"
        self.form.in_background(self._read, recipe_to_dict(self.form.recipe) | {"output_dir": None})

    def _read(self, recipe: dict) -> None:
        try:
            answer = self.form.ask({"do": "look", "recipe": recipe, "rows": 1})
        except Exception:
            self.told.value = "Nothing to look at: see below."
            show(self.whole, False)
            raise
        self.seen = recipe
        facts = facts_from_dict(answer["facts"])
        self._roles(facts)
        self._stages(answer)
        self.rows.value, self.resolved.value = answer["markup"], answer["recipe_text"]
        self.told.value = f"Start model: {answer['start']}."
        show(self.whole, True)
        self.form.facts = facts
        self.form.say("Looked at the data; advice now counts its rows.")

    def _roles(self, facts: Facts) -> None:
        cells = [text_label(title, "sftb-quiet") for title in ("role", "rows to train on", "tokens")]
        for role in ROLES:
            rows, tokens = facts.row_count(role), facts.tokens.get(role)
            cells += [
                text_label(role.replace("_", " ")),
                text_label(f"{rows:,}" if rows is not None else "no data"),
                text_label(f"{tokens:,}" if tokens is not None else "–"),
            ]
        self.roles.children = cells

    def _stages(self, answer: dict) -> None:
        cells = []
        for stage in answer["stages"]:
            words = " + ".join(f"{share:.0%} {role.replace('_', ' ')}"
                               for role, share in stage["shares"].items())
            bar = text_label(words, "sftb-box")
            bar.style.background = share_bar(stage["shares"], SHADES[stage["kind"]])
            cells += [text_label(stage["name"].replace("_", " ")), bar,
                      text_label(f"{answer['plan'][stage['name']]:,} steps")]
        self.plan.children = cells
        self._forecast(answer)

    def _forecast(self, answer: dict) -> None:
        self.forecast.value = answer["forecast_text"]
        show(self.time, answer["forecast"]["seconds"] is None)  # a large model's time is measured on demand

    def measure(self) -> None:
        """Let the worker train a few steps to forecast the time."""
        self.told.value = "Measuring a few steps of each stage …"
        self.form.in_background(self._measure, self.seen)

    def _measure(self, recipe: dict) -> None:
        try:
            self._forecast(self.form.ask({"do": "forecast", "recipe": recipe}))
        finally:
            self.told.value = ""
