"""The form's first step: mode, method, model, data and values, each with what is advised and why."""

from collections.abc import Callable
from importlib.util import find_spec

import ipywidgets as widgets

from ..errors import BadInput
from ..recipes.facts import Facts
from ..recipes.modes import MODES, check_method_chain, find_start_model, recipe_stages
from ..recipes.recipe import METHOD_DESCRIPTIONS, METHODS, Recipe, override
from ..recipes.rules import suggest_mode
from ..recipes.warnings import missing_roles
from .fields import data_fold, values_fold
from .widgets import Choice, Fold, button, column, grid, row, set_class, show, text_label

SHADES = {"cpt": "#EAF1EA", "sft": "#F4EEF6", "start": "#EEEEEE"}  # stages as in the pictures
SIDES = {"domain": "#0072B2", "general": "#E69F00"}
QUESTIONS = {  # question: (answers: the facts that each states)
    "Does your text differ from what the model has read?": {
        "not sure": {}, "yes, much": {"differs": True}, "no": {"differs": False}},
    "How much text of your field is there?": {
        "as counted": {}, "less than a billion tokens": {"tokens": {"domain_text": 1e7}},
        "a billion tokens or more": {"tokens": {"domain_text": 1e9}}},
    "What counts in the end?": {
        "not sure": {}, "the domain alone": {"wants": "domain"}, "general ability too": {"wants": "both"}},
    "How much hardware and time is there?": {
        "not sure": {}, "much": {"resources": "much"}, "little": {"resources": "little"}},
}


def impossible_modes(recipe: Recipe, facts: Facts) -> dict[str, str]:
    """Modes that cannot run with this recipe's models and data as far as known, each with the reason."""
    reasons = {}
    for number, mode in MODES.items():
        missing = " and ".join(missing_roles(mode, facts))
        if reason := f"mode {number} needs data for {missing}" if missing else _refusal(
                find_start_model, override(recipe, mode=number), mode):
            reasons[number] = reason
    return reasons


def impossible_methods(recipe: Recipe, field_name: str = "method") -> dict[str, str]:
    """Methods that the chain or this machine cannot take for the field, each with the reason."""
    reasons = {} if find_spec("bitsandbytes") else {
        "qlora": "qlora needs the package bitsandbytes, which is not installed here"}
    for method in METHODS:
        if reason := _refusal(check_method_chain, override(recipe, **{field_name: method})):
            reasons[method] = reason
    return reasons


def _refusal(check: Callable, *arguments) -> str:
    """What is wrong by this check; empty if nothing is."""
    try:
        check(*arguments)
    except BadInput as error:
        return str(error)
    return ""


def format_shares(shares: dict[str, float]) -> str:
    """What a stage draws from, in a few words: `domain text`, `33% domain + 67% general`."""
    if len(shares) == 1:
        return next(iter(shares)).replace("_", " ")
    tasks = sum(share for role, share in shares.items() if role.endswith("_tasks"))
    if all(role.endswith("_tasks") for role in shares):
        return " + ".join(f"{share:.0%} {role.split('_')[0]}" for role, share in shares.items())
    return f"{1 - tasks:.0%} text + {tasks:.0%} tasks"


def share_bar(shares: dict[str, float], shade: str) -> str:
    """A CSS background: the stage's shade with a bar of domain blue and general orange at its foot."""
    stops, at = [], 0.0
    for role, share in shares.items():
        stops.append(f"{SIDES[role.split('_')[0]]} {at:.0%} {at + share:.0%}")
        at += share
    return f"linear-gradient(90deg, {', '.join(stops)}) left bottom / 100% 3px no-repeat, {shade}"


def mode_grid(form) -> widgets.Widget:
    """The modes as a drawing: one line a mode, a box spans the modes that share a start or a first stage.

    A grid of labels, no picture: sharp at any width, and readable by a screen reader.
    """
    choice = Choice({number: number for number in MODES}, "")
    sentences = {number: text_label("", "sftb-sentence", "sftb-quiet", grid_area=f"{line} / 6")
                 for line, number in enumerate(MODES, 1)}
    for line, number in enumerate(MODES, 1):
        choice.buttons[number].layout.grid_area = f"{line} / 1"
    boxes = _chain_boxes()
    labels = {chain: text_label("", "sftb-box", grid_area=_box_area(chain, numbers))
              for chain, numbers in boxes.items()}

    def refresh() -> None:
        reasons = impossible_modes(form.recipe, form.facts)
        # by number or name; a mode of the user's own has no button
        choice.value = next((number for number, mode in MODES.items()
                             if form.recipe.mode in (number, mode.name)), "")
        choice.rule_out(reasons)
        for chain, numbers in boxes.items():
            set_class(labels[chain], "sftb-current", choice.value in numbers)
            _describe_box(labels[chain], chain, numbers[0], form.recipe)
        for number, label in sentences.items():
            label.value = reasons.get(number, MODES[number].sentence)

    form.watch(refresh, "recipe", "facts")
    choice.observe(lambda change: change.new and form.set(mode=change.new), "value")
    return grid("sftb-modes", *choice.buttons.values(), *labels.values(), *sentences.values())


