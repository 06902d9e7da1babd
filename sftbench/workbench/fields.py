"""The form's fields: a control for every value of a recipe, what is advised and why, the recipe as text."""

from typing import Any

import ipywidgets as widgets

from ..errors import BadInput
from ..recipes.facts import Facts
from ..recipes.hyperparameters import ADVISED, Advised, resolve_recipe
from ..recipes.modes import load_mode, recipe_stages
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
from ..recipes.serialize import format_cell, format_command
from ..sources.names import check_source, find_model_folder
from .widgets import Fold, button, column, grid, row, set_class, show, text_label

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
MORE_DATA = ("model_revision", "domain", "library_fields", "pocket_seed",
             *(f"{role}_probe" for role in ROLES), "mode")
# A new field of the recipe appears here until it gets a group.
GROUPS["Probes, seed and folder"] = tuple(sorted(
    set(FIELDS) - {"method", "cpt_method", *MODEL_AND_DATA, *MORE_DATA}.union(*GROUPS.values()),
    key=list(FIELDS).index))
IN_TABLE = [name for names in GROUPS.values() for name in names]
ADVICE = ""  # stands for None in a list of choices, where ipywidgets 8.1 takes None for nothing chosen


def advised_values(recipe: Recipe, facts: Facts) -> dict[str, Advised]:
    """What an empty control of each field stands for, and why: advice, or the fixed default and its help."""
    full, _ = resolve_recipe(recipe, facts)
    return {name: ADVISED[name](full, facts) if name in ADVISED else
            Advised(FIELDS[name].default, _help_text(name)) for name in FIELDS}


def fields_in_use(recipe: Recipe) -> set[str]:
    """The fields that have an effect with this recipe's chain and methods."""
    stages = recipe_stages(recipe)
    kinds = {stage.kind for stage in stages}
    used = set(FIELDS) - set(GROUPS["Method"]) - set(GROUPS["Mixture"])
    if "cpt" not in kinds:
        used -= {*GROUPS["CPT stages"], "cpt_method"}
    for kind in kinds:
        method = recipe.cpt_method if kind == "cpt" else None
        used.update(METHOD_OPTIONS[method or recipe.method])
    for stage in stages:
        tasks = [role for role in stage.shares if role.endswith("_tasks")]
        if len(tasks) == 2 or recipe.general_share in (0, 1):
            used.add("general_share")
        if stage.kind == "cpt" and (tasks or recipe.task_share is not None):
            used.add("task_share")
    return used


def format_value(value: Any) -> str:
    """A value as a short text; a dash for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "–" if value is None else str(value)


def field_control(form, name: str) -> widgets.Widget:
    """The control of a recipe's field: a list of choices, yes or no, or a text; empty stands for advised.

    What it holds goes into the recipe by `override`. A text that is no value of the field stays in the
    control, its error in `form.errors`, and the recipe keeps the value that it had.
    """
    common = {"description": name, "tooltip": _help_text(name), "layout": {"width": "auto"},
              "style": {"description_width": "228px" if name in IN_TABLE else "150px"}}
    if _has_choices(name):
        control = widgets.Dropdown(options=_options(name), **common)
    else:
        control = widgets.Text(continuous_update=False, placeholder=_help_text(name), **common)
    form.controls[name] = control

    def receive() -> None:
        value = _control_value(form.recipe, name)
        if control.value != value and name not in form.errors:
            control.value = value

    form.watch(receive, "recipe")
    control.observe(lambda change: _enter(form, name, change.new), "value")
    return control


def _help_text(name: str) -> str:
    """The help of a field in the form's words: what a notebook calls None is an empty control here."""
    return field_help(name).replace("None:", "empty:")


def _has_choices(name: str) -> bool:
    return "choices" in FIELDS[name].metadata or field_type(name) is bool


def _options(name: str) -> list[tuple[str, Any]]:
    values = FIELDS[name].metadata.get("choices", (True, False))
    empty = [("advised" if name in ADVISED else "none", ADVICE)] if FIELDS[name].default is None else []
    return empty + [(format_value(value), value) for value in values]


def _control_value(recipe: Recipe, name: str) -> Any:
    """What a field's control holds: a choice, or a text; the table leaves a default to the placeholder."""
    value = getattr(recipe, name)
    if _has_choices(name):
        return ADVICE if value is None else value
    return "" if value is None or (name in IN_TABLE and value == FIELDS[name].default) else str(value)


def _enter(form, name: str, entry: Any) -> None:
    """Take what was entered into the recipe, or what is wrong with it into `form.errors`."""
    if name not in form.errors and entry == _control_value(form.recipe, name):
        return  # not entered, but written from the recipe
    errors = {field: text for field, text in form.errors.items() if field != name}
    try:
        value = parse_entry(name, entry)
        override(form.recipe, **{name: value})
        _check_exists(name, value)
    except BadInput as error:
        form.errors = errors | {name: str(error)}
        form.status.report(str(error), error=True)
        return
    if name in form.errors:
        form.errors = errors
        form.status.report("")
    form.set(**{name: value})


