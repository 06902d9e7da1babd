"""The workbench: one form from choice to comparison, that edits a recipe and reads runs' folders."""

import contextlib
import threading

import ipywidgets as widgets
import traitlets

from ..data.sources import read_card_rate
from ..errors import BadInput
from ..pocket import FOLDERS
from ..recipes.facts import Facts
from ..recipes.modes import MODES, StagePlan, check_method_chain, find_start_model, load_mode, recipe_stages
from ..recipes.recipe import FIELDS, Recipe, differing_fields, override, recipe_to_dict
from ..recipes.serialize import format_cell, format_command, read_recipe
from ..recipes.warnings import recipe_warnings
from ..workers.client import start_helper
from .fields import MODEL_AND_DATA, MORE_DATA
from .step_choose import choose_step
from .step_compare import CompareStep
from .step_look import LookStep
from .step_talk import TalkStep
from .step_train import TrainStep, ready_to_draw
from .widgets import Choice, Fold, box, button, guarded, in_background, row, show, style, text_label

STEPS = {"choose": "1 Choose", "look": "2 Look", "train": "3 Train", "compare": "4 Compare", "talk": "5 Talk"}
NEXT = {"choose": ("look", "Next: look at the data"), "look": ("train", "Next: train"),
        "train": ("compare", "Next: compare runs"), "compare": ("talk", "Next: talk to the models"),
        "talk": ("choose", "Choose another recipe")}

COUNTED = {*MODEL_AND_DATA, *MORE_DATA} - {"mode"}  # the fields on which rows and tokens depend


