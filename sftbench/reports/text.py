"""What a person reads in a notebook: the resolved recipe, the data with its mask, answers."""

import textwrap
from pathlib import Path

from ..data.roles import Role
from ..errors import BadInput
from ..evaluation.probes import exact_match, generate_answers
from ..models.checkpoint import load_stage
from ..models.loading import load_model
from ..recipes.recipe import FIELDS, Recipe, recipe_to_dict, suggest_name
from ..training.prepare import PreparedRun
from .html import HtmlText, escape_html
from .token_view import summarise_view, view_as_html, view_as_text, view_row

TEXT_WIDTH = 100


def format_recipe(ready: PreparedRun, everything: bool = False) -> str:
    """The resolved recipe: what you set, each advised value with its reason; `everything`: defaults too.

    Its warnings come last.
    """
    defaults, values = recipe_to_dict(Recipe()), recipe_to_dict(ready.recipe)
    lines = [f"Mode {ready.recipe.mode}: {ready.mode.sentence}", f"Start: {ready.start}", ""]
    for name, value in values.items():
        if name.startswith("bnb_") and "qlora" not in (ready.recipe.method, ready.recipe.cpt_method):
            continue
        if name in ready.reasons:
            reason = ready.reasons[name]
        elif value != defaults[name]:
            reason = f"{value} as you set it"
        elif everything:
            reason = f"{value}: {FIELDS[name].metadata['help']}"
        else:
            continue
        lines += _reason(name, reason)
    for name, reason in ready.reasons.items():
        if name not in values:  # no field of the recipe: what follows from the model and the machine
            lines += _reason(name, reason)
    for number, warning in enumerate(ready.warnings):
        lines += [""] * (number == 0) + textwrap.wrap(
            f"Warning: {warning}", TEXT_WIDTH, subsequent_indent=" " * 9
        )
    return "\n".join(lines)


def _reason(name: str, reason: str) -> list[str]:
    return textwrap.wrap(
        f"{name:<32} {reason}", TEXT_WIDTH, subsequent_indent=" " * 33, break_long_words=False
    )


def look_at_data(ready: PreparedRun, rows: int = 1, role: str | None = None, row: int = 1) -> HtmlText:
    """What the model really sees: rows token by token, the trained part in «…», coloured in a notebook.

    For every stage: its blocks, and from each role rows, tokens, share of the tokens, passes, what was
    dropped, and `rows` training rows from number `row` on, each with its file and line. `role` shows that
    role alone. Raises BadInput for a role or row that is not there.
    """
    if role is not None:
        _check_row(ready, role, row)
    lines, markup = [], []

    def tell(line: str) -> None:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        lines.extend(textwrap.wrap(line, TEXT_WIDTH, subsequent_indent=indent, break_on_hyphens=False))
        markup.append(f'<pre style="margin:0;white-space:pre-wrap">{escape_html(line)}</pre>')

    for stage in ready.stages:
        dataset, drawn = ready.datasets[stage.name]
        shown = [name for name in drawn if role in (None, name)]
        if shown:
            tell(f"Stage {stage.name}: {len(dataset):,} blocks")
        for name in shown:
            for line in _role_lines(ready.roles[name], name, drawn[name]):
                tell(line)
            for number in range(row - 1, min(row - 1 + rows, len(ready.roles[name].train))):
                _show_row(ready, name, number, tell, lines, markup)
    if not lines:  # a role that no stage draws from
        for number in range(row - 1, min(row - 1 + rows, len(ready.roles[role].train))):
            _show_row(ready, role, number, tell, lines, markup)
    return HtmlText("\n".join(lines), "".join(markup))


def _check_row(ready: PreparedRun, role: str, row: int) -> None:
    if role not in ready.roles:
        raise BadInput(f"no data for role {role!r}{suggest_name(role, ready.roles)}; "
                       f"there is {', '.join(ready.roles)}")
    if not 1 <= row <= len(ready.roles[role].train):
        raise BadInput(f"{role} has training rows 1 to {len(ready.roles[role].train)}, not {row}")


def _role_lines(role: Role, name: str, figures: dict) -> list[str]:
    """What a role gives to a stage, what was dropped of it, and where its system messages come from."""
    lines = [f"  {name}: {figures['rows']:,} rows ({figures['passes']:g} passes), "
             f"{figures['tokens']:,} tokens = {figures['share']:.0%} of the stage, "
             f"{figures['trained_tokens']:,} of them trained"]
    for reason, dropped in role.dropped.items():
        lines.append(f"    {reason}: {dropped['rows']:,} rows, first {dropped['examples'][0]}")
    about = role.rows.about
    if about["systems"] or about["types"]:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in list(about["types"].items())[:8])
        lines.append(f"    with a system message: {about['systems']:,} of {len(role.rows.table):,} rows"
                     + (f"; types: {kinds}" if kinds else ""))
    return lines


def _show_row(ready: PreparedRun, role: str, number: int, tell, lines: list[str], markup: list[str]) -> None:
    held = ready.roles[role]
    place = held.rows.where(held.chosen[number])
    for one in view_row(ready.tokenizer, held.train[number], ready.recipe.max_length):
        tell(f"    row {number + 1} ({place}): {summarise_view(one)}")
        lines.append(textwrap.indent(view_as_text(one), "      "))
        markup.append(view_as_html(one))


def ask_probes(run: PreparedRun | Path | str, ready: PreparedRun, rows: int = 3) -> str:
    """The first questions of each task probe, the wanted answer and that of a run's or the start model."""
    if isinstance(run, PreparedRun):
        model, tokenizer = load_model(run.start, run.recipe.model_revision), run.tokenizer
    else:
        model, tokenizer = load_stage(run)
    lines = []
    for role in ("domain_tasks", "general_tasks"):
        asked = ready.roles[role].probe[:rows] if role in ready.roles else []
        found = generate_answers(model, tokenizer, [row["messages"][:-1] for row in asked],
                                 ready.recipe.max_new_tokens) if asked else []
        for row, answer in zip(asked, found, strict=True):
            turns = " / ".join(message["content"] for message in row["messages"][:-1])
            right = "right" if exact_match(answer, row["messages"][-1]["content"]) else "wrong"
            lines.append(f"{role}: {turns}")
            lines.append(f"    wanted: {row['messages'][-1]['content']}\n"
                         f"    answer: {answer or '(nothing)'}   [{right}]")
    return "\n".join(lines)