def parse_entry(name: str, entry: Any) -> Any:
    """The value of a choice or a text; an empty one stands for the advised value or the default."""
    if not isinstance(entry, str):
        return entry
    return parse_value(name, entry.strip()) if entry.strip() else FIELDS[name].default


def _check_exists(name: str, value: Any) -> None:
    """Raise BadInput for a mode that is not known, and for a model or data that no file or hub could have.

    By the name alone, so that it takes no time where it is entered; a hub is not queried.
    """
    if name == "mode":
        load_mode(value)
    elif value is not None and name in ("model", "chat_model"):
        find_model_folder(value)
    elif value is not None and name.removesuffix("_probe") in ROLES:
        check_source(value, name)


def values_fold(form) -> Fold:
    """Every hyperparameter in a table: yours, advised, because."""
    rows = {name: (field_control(form, name), text_label("", "sftb-advised"), text_label("", "sftb-quiet"))
            for name in IN_TABLE}
    heads = {group: text_label(group, "sftb-head", "sftb-wide") for group in GROUPS}
    cells = [text_label(title, "sftb-quiet", "sftb-columns")
             for title in ("yours (empty: advised)", "advised", "because")]
    for group, names in GROUPS.items():
        cells += [heads[group], *(cell for name in names for cell in rows[name])]
    fold = Fold("Values", grid("sftb-values", *cells))

    def refresh() -> None:
        best, used = advised_values(form.recipe, form.facts), fields_in_use(form.recipe)
        warnings = {line.split()[0]: line for line in form.warnings()} | form.errors
        for name, cells in rows.items():
            _fill_row(cells, best[name], warnings.get(name))
            for cell in cells:
                show(cell, name in used)
        for group, head in heads.items():
            show(head, bool(used.intersection(GROUPS[group])))
        form.controls["bf16"].disabled = form.facts.bf16 is False and not form.recipe.bf16
        own = [name for name in rows if name in used
               and getattr(form.recipe, name) not in (FIELDS[name].default, best[name].value)]
        marked = len(warnings.keys() & rows)
        fold.set_note((f"yours: {', '.join(own)}" if own else "all as advised")
                      + (f"; {marked} to look at" if marked else ""))

    form.watch(refresh, "recipe", "facts", "errors")
    return fold


def _fill_row(cells: tuple, best: Advised, warning: str | None) -> None:
    """The advised value, and why, or else the warning with a mark in words."""
    control, value, reason = cells
    value.value = format_value(best.value)
    reason.value = f"! {warning}" if warning else best.explanation
    set_class(reason, "sftb-warn", bool(warning))
    if isinstance(control, widgets.Text):
        control.placeholder = value.value


def data_fold(form) -> Fold:
    """Model and data: the pocket unless something is named."""
    notes = {name: text_label("", "sftb-warn", "sftb-note") for name in (*MODEL_AND_DATA, *MORE_DATA)}

    def pairs(names) -> widgets.Box:
        return grid("sftb-two", *(column(field_control(form, name), notes[name]) for name in names))

    more = Fold("More: held-out files, revision, a mode of your own", pairs(MORE_DATA))
    fold = Fold("Model and data", pairs(MODEL_AND_DATA), more.widget)

    def refresh() -> None:
        own = [role for role in ROLES if getattr(form.recipe, role)]
        data = f"own {', '.join(own)}" if own else form.recipe.domain or (
            "its own data" if form.recipe.model.startswith("pocket") else "no data yet")
        wrong = "; something to correct" * bool(notes.keys() & form.errors)
        fold.set_note(f"{form.recipe.model}, {data}{wrong}")
        for name, label in notes.items():
            label.value = f"! {form.errors[name]}" if name in form.errors else ""
            show(label, bool(label.value))

    form.watch(refresh, "recipe", "errors")
    return fold


def text_fold(form) -> Fold:
    """The recipe as a command and as a cell to copy, and a field to load another from."""
    style = {"description_width": "130px"}
    command, cell = (widgets.Textarea(description=description, rows=2, style=style, layout={"width": "auto"})
                     for description in ("as a command", "as a parameters cell"))
    source = widgets.Text(description="load from", placeholder="a run's folder, a recipe.json, a notebook",
                          style=style, layout={"flex": "1 1 320px"})

    def refresh() -> None:
        wrong = "\n".join(f"# first correct {line}" for line in form.to_correct())
        command.value, cell.value = wrong or format_command(form.recipe), wrong or format_cell(form.recipe)
        cell.rows = len(cell.value.splitlines()) + 1

    form.watch(refresh, "recipe", "errors")
    return Fold("This recipe as a command, as a parameters cell; load another", command, cell,
                row(source, button("Load", lambda: form.load(source.value))))