class Form(traitlets.HasTraits):
    """The form's state: the recipe that its controls edit, what is known of data and model, and its status.

    `widget` is what to show. Every change goes through `set`, so by `override`; what a control holds that is
    no value stays in `errors`, by field, and the recipe keeps the value it had.
    """

    recipe = traitlets.Instance(Recipe)
    facts = traitlets.Instance(Facts)
    errors = traitlets.Dict()

    def __init__(self, recipe: Recipe | None = None):
        super().__init__(recipe=recipe or Recipe(), facts=Facts())
        self.facts = self._facts_before()
        self.controls, self.said, self.suggested = {}, {}, ""
        self._quiet = threading.local()
        self.status = text_label("", "sftb-told")
        self.steps = Choice(STEPS, "choose", marks=False)
        self.helper = None
        self.parts = {
            "look": LookStep(self),
            "train": TrainStep(self),
            "compare": CompareStep(self),
            "talk": TalkStep(self),
        }
        self.pages = {"choose": choose_step(self), **{name: part.widget for name, part in self.parts.items()}}
        for page in self.pages.values():
            page.add_class("sftb-page")
        self.forward = button("", self._forward, "sftb-main")
        self.chain = text_label("", "sftb-quiet")
        head = box(row(text_label("sftbench", "sftb-title"), self.chain),
                   box(*self.steps.buttons.values(), classes=("sftb-steps",), kind=widgets.HBox))
        foot = box(self.status, row(self.forward), classes=("sftb-status",))
        self.widget = box(style(), head, *self.pages.values(), foot, self._spelt().widget, classes=("sftb",))
        self.steps.observe(self._turn, "value")
        self.observe(self._summarise, "recipe")
        self.observe(self._forget, "recipe")
        self._turn()
        self._summarise()
        if self.parts["train"].attach():
            told, self.steps.value = self.status.value, "train"
            self.say(told)
        if recipe is None and self.parts["train"].folder:  # the choice is that of the run that is shown
            with contextlib.suppress(BadInput):
                found = read_recipe(self.parts["train"].folder)
                load_mode(found.mode)
                self.recipe = found

    def set(self, **values) -> None:
        """Change recipe values through the one door; a refusal is told and changes nothing."""
        guarded(self.say, self._set, values)

    def _set(self, values: dict) -> None:
        changed = override(self.recipe, **values)
        load_mode(changed.mode)
        self.recipe = changed

    def say(self, words: str, bad: bool = False) -> None:
        """Show one line of status; `bad` marks it as an error."""
        self.status.value = f"! {words}" if bad else words
        (self.status.add_class if bad else self.status.remove_class)("sftb-warn")

    @contextlib.contextmanager
    def quiet(self):
        """While it lasts, controls are written without writing back."""
        self._quiet.on = True
        try:
            yield
        finally:
            self._quiet.on = False

    @property
    def is_quiet(self) -> bool:
        """Whether this thread is writing controls."""
        return getattr(self._quiet, "on", False)

    def in_background(self, act, *arguments) -> None:
        """Call `act` in a thread, so that the form stays usable; its error is told in the status line."""
        in_background(guarded, self.say, act, *arguments)

    def ask(self, request: dict) -> dict:
        """The answer of the process that has the libraries, waited for; raises BadInput where it has none."""
        if self.helper is None or not self.helper.free:
            self.helper = start_helper()
        answer = self.helper.ask(request)
        if "error" in answer:
            raise BadInput(answer["error"]["message"])
        return answer

    def ahead(self) -> threading.Thread:
        """Load libraries while the user chooses: for training in a process, for pictures in a thread."""
        self.helper = start_helper()
        return in_background(ready_to_draw)

    def close(self) -> None:
        """Let go of the process that was started ahead, and follow no run any more; runs go on."""
        self.parts["train"].token = None
        if self.helper:
            self.helper.close()

    def stages(self) -> tuple[StagePlan, ...]:
        """The recipe's stages, with its shares."""
        return recipe_stages(self.recipe)

    def warnings(self) -> list[str]:
        """What cannot run, and what departs far from the advice."""
        try:
            check_method_chain(self.recipe)
        except BadInput as error:
            return [str(error)]
        return recipe_warnings(self.recipe, self.facts.add("stated", **self.said))

    def _summarise(self, _=None) -> None:
        mode = load_mode(self.recipe.mode)
        name = f"mode {self.recipe.mode}" if self.recipe.mode in MODES else mode.name
        method = self.recipe.method + (f" (CPT: {self.recipe.cpt_method})" if self.recipe.cpt_method else "")
        self.chain.value = f"{name} · {method} · {self.recipe.model}"

    def _forget(self, change) -> None:
        """What was counted holds no longer once model or data are others."""
        if differing_fields(
            recipe_to_dict(change.old), recipe_to_dict(change.new), ignore=set(FIELDS) - COUNTED
        ):
            self.facts = self._facts_before()

    def _facts_before(self) -> Facts:
        """What can be known of the start model before its data are looked at."""
        try:
            start = find_start_model(self.recipe)
            facts = Facts().add("measured", pocket=start in FOLDERS)
            return facts.add("card", pretraining_learning_rate=read_card_rate(start))
        except BadInput:
            return Facts()

    def to_correct(self) -> list[str]:
        """What the controls hold that is no value, each with what is wrong."""
        return [told if told.startswith(name) else f"{name}: {told}" for name, told in self.errors.items()]

    def _turn(self, _=None) -> None:
        """Show the chosen step, and the way on."""
        self.say("")
        for name, page in self.pages.items():
            show(page, name == self.steps.value)
        if self.steps.value in self.parts:
            self.parts[self.steps.value].refresh()
        self.forward.description = self.forward.tooltip = NEXT[self.steps.value][1]

    def _forward(self) -> None:
        self.steps.value = NEXT[self.steps.value][0]

    def _spelt(self) -> Fold:
        """The recipe as a command and as a cell to copy, and a field to load another from."""
        command, cell = (widgets.Textarea(description=words, layout={"width": "auto"}, rows=rows,
                                          style={"description_width": "130px"})
                         for words, rows in (("as a command", 2), ("as a parameters cell", 4)))
        place = widgets.Text(description="load from", placeholder="a run's folder, a recipe.json, a notebook",
                             style={"description_width": "130px"}, layout={"flex": "1 1 320px"})

        def refresh(_=None) -> None:
            command.value, cell.value = format_command(self.recipe), format_cell(self.recipe)
            if self.errors:
                lines = [f"# first correct {told}" for told in self.to_correct()]
                command.value = cell.value = "\n".join(lines)
            cell.rows = len(cell.value.splitlines()) + 1

        self.observe(refresh, ["recipe", "errors"])
        refresh()
        return Fold("This recipe as a command, as a parameters cell; load another", command, cell,
                    row(place, button("Load", lambda: self.load(place.value))))

    def load(self, place: str) -> None:
        """Take the recipe of a run's folder, a recipe.json or a notebook into the form."""
        def act() -> None:
            if not place.strip():
                raise BadInput("name a run's folder, a recipe.json or a notebook to load from")
            recipe = read_recipe(place.strip())
            load_mode(recipe.mode)
            self.errors = {}
            self.recipe = recipe
            set_here = [name for name in FIELDS if getattr(recipe, name) != FIELDS[name].default]
            self.say(f"Loaded {place}; set in it: {', '.join(set_here) or 'nothing, all is as advised'}.")
        guarded(self.say, act)


_shown: list[Form] = []


def form(recipe: Recipe | None = None) -> widgets.Widget:
    """The workbench as a widget: show it as the last line of a cell, or in Voila.

    A process begins to load the libraries while you choose. A form that this kernel showed before lets go of
    its own.
    """
    while _shown:
        _shown.pop().close()
    made = Form(recipe)
    made.ahead()
    _shown.append(made)
    return made.widget
