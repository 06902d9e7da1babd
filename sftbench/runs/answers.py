"""Every answer of a run: what each probe row got before and after each stage, and which were gained and lost.

A run's `answers.jsonl` has one line for each state and row, so that questions to it need no model.
"""

import dataclasses
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput, file_error
from .folder import find_run, write_text

ANSWERS = "answers.jsonl"
PROMPT_ALONE = "prompt alone"  # the state of the start model with training rows in its prompts
CHOICES = ("gained", "lost", "wrong", "worst")  # of rows, see `select_rows`


@dataclass(frozen=True)
class AnsweredRow:
    """A probe row and what one state of a model made of it; a text has no answer and no score.

    `row` counts the probe's rows from 1. `nats` is the loss summed over the row's `tokens` that count, None
    where the row is longer than max_length. `spoken` is the part of the answer that was scored: without
    thoughts. `score` is by `scorer`, it and `f1` are from 0 to 1; `cut` says that an answer did not end.
    """

    role: str
    row: int
    prompt: str
    wanted: str
    answer: str | None = None
    spoken: str | None = None
    scorer: str | None = None
    score: float | None = None
    f1: float | None = None
    nats: float | None = None
    tokens: int = 0
    cut: bool = False


@dataclass(frozen=True)
class Change:
    """A probe row's answers in two states, `before` and `after`; a list of them makes a table in pandas.

    `change` is gained, lost or same, by the score. Losses are in nats per token.
    """

    role: str
    row: int
    prompt: str
    wanted: str
    change: str
    before: str | None
    after: str | None
    score_before: float | None
    score_after: float | None
    loss_before: float | None
    loss_after: float | None


def write_answers(folder: Path, states: dict[str, dict[str, list[AnsweredRow]]]) -> None:
    """Write a run's `answers.jsonl`: by state (`start`, a stage's name) and role all rows, a line each."""
    lines = [json.dumps({"stage": stage, **dataclasses.asdict(row)}, ensure_ascii=False)
             for stage, roles in states.items() for rows in roles.values() for row in rows]
    write_text(Path(folder) / ANSWERS, "".join(f"{line}\n" for line in lines))


def read_answers(run: Path | str) -> dict[str, list[AnsweredRow]]:
    """The rows of a run by state, in the order of the chain; raises BadInput where there are none."""
    path, states = find_run(run) / ANSWERS, defaultdict(list)
    names = {field.name for field in dataclasses.fields(AnsweredRow)}
    try:
        # split at "\n" alone: `splitlines` also does at characters that JSON leaves as they are
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
            values = json.loads(line)
            states[values["stage"]].append(AnsweredRow(
                **{name: value for name, value in values.items() if name in names}))
    except (FileNotFoundError, NotADirectoryError):
        raise file_error(path, "not there; the run has scored nothing yet, or is older than this file: the "
                               f"same recipe in the same folder writes it, sftbench resume {run}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise file_error(path, f"not a file of answers: {error}") from None
    return dict(states)


def changes(run: Path | str, other: Path | str | None = None, before: str | None = None,
            after: str | None = None) -> list[Change]:
    """What became of each probe row between two states of a run, or of two runs.

    `before` is a state of `run` (default: `start`, beside another run its last stage), `after` one of
    `other` or of the same run (default: the last stage). Rows of two runs belong together by role, prompt and
    wanted answer; those of one run alone are left out. Raises BadInput for a state that there is not, and
    where no row is in both.
    """
    return [compare_answers(*pair) for pair in pair_answers(run, other, before, after)]


def pair_answers(run: Path | str, other: Path | str | None = None, before: str | None = None,
                 after: str | None = None) -> list[tuple[AnsweredRow, AnsweredRow]]:
    """The rows that two states have in common, in the order of the second; errors as of `changes`."""
    first = read_answers(run)
    second = first if other is None else read_answers(other)
    before = before or ("start" if other is None else list(first)[-1])
    after = after or list(second)[-1]
    for where, states, name in ((run, first, before), (other or run, second, after)):
        if name not in states:
            raise BadInput(f"{where}: no state {name!r}; it has {', '.join(states)}", field="stage",
                           where=str(where))
    pairs = _pair_rows(first[before], second[after])
    if not pairs:
        raise BadInput(f"{run} and {other or run} have no probe row in common", where=str(other or run))
    return pairs


def _pair_rows(before: list[AnsweredRow], after: list[AnsweredRow]) -> list[tuple[AnsweredRow, AnsweredRow]]:
    """Rows of the same content; where a question stands several times, in the order of the rows."""
    waiting = defaultdict(list)
    for row in reversed(before):
        waiting[row.role, row.prompt, row.wanted].append(row)
    return [(mine.pop(), row) for row in after if (mine := waiting[row.role, row.prompt, row.wanted])]


def compare_answers(before: AnsweredRow, after: AnsweredRow) -> Change:
    """What became of a probe row between two states."""
    gain = (after.score or 0) - (before.score or 0)
    losses = (row.nats / row.tokens if row.nats is not None and row.tokens else None
              for row in (before, after))
    return Change(after.role, after.row, after.prompt, after.wanted,
                  "gained" if gain > 0 else "lost" if gain < 0 else "same", before.answer, after.answer,
                  before.score, after.score, *losses)


def select_rows(rows: list[Change], which: str, role: str | None = None) -> list[Change]:
    """The rows that were `gained` or `lost` (most first), are `wrong` after all, or `worst` by their loss.

    Wrong are all below a score of 1, the lowest first. Raises BadInput for another word, or an unknown role.
    """
    if which not in CHOICES:
        raise BadInput(f"rows must be one of {', '.join(CHOICES)}, not {which!r}", field="rows")
    if role not in {None, *(row.role for row in rows)}:
        raise BadInput(f"no probe rows of {role!r}; there are some of "
                       f"{', '.join(dict.fromkeys(row.role for row in rows))}", field="role")
    rows = [row for row in rows if role in (None, row.role)]
    if which == "worst":
        return sorted((row for row in rows if row.loss_after is not None), key=lambda row: -row.loss_after)
    if which == "wrong":
        return sorted((row for row in rows if row.score_after is not None and row.score_after < 1),
                      key=lambda row: row.score_after)
    return sorted((row for row in rows if row.change == which),
                  key=lambda row: -abs(row.score_after - row.score_before))
