"""What a person reads in a notebook and a terminal: recipe, data with its mask, answers, scores."""

from pathlib import Path

from ..data.roles import Role, role_warnings
from ..errors import BadInput
from ..evaluation.chat import show_message
from ..evaluation.probes import complete_answers
from ..evaluation.scorers import score_answer, wanted_answer
from ..models.checkpoint import load_stage
from ..models.loading import load_model
from ..recipes.modes import MODES, find_start_model, load_mode
from ..recipes.recipe import FIELDS, Recipe, recipe_to_dict, suggest_name
from ..recipes.rules import Advice, Suggestion
from ..recipes.serialize import format_command
from ..training.prepare import PreparedRun
from .html import HtmlText, escape_html, make_visible
from .text_table import format_counts, format_pairs, format_table, mark_cut, plural, wrap_text
from .token_view import format_view, summarise_view, view_row

LISTED_TYPES = 8


def format_recipe(ready: PreparedRun, everything: bool = False) -> str:
    """The resolved recipe: what you set, advised values with their reasons, warnings.

    With `everything` the defaults too.
    """
    defaults, values = recipe_to_dict(Recipe()), recipe_to_dict(ready.recipe)
    rows = {}
    for name, value in values.items():
        if name.startswith("bnb_") and "qlora" not in (ready.recipe.method, ready.recipe.cpt_method):
            continue
        if name in ready.reasons:
            rows[name] = ready.reasons[name]
        elif value != defaults[name]:
            rows[name] = f"{value} as you set it"
        elif everything:
            rows[name] = f"{value}: {FIELDS[name].metadata['help']}"
    # what is no field of the recipe but follows from model and machine
    rows |= {name: reason for name, reason in ready.reasons.items() if name not in values}
    parts = [f"Mode {ready.recipe.mode}: {ready.mode.sentence}\nStart: {ready.start}",
             format_pairs(rows.items())]
    if ready.warnings:
        parts.append(format_pairs([("Warning:", warning) for warning in ready.warnings], gap=1))
    return "\n\n".join(parts)


def look_at_data(ready: PreparedRun, rows: int = 1, role: str | None = None, row: int = 1) -> HtmlText:
    """What the model really sees: rows token by token, the trained part in «…», coloured in a notebook.

    For every stage: its blocks, and from each role rows, tokens, share of the tokens, passes, what was
    dropped, and `rows` training rows from number `row` on, each with its file and line. `role` shows that
    role alone. Raises BadInput for a role or row that does not exist.
    """
    if role not in (None, *ready.roles):
        raise BadInput(f"no data for role {role!r}{suggest_name(role, ready.roles)}; "
                       f"there is {', '.join(ready.roles)}", field="role")
    sizes = {name: len(ready.roles[name].train) for name in ready.roles if role in (None, name)}
    if row not in range(1, 1 + max(sizes.values())):
        raise BadInput(" and ".join(f"{name} has training rows 1 to {size:,}" for name, size in sizes.items())
                       + f", not {row}", field="row")
    numbers, parts = range(row - 1, row - 1 + rows), []
    for stage in ready.stages:
        dataset, drawn = ready.datasets[stage.name]
        names = [name for name in drawn if role in (None, name)]
        parts += [_line(f"Stage {stage.name}: {plural(len(dataset), 'block')}")] if names else []
        for name in names:
            parts += [*_role_lines(ready.roles[name], name, drawn[name]), *_row_views(ready, name, numbers)]
    if not parts:  # a role that no stage draws from
        parts = [*_role_lines(ready.roles[role], role), *_row_views(ready, role, numbers)]
    return HtmlText("\n".join(parts), "".join(part.markup for part in parts))


def _line(text: str) -> HtmlText:
    markup = f'<pre style="margin:0;white-space:pre-wrap">{escape_html(text)}</pre>'
    return HtmlText(wrap_text(text), markup)


def _role_lines(role: Role, name: str, drawn: dict | None = None) -> list[HtmlText]:
    """What a role gives to a stage, what was dropped of it, and where its system messages come from."""
    lines = [f"  {name}: {drawn['rows']:,} rows ({drawn['passes']:g} passes), {drawn['tokens']:,} tokens = "
             f"{drawn['share']:.0%} of the stage, {drawn['trained_tokens']:,} of them trained"
             if drawn else f"  {name}: no stage draws from it"]
    lines += [f"    {reason}: {plural(dropped['rows'], 'row')}, first {dropped['examples'][0]}"
              for reason, dropped in role.dropped.items()]
    about = role.rows.about
    lines += [f"    not used: {format_counts(about['unused'])}"] * bool(about["unused"])
    if over := about["passed_over"]:
        first = ": ".join(next(iter(over.items())))
        lines.append(f"    passed over: {plural(len(over), 'name')}, first {first}")
    if notes := role.rows.notes:
        lines.append(f"    texts: {plural(len(notes), 'file')}, first {notes[0]}")
    lines += [f"    ! {warning}" for warning in role_warnings(name, role)]
    systems, types = about["systems"], about["types"]
    if systems or types:
        kinds = format_counts(types, "{name} {count:,}", LISTED_TYPES)
        lines.append(f"    with a system message: {systems:,} of {plural(len(role.rows.table), 'row')}"
                     + f"; types: {kinds}" * bool(kinds))
    return [_line(line) for line in lines]


