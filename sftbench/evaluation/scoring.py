"""All probes of a run on one state of its model: answered once, as loaded from disk, and stored.

A state answers as a user would load it, not as training left it in memory. What is stored are its answers and
losses row by row; scores follow from them.
"""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..data.rows import digest_rows
from ..data.tokenization import tokenizer_fingerprint
from ..errors import BadInput
from ..models.checkpoint import ModelState
from ..models.loading import release_memory
from ..runs.answers import AnsweredRow
from ..runs.folder import write_json
from ..runs.stage_store import hash_key
from .probes import RowAnswer, answer_probe
from .rating import change_intervals, mean_scores, rate_answers, score_intervals
from .scorers import ambiguity_warnings, check_wanted, lossy_answers, wanted_answer
from .yardstick import answer_yardstick, rate_yardstick, yardstick_digest, yardstick_scores

ANSWERS_FORMAT = 1  # of the stored answers: with another number they are computed again


@dataclass(frozen=True)
class ProbeSet:
    """The held-out rows of a run by role, and how they are scored."""

    rows: dict[str, list[dict]]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_new_tokens: int
    yardstick: bool
    scorer: str  # of rows that have none of their own

    @property
    def tasks(self) -> dict[str, list[dict]]:
        """The rows of task probes by role, each with its scorer."""
        return {role: [{"scorer": self.scorer, **row} for row in rows]
                for role, rows in self.rows.items() if rows and "messages" in rows[0]}

    @property
    def scorers(self) -> dict[str, dict[str, int]]:
        """The number of rows that each scorer scores, by role."""
        return {role: dict(Counter(row["scorer"] for row in rows)) for role, rows in self.tasks.items()}

    def check(self) -> None:
        """Raise BadInput, naming the role, for a wanted answer that its scorer cannot use."""
        for role, rows in self.tasks.items():
            for row in rows:
                try:
                    check_wanted(wanted_answer(self.tokenizer, row), row["scorer"])
                except BadInput as error:
                    raise BadInput(f"{role}, probe: {error}", field=error.field, where=role) from None

    def warnings(self, split: Collection[str]) -> list[str]:
        """What no answer can meet, and what trains unmeant in roles whose probe is `split` off."""
        warnings = []
        for role, rows in self.tasks.items():
            warnings += ambiguity_warnings(role, rows, self.scorer)
            exact = [{"messages": row["messages"][-1:]} for row in rows if row["scorer"] == "exact"]
            if lost := lossy_answers(self.tokenizer, exact):
                warnings.append(f"{role}: {lost:,} of {len(rows):,} wanted answers of the probe have "
                                "characters that the tokenizer changes or lacks, so no answer can equal "
                                "them; correct them, or take another model or scorer")
            if role in split and any(row["scorer"] == "regex" for row in rows):
                warnings.append(f"{role}: rows with the scorer regex have patterns as answers, and these "
                                f"train too; give such rows as {role}_probe alone")
        return warnings

    def answers_paths(self, state: ModelState) -> dict[str, Path]:
        """Where each role's answers by a state are stored, so that another probe leaves the others' alone.

        A scorer is no part of their name: another one scores the same answers.
        """
        shared = {"format": ANSWERS_FORMAT, "state": state.key,
                  "tokenizer": tokenizer_fingerprint(self.tokenizer)}
        bare = {role: [{name: value for name, value in row.items() if name != "scorer"} for row in rows]
                for role, rows in self.rows.items()}
        keys = {role: hash_key(**shared, max_length=self.max_length, max_new_tokens=self.max_new_tokens,
                               rows=digest_rows(rows)) for role, rows in bare.items()}
        if self.yardstick:
            keys["yardstick"] = hash_key(**shared, rows=yardstick_digest())
        return {role: state.store / "probes" / f"{key}.json" for role, key in keys.items()}

    def unanswered(self, state: ModelState) -> list[str]:
        """The roles whose answers by a state are not in the store yet."""
        return [role for role, path in self.answers_paths(state).items() if not path.exists()]

    def answer(self, state: ModelState) -> dict[str, list[AnsweredRow]]:
        """Every row by role with what the state makes of it, from the store or computed now, and scored."""
        paths = self.answers_paths(state)
        if unanswered := self.unanswered(state):
            model = state.load()
            for role in unanswered:
                paths[role].parent.mkdir(parents=True, exist_ok=True)
                write_json(paths[role], {"rows": self._answer_role(model, role)})
            del model
            release_memory()
        return {role: self._rate_role(role, [
            RowAnswer(*values) for values in json.loads(path.read_text(encoding="utf-8"))["rows"]])
            for role, path in paths.items()}

    def _answer_role(self, model, role: str) -> list[RowAnswer]:
        if role == "yardstick":
            return answer_yardstick(model, self.tokenizer)
        return answer_probe(model, self.tokenizer, self.rows[role], self.max_length, self.max_new_tokens)

    def _rate_role(self, role: str, answers: list[RowAnswer]) -> list[AnsweredRow]:
        if role == "yardstick":
            return rate_yardstick(answers)
        return rate_answers(self.tokenizer, role, self.tasks.get(role, self.rows[role]), answers)


def interval_figures(rows: dict[str, list[AnsweredRow]],
                     before: dict[str, list[AnsweredRow]] | None = None) -> dict[str, dict]:
    """By role the 95 % `intervals` of a state's figures, and `change_intervals` from the state `before`."""
    figures = {"intervals": {role: score_intervals(own) for role, own in rows.items()}}
    if before is not None:
        figures["change_intervals"] = {role: change_intervals(before[role], own)
                                       for role, own in rows.items() if role in before}
    return {name: {role: spans for role, spans in roles.items() if spans} for name, roles in figures.items()}


def sum_scores(rows: dict[str, list[AnsweredRow]]) -> dict[str, dict[str, float]]:
    """The figures of a state by role, from its rows; loss in nats per token."""
    return {role: yardstick_scores(own) if role == "yardstick" else mean_scores(own)
            for role, own in rows.items()}
