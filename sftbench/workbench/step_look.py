"""The form's second step: what the model will read and cost, and which learning rates it bears."""

from pathlib import Path

import ipywidgets as widgets

from ..recipes.facts import Facts
from ..recipes.recipe import ROLES, recipe_to_dict
from .step_choose import SHADES, share_bar
from .widgets import Fold, button, column, grid, html_area, row, show, text_label

LEGEND = ("What is trained is bold, on blue, between « and »; what is only read is on grey; special tokens "
          "are brown; ↵ is a line's end.")
RATES = ("Trains each kind of stage for up to 80 steps from the start model, at a rate that rises from step "
         "to step, and takes a tenth of that of the lowest loss. With a real model this takes some minutes.")
RATES_TIMEOUT = 3600.0  # seconds


class LookStep:
    """The step's widgets; what they show comes from the helper, which has the tokenizer."""

    def __init__(self, form):
        self.form, self.shown = form, None  # the recipe that is shown, as a dict
        self.note = text_label("", "sftb-quiet")
        self.roles, self.plan = grid("sftb-roles"), grid("sftb-plan")
        self.forecast, self.resolved = (text_label("", "sftb-pre", "sftb-wrap") for _ in range(2))
        self.measure_button = button("Measure a few steps", self.measure)
        self.rows, self.rates = html_area("sftb-tokens"), RatesPart(form)
        self.content = column(
            row(column(text_label("Data by role", "sftb-head"), self.roles),
                column(row(text_label("Forecast", "sftb-head"), self.measure_button), self.forecast),
                css="sftb-beside"),
            text_label("Stages", "sftb-head"), self.plan,
            text_label("Rows token by token", "sftb-head"), text_label(LEGEND, "sftb-quiet", "sftb-note"),
            self.rows, self.rates.widget,
            Fold("The resolved recipe, each value with its reason", self.resolved).widget)
        self.widget = column(row(self.note, button("Look again", self.look)), self.content)
        show(self.content, False)

    def refresh(self) -> None:
        """Look at the form's recipe, unless it is shown already."""
        if self._recipe() != self.shown or self.form.errors:
            self.look()

    def look(self) -> None:
        """Request a look at the form's recipe."""
        if self.form.errors:
            self.shown, self.note.value = None, "First correct " + "; ".join(self.form.to_correct())
            show(self.content, False)
            return
        self.note.value = "Reading data and tokenizer …"
        self.form.status.call_in_thread(self._look, self._recipe())

    def _recipe(self) -> dict:
        return recipe_to_dict(self.form.recipe) | {"output_dir": None}

    def _look(self, recipe: dict) -> None:
        try:
            answer = self.form.ask({"do": "look", "recipe": recipe, "rows": 1})
        except Exception:
            self.note.value = "Nothing to look at: see below."
            show(self.content, False)
            raise
        facts = Facts(**answer["facts"])
        self._show_roles(facts)
        self._show_stages(answer["stages"], answer["plan"])
        self._show_forecast(answer)
        self.rows.value, self.resolved.value = answer["markup"], answer["recipe_text"]
        self.shown, self.note.value = recipe, f"Start model: {answer['start']}."
        show(self.content, True)
        self.form.facts = facts
        self.form.status.report("Looked at the data; advice now counts its rows.")

    def _show_roles(self, facts: Facts) -> None:
        cells = [text_label(title, "sftb-quiet") for title in ("role", "rows to train on", "tokens")]
        for role in ROLES:
            rows, tokens = facts.row_count(role), facts.tokens.get(role)
            cells += [text_label(role.replace("_", " ")),
                      text_label("no data" if rows is None else f"{rows:,}"),
                      text_label("–" if tokens is None else f"{tokens:,}")]
        self.roles.children = cells

    def _show_stages(self, stages: list[dict], plan: dict[str, int]) -> None:
        cells = []
        for stage in stages:
            shares = " + ".join(f"{share:.0%} {role.replace('_', ' ')}"
                                for role, share in stage["shares"].items())
            bar = text_label(shares, "sftb-box")
            bar.style.background = share_bar(stage["shares"], SHADES[stage["kind"]])
            cells += [text_label(stage["name"].replace("_", " ")), bar,
                      text_label(f"{plan[stage['name']]:,} steps")]
        self.plan.children = cells

    def _show_forecast(self, answer: dict) -> None:
        self.forecast.value = answer["forecast_text"]
        show(self.measure_button, answer["forecast"]["seconds"] is None)  # large models: only on demand

    def measure(self) -> None:
        """Train a few steps in the helper to forecast the time."""
        self.form.status.call_in_thread(self._measure, self.shown)

    def _measure(self, recipe: dict) -> None:
        with self.form.status.count_seconds(self.note, "Measuring a few steps of each stage …"):
            self._show_forecast(self.form.ask({"do": "forecast", "recipe": recipe}))


class RatesPart:
    """Learning rates tried on the recipe's model and data; `widget` is what to show."""

    def __init__(self, form):
        self.form, self.found = form, {}  # rates by recipe field
        self.start = button("Try learning rates", lambda: form.status.call_in_thread(self.test))
        self.take = button("Take them", lambda: form.set(**self.found))
        self.note, self.result = text_label("", "sftb-quiet"), text_label()
        self.picture = widgets.Image(format="png")
        self.widget = Fold("Which learning rate? A range test", text_label(RATES, "sftb-quiet"),
                           row(self.start, self.note), row(self.result, self.take), self.picture).widget
        self._show({}, b"")

    def test(self) -> None:
        """Request the range tests of the form's recipe, and show curve and rates."""
        self._show({}, b"")
        self.start.disabled = True
        try:
            with self.form.status.count_seconds(self.note, "Trying rates …"):
                request = {"do": "try_rates", "recipe": recipe_to_dict(self.form.recipe)}
                answer = self.form.ask(request, RATES_TIMEOUT)
            self._show(answer["rates"], Path(answer["picture"]).read_bytes())
            self.form.status.report(f"The curve is kept in {answer['folder']}.")
        finally:
            self.start.disabled = False

    def _show(self, rates: dict[str, float | None], picture: bytes) -> None:
        self.found = {name: rate for name, rate in rates.items() if rate}
        self.result.value = ", ".join(f"{name} {rate or 'none, as the loss never fell'}"
                                      for name, rate in rates.items())
        self.picture.value = picture
        for widget, shown in ((self.result, rates), (self.take, self.found), (self.picture, picture)):
            show(widget, bool(shown))
