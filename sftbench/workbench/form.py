"""The workbench: one form from choice to comparison, that edits a recipe and reads runs' folders."""

import contextlib
import threading
from collections.abc import Callable

import ipywidgets as widgets
import traitlets

from ..errors import BadInput
from ..pocket import FOLDERS
from ..recipes.facts import Facts
from ..recipes.modes import MODES, check_method_chain, find_start_model, load_mode
from ..recipes.pretraining_rates import add_pretraining
from ..recipes.recipe import FIELDS, Recipe, override
from ..recipes.serialize import read_recipe
from ..recipes.warnings import recipe_warnings
from ..sources.names import read_model_config
from ..workers.client import HelperProcess
from .fields import MODEL_AND_DATA, MORE_DATA, text_fold
from .step_choose import choose_step
from .step_compare import CompareStep
from .step_look import LookStep
from .step_talk import TalkStep
from .step_train import TrainStep, draw_once
from .widgets import Choice, Status, add_classes, button, column, row, show, style_sheet, text_label

STEPS = {"choose": "1 Choose", "look": "2 Look", "train": "3 Train", "compare": "4 Compare", "talk": "5 Talk"}
NEXT = {"choose": ("look", "Next: look at the data"), "look": ("train", "Next: train"),
        "train": ("compare", "Next: compare runs"), "compare": ("talk", "Next: talk to the models"),
        "talk": ("choose", "Choose another recipe")}
COUNTED = {*MODEL_AND_DATA, *MORE_DATA} - {"mode"}  # the fields on which rows and tokens depend


