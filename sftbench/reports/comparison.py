"""Runs beside each other, from their folders: figures, differing recipes, and rows that changed."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ..recipes.recipe import FIELDS, differing_fields
from ..runs.answers import (
    PROMPT_ALONE,
    AnsweredRow,
    Change,
    changes,
    compare_answers,
    pair_answers,
    read_answers,
    select_rows,
)
from ..runs.events import format_duration
from ..runs.folder import runs_root, try_read_json
from .html import make_visible
from .ledger import format_gigabytes, rounded
from .text_table import format_pairs, format_table, plural, shorten_start, wrap_text

GENERAL_ROLES = ("general_tasks", "yardstick")  # the first that was scored is general ability
MAX_CELL = 40  # characters of a value in the table of differences
MAX_ANSWER = 400  # characters of a prompt or an answer in a list of rows
SHOWN_ROWS = 10  # of such a list, where no other number is wanted


def list_runs(root: Path | None = None) -> list[Path]:
    """The runs under `root` (default: `runs_root()`), newest first."""
    folders = [path.parent for path in (root or runs_root()).glob("*/recipe.json")]
    return sorted(folders, key=lambda folder: (folder / "recipe.json").stat().st_mtime, reverse=True)


def summarise_run(folder: Path) -> dict:
    """One run: `name`, `mode`, `method`, `state`, names of its `stages`, `domain` and `general` accuracy.

    Accuracies are (before, after); `seconds` of training and `memory_bytes` are the stages' sum and maximum.
    What is not known yet is None.
    """
    recipe, result = _read_recipe(folder), try_read_json(folder / "result.json")
    stages = result.get("stages") or []
    states = [state["probes"] for state in [result.get("start") or {}, *stages] if state.get("probes")]
    method = recipe.get("method") or "?"
    if recipe.get("cpt_method") not in (None, method):
        method = f"{recipe['cpt_method']}, {method}"
    return {"folder": folder, "name": folder.name, "mode": Path(str(recipe.get("mode", "?"))).stem,
            "method": method, "state": result.get("state") or "unfinished",
            "stages": [stage["name"] for stage in stages],
            "domain": _accuracies(states, ("domain_tasks",)), "general": _accuracies(states, GENERAL_ROLES),
            "seconds": sum(stage["seconds"] for stage in stages) if stages else None,
            "memory_bytes": max((stage["peak_memory_bytes"] for stage in stages), default=None)}


def _accuracies(states: list[dict], roles: tuple) -> tuple[float, float] | None:
    for role in roles:
        if len(states) > 1 and all("accuracy" in probes.get(role, {}) for probes in (states[0], states[-1])):
            return states[0][role]["accuracy"], states[-1][role]["accuracy"]
    return None


def _read_recipe(folder: Path) -> dict:
    # a torn run harms no other
    return try_read_json(folder / "recipe.json").get("recipe") or {}


def recipe_differences(folders: list[Path]) -> dict[str, list]:
    """The recipe fields in which runs differ, each with the value of every run."""
    recipes = [_read_recipe(folder) for folder in folders]
    names = {name for other in recipes[1:] for name in differing_fields(recipes[0], other)}
    return {name: [recipe.get(name) for recipe in recipes] for name in FIELDS if name in names}


def format_differences(folders: list[Path]) -> str:
    """The values in which the runs' recipes differ, as a table of text; one line if they do not."""
    rows = [[name, *(shorten_start(f"{value:.3g}" if isinstance(value, float) else str(value), MAX_CELL)
                     for value in values)] for name, values in recipe_differences(folders).items()]
    if not rows:
        return "Their recipes are the same." if len(folders) > 1 else "Choose two runs or more."
    return format_table(rows, ["recipe", *(shorten_start(folder.name, MAX_CELL) for folder in folders)])


def format_runs(runs: list[dict]) -> str:
    """Runs of `summarise_run` as a table of text, a line each; accuracies before → after."""
    rows = [[shorten_start(run["name"], MAX_CELL), *run_cells(run)] for run in runs]
    return format_table(rows, ["run", "mode", "method", "state", "domain", "general", "time", "memory"])


def run_cells(run: dict) -> list[str]:
    """A run's line as text, without its name; a dash where a figure is not known yet."""
    accuracies = [f"{pair[0]:.0%} → {pair[1]:.0%}" if pair else "–"
                  for pair in (run["domain"], run["general"])]
    return [run["mode"], run["method"], run["state"], *accuracies,
            "–" if run["seconds"] is None else format_duration(run["seconds"]),
            format_gigabytes(run["memory_bytes"]) or "–"]


