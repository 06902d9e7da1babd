"""All probes of a run on one state of its model: scored once, as loaded from disk, and stored.

A state is scored as a user would load it, not as training left it in memory.
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
from ..runs.folder import write_json
from ..runs.stage_store import hash_key
from .probes import score_probe
from .scorers import ambiguity_warnings, check_wanted, lossy_answers, wanted_answer
from .yardstick import score_yardstick, yardstick_digest

SCORES_FORMAT = 3  # of the stored scores: with another number they are computed again


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

    def scores_paths(self, state: ModelState) -> dict[str, Path]:
        """Where each role's scores of a state are stored, so that another probe leaves the others' alone."""
        shared = {"format": SCORES_FORMAT, "state": state.key,
                  "tokenizer": tokenizer_fingerprint(self.tokenizer)}
        keys = {role: hash_key(**shared, scorer=self.scorer, max_length=self.max_length,
                               max_new_tokens=self.max_new_tokens, rows=digest_rows(rows))
                for role, rows in self.rows.items()}
        if self.yardstick:
            keys["yardstick"] = hash_key(**shared, rows=yardstick_digest())
        return {role: state.store / "probes" / f"{key}.json" for role, key in keys.items()}

    def unscored(self, state: ModelState) -> list[str]:
        """The roles whose scores of a state are not in the store yet."""
        return [role for role, path in self.scores_paths(state).items() if not path.exists()]

    def score(self, state: ModelState) -> dict[str, dict[str, float]]:
        """The state's scores by role, from the store or computed now; loss in nats per token."""
        paths = self.scores_paths(state)
        if unscored := self.unscored(state):
            model = state.load()
            for role in unscored:
                paths[role].parent.mkdir(parents=True, exist_ok=True)
                write_json(paths[role], self._score_role(model, role))
            del model
            release_memory()
        return {role: json.loads(path.read_text(encoding="utf-8")) for role, path in paths.items()}

    def _score_role(self, model, role: str) -> dict[str, float]:
        if role == "yardstick":
            return score_yardstick(model, self.tokenizer)
        return score_probe(model, self.tokenizer, self.tasks.get(role, self.rows[role]), self.max_length,
                           self.max_new_tokens)
