"""The form's fields: a control for every value of a recipe, what is advised and why, and a mark."""

from typing import Any

import ipywidgets as widgets

from ..data.sources import check_source, find_model_folder
from ..errors import BadInput
from ..recipes.facts import Facts
from ..recipes.hyperparameters import ADVISED, Advised, resolve_recipe
from ..recipes.modes import StagePlan
from ..recipes.recipe import (
    FIELDS,
    METHOD_OPTIONS,
    ROLES,
    Recipe,
    field_help,
    field_type,
    override,
    parse_value,
)
from .widgets import Fold, box, show, text_label

GROUPS = {
    "SFT stages": ("learning_rate", "warmup_ratio", "num_train_epochs", "per_device_train_batch_size"),
    "CPT stages": ("cpt_learning_rate", "cpt_warmup_ratio", "cpt_num_train_epochs",
                   "cpt_per_device_train_batch_size"),
    "Mixture": ("general_share", "task_share"),
    "Method": tuple(dict.fromkeys(name for names in METHOD_OPTIONS.values() for name in names)),
    "All stages": ("max_steps", "max_length", "packing", "gradient_accumulation_steps", "lr_scheduler_type",
                   "weight_decay", "max_grad_norm", "bf16", "gradient_checkpointing"),
}
MODEL_AND_DATA = ("model", "chat_model", *ROLES)
MORE_DATA = ("model_revision", "pocket_seed", *(f"{role}_probe" for role in ROLES), "mode")
# whatever has no other place
GROUPS["Probes, seed and folder"] = tuple(sorted(
    set(FIELDS) - {"method", "cpt_method", *MODEL_AND_DATA, *MORE_DATA}.union(*GROUPS.values()),
    key=list(FIELDS).index))
IN_TABLE = {name for names in GROUPS.values() for name in names}
ADVICE = ""  # stands for None in a list of choices, where ipywidgets 8.1 takes None for nothing chosen


def advised(recipe: Recipe, facts: Facts) -> dict[str, Advised]:
    """For every field its value if nothing is said, and why: advice, or the fixed default and its help."""
    full, _ = resolve_recipe(recipe, facts)
    return {name: ADVISED[name](full, facts) if name in ADVISED else
            Advised(FIELDS[name].default, field_words(name))
            for name in FIELDS}


def field_words(name: str) -> str:
    """The help of a field, in the form's words: what a notebook calls None is an empty control here."""
    return field_help(name).replace("None:", "empty:")


def in_use(recipe: Recipe, stages: tuple[StagePlan, ...]) -> set[str]:
    """The fields that have an effect with this chain and these methods."""
    kinds = {stage.kind for stage in stages}
    methods = {recipe.cpt_method or recipe.method if kind == "cpt" else recipe.method for kind in kinds}
    used = set(FIELDS) - set(GROUPS["Method"]) - set(GROUPS["Mixture"])
    if "cpt" not in kinds:
        used -= set(GROUPS["CPT stages"]) | {"cpt_method"}
    for method in methods:
        used |= set(METHOD_OPTIONS[method])
    for stage in stages:
        tasks = {role for role in stage.shares if role.endswith("_tasks")}
        if len(tasks) == 2 or recipe.general_share in (0, 1):
            used.add("general_share")
        if stage.kind == "cpt" and (tasks or recipe.task_share is not None):
            used.add("task_share")
    return used


