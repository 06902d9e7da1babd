"""The form's first step: mode, method, model, data and values, each with what is advised and why."""

from importlib.util import find_spec

import ipywidgets as widgets

from ..errors import BadInput
from ..recipes.facts import Facts
from ..recipes.modes import MODES, check_method_chain, find_start_model, recipe_stages
from ..recipes.recipe import METHOD_DESCRIPTIONS, METHODS, ROLES, Recipe, override
from ..recipes.rules import suggest_mode
from .fields import MODEL_AND_DATA, MORE_DATA, field_control, values_fold
from .widgets import Choice, Fold, box, button, row, show, text_label

SHADES = {"cpt": "#EAF1EA", "sft": "#F4EEF6", "start": "#EEEEEE"}
SIDES = {"domain": "#0072B2", "general": "#E69F00"}
QUESTIONS = {  # question: (answers: what each says to the rules)
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
        lacking = [role for role in mode.roles if facts.rows and not facts.row_count(role)]
        try:
            find_start_model(override(recipe, mode=number), mode)
        except BadInput as error:
            reasons[number] = str(error)
        if lacking:
            reasons[number] = f"mode {number} needs data for {' and '.join(lacking)}"
    return reasons


def impossible_methods(recipe: Recipe, field_name: str = "method") -> dict[str, str]:
    """Methods that the chain or this machine cannot take for the field, each with the reason."""
    reasons = {}
    for method in METHODS:
        if method == "qlora" and find_spec("bitsandbytes") is None:
            reasons[method] = "qlora needs the package bitsandbytes, which is not installed here"
        try:
            changed = override(recipe, **{field_name: method})
            check_method_chain(changed)
        except BadInput as error:
            reasons[method] = str(error)
    return reasons


def share_words(shares: dict) -> str:
    """What a stage draws from, in a few words: `domain text`, `33% domain + 67% general`."""
    kinds = {role.split("_")[1] for role in shares}
    if len(shares) == 1:
        return next(iter(shares)).replace("_", " ")
    if kinds == {"tasks"}:
        return " + ".join(f"{share:.0%} {role.split('_')[0]}" for role, share in shares.items())
    tasks = sum(share for role, share in shares.items() if role.endswith("_tasks"))
    return f"{1 - tasks:.0%} text + {tasks:.0%} tasks"


def share_bar(shares: dict, shade: str) -> str:
    """A CSS background: the stage's shade with a bar of domain blue and general orange at its foot."""
    stops, at = [], 0.0
    for role, share in shares.items():
        colour = SIDES[role.split("_")[0]]
        stops.append(f"{colour} {at:.0%} {at + share:.0%}")
        at += share
    return f"linear-gradient(90deg, {', '.join(stops)}) left bottom / 100% 3px no-repeat, {shade}"


def mode_grid(form) -> widgets.Widget:
    """The modes as a drawing: one line a mode, a box spans the modes that share a start or a first stage."""
    chosen = Choice({number: number for number in MODES}, form.recipe.mode)
    grid, boxes = box(classes=("sftb-modes",), kind=widgets.Box), []
    says = {number: text_label(mode.sentence, "sftb-says", "sftb-quiet", grid_area=f"{line} / 6")
            for line, (number, mode) in enumerate(MODES.items(), 1)}
    for line, (number, made) in enumerate(chosen.buttons.items(), 1):
        made.layout.grid_area = f"{line} / 1"
        boxes += _chain_boxes(number, line, boxes)
    grid.children = [*chosen.buttons.values(), *(made for _, _, made in boxes), *says.values()]

    def refresh(_=None) -> None:
        recipe = form.recipe
        chosen.set_trait("value", _number(recipe.mode))
        chosen.rule_out(reasons := impossible_modes(recipe, form.facts))
        for prefix, numbers, made in boxes:
            lit = chosen.value in numbers
            (made.add_class if lit else made.remove_class)("sftb-lit")
            _label_box(made, prefix, recipe)
        for number, label in says.items():
            label.value = reasons.get(number, MODES[number].sentence)

    chosen.observe(lambda change: change.new and form.set(mode=change.new), "value")
    form.observe(refresh, ["recipe", "facts"])
    refresh()
    return grid


def _number(mode: str) -> str:
    """The number of one of the seven, whether given by number or name; else an empty text."""
    return next((number for number, entry in MODES.items() if mode in (number, entry.name)), "")


def _chain_boxes(number: str, line: int, before: list) -> list:
    """Boxes of a mode's start and stages, as (prefix, modes, label); an equal prefix above is stretched."""
    mode, made = MODES[number], []
    for depth in range(len(mode.stages) + 1):
        prefix = (mode.start, *(stage.name for stage in mode.stages[:depth]))
        twin = next((entry for entry in before if entry[0] == prefix), None)
        if twin:
            twin[1].append(number)
            first = twin[2].layout.grid_area.split(" / ")[0]
            twin[2].layout.grid_area = f"{first} / {depth + 2} / {line + 1} / {depth + 3}"
            continue
        label = text_label("", "sftb-box", grid_area=f"{line} / {depth + 2} / {line + 1} / {depth + 3}")
        made.append((prefix, [number], label))
    return made


def _label_box(label: widgets.Label, prefix: tuple, recipe: Recipe) -> None:
    if len(prefix) == 1:
        label.value, label.style.background = prefix[0], SHADES["start"]
        return
    mode = next(mode for mode in MODES.values()
                if (mode.start, *(stage.name for stage in mode.stages))[:len(prefix)] == prefix)
    stage = recipe_stages(recipe, mode)[len(prefix) - 2]
    label.value = f"{stage.kind.upper()}\n{share_words(stage.shares)}"
    label.style.background = share_bar(stage.shares, SHADES[stage.kind])
    label.tooltip = ", ".join(f"{share:.0%} {role.replace('_', ' ')}"
                              for role, share in stage.shares.items())


def method_list(form) -> widgets.Widget:
    """The five methods with what each trains, and the method of CPT stages where there are any."""
    chosen = Choice({name: name for name in METHODS}, form.recipe.method)
    cpt = Choice({"": "the same", **{name: name for name in METHODS}}, form.recipe.cpt_method or "")
    says = {name: text_label(words, "sftb-quiet") for name, words in METHOD_DESCRIPTIONS.items()}
    cells = [cell for name in METHODS for cell in (chosen.buttons[name], says[name])]
    why = text_label("", "sftb-quiet", "sftb-note")
    own = row(text_label("CPT stages by", "sftb-head"), *cpt.buttons.values(), why)

    def refresh(_=None) -> None:
        chosen.set_trait("value", form.recipe.method)
        cpt.set_trait("value", form.recipe.cpt_method or "")
        chosen.rule_out(reasons := impossible_methods(form.recipe))
        cpt.rule_out(ruled := impossible_methods(form.recipe, "cpt_method"))
        for name, label in says.items():
            label.value = METHOD_DESCRIPTIONS[name] + (
                f". Not possible: {reasons[name]}" if name in reasons else ""
            )
        why.value = f"Not possible before {form.recipe.method}: {', '.join(ruled)}." if ruled else ""
        show(own, any(stage.kind == "cpt" for stage in form.stages()))

    chosen.observe(lambda change: form.set(method=change.new), "value")
    cpt.observe(lambda change: form.set(cpt_method=change.new or None), "value")
    form.observe(refresh, "recipe")
    refresh()
    return box(box(*cells, classes=("sftb-pair",), kind=widgets.Box), own)


def data_fold(form) -> Fold:
    """Model and data: the pocket unless something is named."""
    told = {name: text_label("", "sftb-warn", "sftb-note") for name in (*MODEL_AND_DATA, *MORE_DATA)}

    def pairs(names):
        return box(*(box(field_control(form, name), told[name]) for name in names), classes=("sftb-two",),
                   kind=widgets.Box)

    more = Fold("More: held-out files, revision, a mode of your own", pairs(MORE_DATA))
    fold = Fold("Model and data", pairs(MODEL_AND_DATA), more.widget)

    def refresh(_=None) -> None:
        own = [role for role in ROLES if getattr(form.recipe, role)]
        fold.say(f"{form.recipe.model}, " + (f"own {', '.join(own)}" if own else "its own data"
                                             if form.recipe.model.startswith("pocket") else "no data yet")
                 + "; something to correct" * bool(set(told) & set(form.errors)))
        for name, label in told.items():
            label.value = f"! {form.errors[name]}" if name in form.errors else ""
            show(label, bool(label.value))

    form.observe(refresh, ["recipe", "errors"])
    refresh()
    return fold


def advice_fold(form) -> Fold:
    """Four plain questions, the mode they suggest, and the rules that led there."""
    asked = [widgets.Dropdown(options=list(answers), description=question,
                              style={"description_width": "370px"}, layout={"width": "auto"})
             for question, answers in QUESTIONS.items()]
    says, rules = text_label("", "sftb-head"), text_label("", "sftb-lines")
    take = button("Take it", lambda: form.set(mode=form.suggested))

    def refresh(_=None) -> None:
        said = {}
        for control, answers in zip(asked, QUESTIONS.values(), strict=True):
            said |= answers[control.value]
        form.said = said
        best, led = suggestion(form.facts.add("stated", **said))
        form.suggested = best
        says.value = f"Suggested: mode {best}. {MODES[best].sentence}" if best else led[0]
        rules.value = "\n".join(led if best else []) or "No rule speaks yet: answer what you know."
        take.description = f"Take mode {best}"
        take.disabled = not best or form.recipe.mode == best

    for control in asked:
        control.observe(refresh, "value")
    form.observe(refresh, ["recipe", "facts"])
    fold = Fold("Which mode? Four questions", *asked, row(says, take), rules)
    refresh()
    return fold


def suggestion(facts: Facts) -> tuple[str, list[str]]:
    """The suggested mode, or an empty text, and the rules that led to it as lines."""
    try:
        best, led = suggest_mode(facts)
    except BadInput as error:
        return "", [str(error)]
    return best, [f"{rule.rule}  {rule.advice}, because {rule.reason}." for rule in led]


def choose_step(form) -> widgets.Widget:
    """The whole step."""
    warned = text_label("", "sftb-warn", "sftb-lines")

    def refresh(_=None) -> None:
        found = [line for line in form.warnings() if line.split()[0] not in form.controls]
        warned.value = "\n".join(f"! {line}" for line in found)
        show(warned, bool(found))

    form.observe(refresh, ["recipe", "facts"])
    refresh()
    note = text_label("A box over several modes is trained once and shared. Blue: domain; orange: general.",
                "sftb-quiet", "sftb-note")
    return box(advice_fold(form).widget, text_label("Mode", "sftb-head"), mode_grid(form), note, warned,
               text_label("Method", "sftb-head"), method_list(form), data_fold(form).widget,
               values_fold(form).widget)
