"""What a person reads in a notebook, as plain text: the resolved recipe, the data with its mask, answers."""

import textwrap
from pathlib import Path

from . import blocks, chain, evaluate
from .ready import Prepared
from .recipe import FIELDS, Recipe, to_dict

WIDTH = 100


def recipe_text(ready: Prepared, everything: bool = False) -> str:
    """The resolved recipe: what you set, each advised value with its reason; `everything`: defaults too."""
    defaults, values = to_dict(Recipe()), to_dict(ready.recipe)
    lines = [f"Mode {ready.recipe.mode}: {ready.mode['sentence']}", f"Start: {ready.start}", ""]
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
    return "\n".join(lines)


def _reason(name: str, reason: str) -> list[str]:
    return textwrap.wrap(f"{name:<32} {reason}", WIDTH, subsequent_indent=" " * 33, break_long_words=False)


def look(ready: Prepared, rows: int = 1) -> str:
    """What the model really sees, and how much: rows of each stage's roles as text, the trained part in «…».

    For every stage: its blocks and steps, and from each role rows, tokens, share of the tokens, and passes.
    """
    lines = []
    for stage in ready.stages:
        dataset, drawn = chain.stage_dataset(ready, stage)
        lines.append(f"Stage {stage['name']}: {len(dataset):,} blocks")
        for role, figures in drawn.items():
            lines.append(f"  {role}: {figures['rows']:,} rows ({figures['passes']:g} passes), "
                         f"{figures['tokens']:,} tokens = {figures['share']:.0%} of the stage, "
                         f"{figures['trained_tokens']:,} of them trained")
            for row in ready.roles[role].train.take(rows):
                lines += _indented(blocks.look(ready.tokenizer, row))
        lines.append("")
    return "\n".join(lines[:-1])


def _indented(text: str, most: int = 600) -> list[str]:
    """Text wrapped under its heading, cut where it is long; line breaks in it stay."""
    text = text if len(text) <= most else text[:most] + f" … ({len(text) - most:,} characters more)"
    return [line for part in text.splitlines() or [""] for line in textwrap.wrap(
        part, WIDTH, initial_indent="      ", subsequent_indent="      ", drop_whitespace=False) or [""]]


def ask(run: Prepared | Path | str, ready: Prepared, rows: int = 3) -> str:
    """The first questions of each task probe, the wanted answer and that of a run's or the start model."""
    model, tokenizer = chain.load(run)
    lines = []
    for role in ("domain_tasks", "general_tasks"):
        asked = ready.roles[role].probe[:rows] if role in ready.roles else []
        found = evaluate.answers(model, tokenizer, [row["messages"][:-1] for row in asked],
                                 ready.recipe.max_new_tokens) if asked else []
        for row, answer in zip(asked, found, strict=True):
            turns = " / ".join(message["content"] for message in row["messages"][:-1])
            right = "right" if evaluate.exact_match(answer, row["messages"][-1]["content"]) else "wrong"
            lines.append(f"{role}: {turns}")
            lines.append(f"    wanted: {row['messages'][-1]['content']}\n"
                         f"    answer: {answer or '(nothing)'}   [{right}]")
    return "\n".join(lines)