class Form(traitlets.HasTraits):
    """The form's state, which its steps watch and change; `widget` is what to show.

    The recipe is changed by `set` alone, so by `override`. What a control holds that is no value is in
    `errors`, by field, and the recipe keeps the value that it had.
    """

    recipe = traitlets.Instance(Recipe)
    facts = traitlets.Instance(Facts)  # measured, or read from the start model's card
    stated = traitlets.Dict()  # facts that the user states by answers to the four questions
    errors = traitlets.Dict()

    def __init__(self, recipe: Recipe | None = None):
        super().__init__(recipe=recipe or Recipe(), facts=Facts())
        self.facts = start_model_facts(self.recipe)
        self.controls, self.helper, self.status = {}, None, Status()
        self.steps = Choice(STEPS, "choose", marks=False)
        self.parts = {"look": LookStep(self), "train": TrainStep(self), "compare": CompareStep(self),
                      "talk": TalkStep(self)}
        pages = {"choose": choose_step(self), **{name: part.widget for name, part in self.parts.items()}}
        self.pages = {name: add_classes(page, "sftb-page") for name, page in pages.items()}
        self.forward = button("", self._go_forward, "sftb-main")
        self.widget = column(style_sheet(), self._head(), *self.pages.values(),
                             column(self.status.label, row(self.forward), css="sftb-status"),
                             text_fold(self).widget, css="sftb")
        self.steps.observe(lambda _: self._open_step(), "value")
        self.observe(self._drop_counts, "recipe")
        self._open_step()
        self._show_earlier_run(with_recipe=recipe is None)

    def _head(self) -> widgets.Widget:
        """The recipe in a few words, and the steps."""
        summary = text_label("", "sftb-quiet")

        def refresh() -> None:
            recipe = self.recipe
            mode = f"mode {recipe.mode}" if recipe.mode in MODES else load_mode(recipe.mode).name
            method = recipe.method + (f" (CPT: {recipe.cpt_method})" if recipe.cpt_method else "")
            summary.value = f"{mode} · {method} · {recipe.model}"

        self.watch(refresh, "recipe")
        return column(row(text_label("sftbench", "sftb-title"), summary),
                      row(*self.steps.buttons.values(), css="sftb-steps"))

    def _open_step(self) -> None:
        """Show the chosen step, and the button to the next."""
        self.status.report("")
        for name, page in self.pages.items():
            show(page, name == self.steps.value)
        if self.steps.value in self.parts:
            self.parts[self.steps.value].refresh()
        self.forward.description = self.forward.tooltip = NEXT[self.steps.value][1]

    def _go_forward(self) -> None:
        self.steps.value = NEXT[self.steps.value][0]

    def _show_earlier_run(self, with_recipe: bool) -> None:
        """Follow a run that is running, else show the newest if it can be resumed; take over its recipe."""
        train = self.parts["train"]
        if train.attach():
            message, self.steps.value = self.status.label.value, "train"
            self.status.report(message)
        if with_recipe and train.folder:
            with contextlib.suppress(BadInput):
                self._take(read_recipe(train.folder))

    # the recipe, and what is known of it

    def watch(self, refresh: Callable[[], None], *names: str) -> None:
        """Call `refresh` now, and whenever one of these traits changes."""
        self.observe(lambda _: refresh(), names)
        refresh()

    def set(self, **values) -> None:
        """Change recipe values by `override`; a refusal is reported and changes nothing."""
        with self.status.guard():
            recipe = override(self.recipe, **values)
            load_mode(recipe.mode)
            self.recipe = recipe

    def load(self, source: str) -> None:
        """Take the recipe of a run's folder, a recipe.json or a notebook into the form.

        Values that were advised in a run are advised anew, so that the form shows what its user had set.
        """
        with self.status.guard():
            if not source.strip():
                raise BadInput("name a run's folder, a recipe.json or a notebook to load from")
            self._take(read_recipe(source.strip()))
            own = [name for name in FIELDS if getattr(self.recipe, name) != FIELDS[name].default]
            values = ", ".join(own) or "nothing, all is as advised"
            self.status.report(f"Loaded {source}; set in it: {values}.")

    def _take(self, recipe: Recipe) -> None:
        load_mode(recipe.mode)
        self.errors = {}
        self.recipe = recipe

    def all_facts(self) -> Facts:
        """The facts with those that the user states."""
        return self.facts.add("stated", **self.stated)

    def warnings(self) -> list[str]:
        """What cannot run, and what departs far from the advice."""
        try:
            check_method_chain(self.recipe)
        except BadInput as error:
            return [str(error)]
        return recipe_warnings(self.recipe, self.all_facts())

    def to_correct(self) -> list[str]:
        """What the controls hold that is no value, each with what is wrong."""
        return [text if text.startswith(name) else f"{name}: {text}" for name, text in self.errors.items()]

    def _drop_counts(self, change) -> None:
        """What was counted is no longer true once model or data are others."""
        if any(getattr(change.old, name) != getattr(change.new, name) for name in COUNTED):
            self.facts = start_model_facts(self.recipe)

    # the helper process, which has the libraries

    def load_ahead(self) -> threading.Thread:
        """Load libraries while the user chooses: for training in the helper, for pictures in a thread."""
        self.helper = HelperProcess()
        return self.status.call_in_thread(draw_once)

    def ask(self, request: dict, timeout: float = 120) -> dict:
        """The helper's answer, waited for so many seconds; raises BadInput where it has none."""
        if self.helper is None or not self.helper.free:
            self.helper = HelperProcess()
        answer = self.helper.ask(request, timeout)
        if "error" in answer:
            raise BadInput(answer["error"]["message"])
        return answer

    def close(self) -> None:
        """End the helper and follow no run any more; runs continue."""
        self.parts["train"].follower = None
        if self.helper:
            self.helper.close()


def start_model_facts(recipe: Recipe) -> Facts:
    """What can be known of the start model before its data are looked at."""
    try:
        start = find_start_model(recipe)
        config = read_model_config(start)
    except BadInput:
        return Facts()
    return add_pretraining(Facts().add("measured", pocket=start in FOLDERS), config)


_shown: list[Form] = []


def form(recipe: Recipe | None = None) -> widgets.Widget:
    """The workbench as a widget: show it as the last line of a cell, or in Voila.

    A helper process begins to load the libraries while you choose. A form that this kernel showed before ends
    its own.
    """
    while _shown:
        _shown.pop().close()
    _shown.append(Form(recipe))
    _shown[-1].load_ahead()
    return _shown[-1].widget