def format_value(value: Any) -> str:
    """A value as a short text: `advised` reads better than None only where a number is not known."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "–" if value is None else str(value)


def field_control(form, name: str) -> widgets.Widget:
    """The control of a recipe field: choices, yes or no, or a text; what it says goes by `override`.

    A text that is no value of the field stays in the control, is told in words, and the recipe keeps the
    value it had.
    """
    limits, kind = FIELDS[name].metadata, field_type(name)
    common = {"description": name, "tooltip": field_words(name), "layout": {"width": "auto"},
              "style": {"description_width": "228px" if name in IN_TABLE else "150px"}}
    if "choices" in limits or kind is bool:
        control = widgets.Dropdown(options=_options(name), value=_chosen(form.recipe, name), **common)
    else:
        control = widgets.Text(
            value=_written(form.recipe, name),
            continuous_update=False,
            placeholder=field_words(name),
            **common,
        )  # in the table it is the advised value
    form.controls.setdefault(name, control)

    def send(change) -> None:
        if form.is_quiet:
            return
        try:
            value = _read(name, change.new)
            override(form.recipe, **{name: value})
            _must_be_there(name, value)
            if name in form.errors:
                form.errors = {key: told for key, told in form.errors.items() if key != name}
                form.say("")
            form.set(**{name: value})
        except BadInput as error:
            form.errors = {**form.errors, name: str(error)}
            form.say(str(error), bad=True)

    def receive(_=None) -> None:
        wanted = (_chosen if isinstance(control, widgets.Dropdown) else _written)(form.recipe, name)
        if control.value != wanted and name not in form.errors:
            with form.quiet():
                control.value = wanted

    control.observe(send, "value")
    form.observe(receive, "recipe")
    return control


def _must_be_there(name: str, value: Any) -> None:
    """Raise BadInput for a model or data that no file, folder or hub could have."""
    if value is None:
        return
    if name in ("model", "chat_model"):
        find_model_folder(value)
    elif name.removesuffix("_probe") in ROLES:
        check_source(value, name)


def _options(name: str) -> list[tuple[str, Any]]:
    values = FIELDS[name].metadata.get("choices", (True, False))
    word = "advised" if name in ADVISED else "none"
    empty = [(word, ADVICE)] if FIELDS[name].default is None else []
    return empty + [(format_value(value), value) for value in values]


def _chosen(recipe: Recipe, name: str) -> Any:
    value = getattr(recipe, name)
    return ADVICE if value is None else value


def _written(recipe: Recipe, name: str) -> str:
    """A value as text; in the table a default is left to the placeholder."""
    value = getattr(recipe, name)
    return "" if value is None or (name in IN_TABLE and value == FIELDS[name].default) else str(value)


def _read(name: str, entered: Any) -> Any:
    """The value of a choice or a text; an empty one stands for the advised value or the default."""
    if not isinstance(entered, str):
        return entered
    return parse_value(name, entered.strip()) if entered.strip() else FIELDS[name].default


def values_fold(form) -> Fold:
    """Every hyperparameter in a table: yours, advised, because."""
    cells, rows, heads = [], {}, {}
    for title in ("yours (empty: advised)", "advised", "because"):
        cells.append(text_label(title, "sftb-quiet", "sftb-columns"))
    for group, names in GROUPS.items():
        heads[group] = text_label(group, "sftb-head", "sftb-wide")
        cells.append(heads[group])
        for name in names:
            rows[name] = (
                field_control(form, name),
                text_label("", "sftb-advised"),
                text_label("", "sftb-quiet"),
            )
            cells += rows[name]
    fold = Fold("Values", box(*cells, classes=("sftb-values",), kind=widgets.Box))

    def refresh(_=None) -> None:
        best, used = advised(form.recipe, form.facts), in_use(form.recipe, form.stages())
        warned = {line.split()[0]: line for line in form.warnings()}
        for name, (control, value, why) in rows.items():
            for cell in (control, value, why):
                show(cell, name in used)
            value.value = format_value(best[name].value)
            _tell(why, form.errors.get(name) or warned.get(name), best[name].explanation)
            if isinstance(control, widgets.Text):
                control.placeholder = format_value(best[name].value)
        rows["bf16"][0].disabled = form.facts.bf16 is False and not form.recipe.bf16
        for group, head in heads.items():
            show(head, bool(used & set(GROUPS[group])))
        own = [name for name in rows if name in used
               and getattr(form.recipe, name) not in (FIELDS[name].default, best[name].value)]
        marked = sum(name in warned or name in form.errors for name in rows)
        fold.say((f"yours: {', '.join(own)}" if own else "all as advised")
                 + (f"; {marked} to look at" if marked else ""))

    form.observe(refresh, ["recipe", "facts", "errors"])
    refresh()
    return fold


def _tell(label: widgets.Label, warning: str | None, reason: str) -> None:
    """The warning with a mark in words, or else the reason."""
    label.value = f"! {warning}" if warning else reason
    (label.add_class if warning else label.remove_class)("sftb-warn")