def format_won_and_lost(folders: Sequence[Path]) -> str:
    """How many questions each stage won and lost since the state before it, by probe, as a table of text."""
    lines, roles = [], {}
    for folder in folders:
        states = [name for name in read_answers(folder) if name != PROMPT_ALONE]
        for before, after in pairwise(states):
            counts = Counter((row.role, row.change) for row in changes(folder, None, before, after)
                             if row.score_after is not None)
            roles |= dict.fromkeys(role for role, _ in counts)
            lines.append((shorten_start(folder.name, MAX_CELL), after, counts))
    rows = [[f"{name}, {stage}", *(f"+{counts[role, 'gained']} −{counts[role, 'lost']}"
                                   if any(own == role for own, _ in counts) else "" for role in roles)]
            for name, stage, counts in lines]
    return format_table(rows, ["won and lost by", *(role.replace("_", " ") for role in roles)])


def format_rows(run: Path | str, which: str, other: Path | str | None = None, role: str | None = None,
                count: int = SHOWN_ROWS) -> str:
    """Rows of a run's probes as text: `gained`, `lost`, `wrong` or `worst`, from its start to its last stage.

    With `other` from the last stage of the one run to that of the other; see `changes` and `select_rows`.
    Above them stands by how much each probe's accuracy changed, with its 95 % interval over rows in pairs.
    """
    names = "start", list(read_answers(run))[-1]
    if other is not None:
        names = Path(run).resolve().name, Path(other).resolve().name
    pairs = pair_answers(run, other)
    rows = format_changes([compare_answers(*pair) for pair in pairs], which, names, role, count)
    return "\n\n".join(filter(None, [format_accuracies(pairs, role), rows]))


def format_accuracies(pairs: list[tuple[AnsweredRow, AnsweredRow]], role: str | None = None) -> str:
    """Each probe's accuracy in two states, over the rows that both have; empty where none has a score."""
    from ..runs.intervals import change_intervals, mean_scores
    probes, lines = {}, []
    for before, after in pairs:
        if after.score is not None and role in (None, after.role):
            probes.setdefault(after.role, []).append((before, after))
    for name, own in probes.items():
        first, last = map(list, zip(*own, strict=True))
        old, new = (mean_scores(rows)["accuracy"] for rows in (first, last))
        spread = ""
        if span := change_intervals(first, last).get("accuracy"):
            chance = ", within chance" if span[0] <= 0 <= span[1] else ""
            low, high = map(rounded, span)
            spread = f" (95 %: {low:+}…{high:+}{chance})"
        lines.append(f"accuracy of {name.replace('_', ' ')}, {plural(len(own), 'row')}: "
                     f"{rounded(old)} → {rounded(new)}, {rounded(new, old):+}{spread}")
    return "\n".join(map(wrap_text, lines))


def format_changes(rows: list[Change], which: str, names: tuple[str, str], role: str | None = None,
                   count: int = SHOWN_ROWS) -> str:
    """Rows of `select_rows` as text: a prompt, the wanted answer, and both states' with score and loss.

    `names` are those of the two states; the first `count` rows are shown. Losses are in nats per token.
    """
    chosen = select_rows(rows, which, role)
    total = sum(role in (None, row.role) and (which == "worst" or row.score_after is not None)
                for row in rows)
    shown = f", the first {count} shown" if len(chosen) > count else ""
    before, after = (shorten_start(name, MAX_CELL) for name in names)
    parts = [wrap_text(f"{which}, {before} → {after}: {len(chosen):,} of {plural(total, 'row')}{shown}")]
    for row in chosen[:count]:
        cells = [["wanted", "", "", shorten_text(row.wanted)]] if row.prompt else []
        cells += [[before, score_word(row.score_before), loss_words(row.loss_before), _shown(row.before)],
                  [after, score_word(row.score_after), loss_words(row.loss_after), _shown(row.after)]]
        head = [(f"{row.role} {row.row}", shorten_text(row.prompt or row.wanted))]
        parts.append(f"{format_pairs(head)}\n{format_pairs(cells, indent=2)}")
    return "\n\n".join(parts)


def _shown(answer: str | None) -> str:
    return "" if answer is None else shorten_text(answer) or "(nothing)"


def score_word(score: float | None) -> str:
    """A row's score as a person reads it: right, wrong, or a part; empty for a text."""
    return "" if score is None else "right" if score == 1 else "wrong" if score == 0 else f"{score:.2f}"


def loss_words(loss: float | None) -> str:
    """A row's loss in nats per token; empty where it has none."""
    return "" if loss is None else f"loss {loss:.2f}"


def shorten_text(text: str) -> str:
    """Text from outside for a list of rows: one line, at most MAX_ANSWER characters, nothing that steers."""
    line = make_visible(" ".join(text.split()))
    return line if len(line) <= MAX_ANSWER else f"{line[:MAX_ANSWER - 1]}…"