def _row_views(ready: PreparedRun, name: str, numbers: range) -> list[HtmlText]:
    """Training rows by number: each with its file and line, a summary and its tokens."""
    role, parts = ready.roles[name], []
    if numbers.start >= (size := len(role.train)):
        parts.append(_line(f"    no row {numbers.start + 1}: it has {plural(size, 'training row')}"))
    for number in numbers[:max(0, len(role.train) - numbers.start)]:
        where = role.rows.where(role.chosen[number])
        views = view_row(ready.tokenizer, role.train[number], ready.recipe.max_length)
        for answer, view in enumerate(views, 1):
            name = f"row {number + 1}" + f", answer {answer} of {len(views)}" * (len(views) > 1)
            parts += [_line(f"    {name} ({where}): {summarise_view(view)}"), format_view(view)]
    return parts


def ask_probes(run: PreparedRun | Path | str, ready: PreparedRun, rows: int = 3) -> str:
    """The first questions of each task probe, the wanted answer and that of a run's or the start model."""
    if isinstance(run, PreparedRun):
        model, tokenizer = load_model(run.start, run.recipe.model_revision), run.tokenizer
    else:
        model, tokenizer = load_stage(run)
    parts = []
    for role in ("domain_tasks", "general_tasks"):
        probe = ready.roles[role].probe[:rows] if role in ready.roles else []
        answers = complete_answers(model, tokenizer, probe, ready.recipe.max_new_tokens)
        for row, answer in zip(probe, answers, strict=True):
            prompt = map(show_message, row["messages"][:-1])
            wanted = wanted_answer(tokenizer, row)
            right = score_answer(answer.spoken, wanted, row.get("scorer", ready.recipe.scorer))
            verdict = "right" if right == 1 else "wrong" if right == 0 else f"{right:.0%} right"
            verdict += ", cut" * answer.cut
            parts += [format_pairs([(f"{role}:", _visible(" / ".join(prompt)))], gap=1),
                      format_pairs([("wanted:", _visible(wanted)),
                                    ("answer:", f"{_visible(answer.text)}   [{verdict}]")], indent=4, gap=1)]
    return "\n".join(parts)


def format_answers(answers: list[dict]) -> str:
    """The answers of `talk` as text: each prompt, and under it the wanted answer and each checkpoint's."""
    names, parts = dict.fromkeys(entry["checkpoint"] for entry in answers), []
    width = max(len(name) for name in [*names, "wanted"])
    for number in range(0, len(answers), len(names)):
        entries = answers[number:number + len(names)]
        rows = [("wanted", _visible(entries[0]["wanted"]))] if "wanted" in entries[0] else []
        rows += [(entry["checkpoint"], _visible(mark_cut(entry))) for entry in entries]
        parts.append(f"{format_pairs([(_visible(entries[0]['prompt']),)])}\n{format_pairs(rows, 2, width)}")
    if any(entry["cut"] for entry in answers):
        parts.append("[cut]: the answer reached max_new_tokens before its end.")
    return "\n\n".join(parts)


def _visible(text: str) -> str:
    """Text without what would steer a terminal; its line breaks stay."""
    return "\n".join(map(make_visible, text.split("\n"))) or "(nothing)"


def format_scores(scores: dict) -> str:
    """Scores of `run_benchmarks` as a table: one line a task and metric, one column a checkpoint."""
    first = next(iter(scores.values()))
    rows = [[f"{task} {metric.removesuffix(',none')}",
             *(f"{tasks[task][metric]:.3f}" for tasks in scores.values())]
            for task, metrics in first.items() for metric in metrics]
    return format_table(rows, ["benchmark", *scores])


def format_advice(advice: Advice) -> str:
    """The advice as plain text, what it is for and the command that follows."""
    rows = ", ".join(f"{name} {plural(count, 'row')}" for name, count in (advice.facts.rows or {}).items())
    return (f"For {find_start_model(advice.recipe)}, with {rows or 'no data yet'}.\n\n"
            f"{explain_advice(advice)}\n\nnext: {format_command(advice.recipe)}")


def explain_advice(advice: Advice) -> str:
    """Mode, rules, values with reasons, and warnings."""
    values = [(name, *str(advised).split(" because ", 1)) for name, advised in advice.values.items()]
    sections = {"Worth knowing": _format_rules(advice.others),
                "Advised values (a value that you set stays)": format_pairs(values, indent=2),
                "Warnings": format_pairs([("!", warning) for warning in advice.warnings], indent=2, gap=1)}
    parts = [f"{title}\n{text}" for title, text in sections.items() if text]
    return "\n\n".join([_suggested_mode(advice), *parts])


def _suggested_mode(advice: Advice) -> str:
    """The suggested mode as text, with the rules that led to it."""
    if advice.mode is None:
        return wrap_text(f"Suggested mode: {advice.obstacle}")
    mode = MODES[advice.mode]
    lines = [f"Suggested mode: {advice.mode} ({mode.name})", f"  {mode.sentence}"]
    if load_mode(advice.recipe.mode) is not mode:
        lines.append(wrap_text(f"  The recipe has mode {advice.recipe.mode}."))
    lines.append(_format_rules(advice.leading) or
                 "  No rule speaks for or against it yet: state what you want and have (wants, resources).")
    return "\n".join(lines)


def _format_rules(suggestions: tuple[Suggestion, ...]) -> str:
    return format_pairs([(one.rule, f"{one.advice}, because {one.reason}.") for one in suggestions],
                        indent=2, width=len("R16"))