def _chain_boxes() -> dict[tuple[str, ...], list[str]]:
    """Each start and stage once, as the names of the chain up to it, with the modes that share it."""
    boxes = {}
    for number, mode in MODES.items():
        chain = (mode.start, *(stage.name for stage in mode.stages))
        for length in range(1, len(chain) + 1):
            boxes.setdefault(chain[:length], []).append(number)
    return boxes


def _box_area(chain: tuple[str, ...], numbers: list[str]) -> str:
    """CSS `grid-area` of a box, from the first to the last of its modes, which are neighbours."""
    lines = list(MODES)
    first, last = lines.index(numbers[0]) + 1, lines.index(numbers[-1]) + 1
    return f"{first} / {len(chain) + 1} / {last + 1} / {len(chain) + 2}"


def _describe_box(label: widgets.Label, chain: tuple[str, ...], number: str, recipe: Recipe) -> None:
    if len(chain) == 1:
        label.value, label.style.background = chain[0], SHADES["start"]
        return
    stage = recipe_stages(recipe, MODES[number])[len(chain) - 2]
    label.value = f"{stage.kind.upper()}\n{format_shares(stage.shares)}"
    label.style.background = share_bar(stage.shares, SHADES[stage.kind])
    label.tooltip = ", ".join(f"{share:.0%} {role.replace('_', ' ')}" for role, share in stage.shares.items())


def method_list(form) -> widgets.Widget:
    """The five methods with what each trains, and the method of CPT stages where there are any."""
    choice = Choice({name: name for name in METHODS}, "")
    cpt_choice = Choice({"": "the same", **{name: name for name in METHODS}}, "")
    notes = {name: text_label("", "sftb-quiet") for name in METHODS}
    cpt_note = text_label("", "sftb-quiet", "sftb-note")
    cpt_row = row(text_label("CPT stages by", "sftb-head"), *cpt_choice.buttons.values(), cpt_note)

    def refresh() -> None:
        recipe = form.recipe
        reasons, cpt_reasons = impossible_methods(recipe), impossible_methods(recipe, "cpt_method")
        choice.value, cpt_choice.value = recipe.method, recipe.cpt_method or ""
        choice.rule_out(reasons)
        cpt_choice.rule_out(cpt_reasons)
        for name, label in notes.items():
            wrong = f". Not possible: {reasons[name]}" if name in reasons else ""
            label.value = METHOD_DESCRIPTIONS[name] + wrong
        impossible = ", ".join(cpt_reasons)
        cpt_note.value = f"Not possible before {recipe.method}: {impossible}." if impossible else ""
        show(cpt_row, any(stage.kind == "cpt" for stage in recipe_stages(form.recipe)))

    form.watch(refresh, "recipe")
    choice.observe(lambda change: form.set(method=change.new), "value")
    cpt_choice.observe(lambda change: form.set(cpt_method=change.new or None), "value")
    cells = [cell for name in METHODS for cell in (choice.buttons[name], notes[name])]
    return column(grid("sftb-pair", *cells), cpt_row)


def advice_fold(form) -> Fold:
    """Four plain questions, the mode they suggest, and the rules that voted for it."""
    answers = [widgets.Dropdown(options=list(options), description=question, layout={"width": "auto"},
                                style={"description_width": "370px"})
               for question, options in QUESTIONS.items()]
    suggested, rules = text_label("", "sftb-head"), text_label("", "sftb-lines")
    take = button("", lambda: form.set(mode=suggestion(form.all_facts())[0]))

    def refresh() -> None:
        best, lines = suggestion(form.all_facts())
        suggested.value = f"Suggested: mode {best}. {MODES[best].sentence}" if best else lines[0]
        rules.value = "\n".join(lines if best else []) or "No rule speaks yet: answer what you know."
        take.description = f"Take mode {best}"
        take.disabled = not best or form.recipe.mode == best

    def answer(_) -> None:
        form.stated = {name: value for control, options in zip(answers, QUESTIONS.values(), strict=True)
                       for name, value in options[control.value].items()}

    for control in answers:
        control.observe(answer, "value")
    form.watch(refresh, "recipe", "facts", "stated")
    return Fold("Which mode? Four questions", *answers, row(suggested, take), rules)


def suggestion(facts: Facts) -> tuple[str, list[str]]:
    """The suggested mode and the rules that voted for it as lines; or an empty text and why there is none."""
    try:
        best, rules = suggest_mode(facts)
    except BadInput as error:
        return "", [str(error)]
    return best, [f"{rule.rule}  {rule.advice}, because {rule.reason}." for rule in rules]


def choose_step(form) -> widgets.Widget:
    """The complete step."""
    warnings = text_label("", "sftb-warn", "sftb-lines")

    def refresh() -> None:  # warnings of a field are shown beside its control
        lines = [f"! {line}" for line in form.warnings() if line.split()[0] not in form.controls]
        warnings.value = "\n".join(lines)
        show(warnings, bool(lines))

    folds = advice_fold(form), data_fold(form), values_fold(form)
    form.watch(refresh, "recipe", "facts")
    note = text_label("A box over several modes is trained once and shared. Blue: domain; orange: general.",
                      "sftb-quiet", "sftb-note")
    return column(folds[0].widget, text_label("Mode", "sftb-head"), mode_grid(form), note, warnings,
                  text_label("Method", "sftb-head"), method_list(form), folds[1].widget, folds[2].widget)
