"""All probes of a run on one state of its model: scored once, as loaded from disk, and stored.

A state is scored as a user would load it, not as training left it in memory.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..data.rows import digest_rows
from ..models.checkpoint import ModelState
from ..models.loading import release_memory
from ..runs.folder import write_json
from ..runs.stage_store import hash_key
from .probes import ANSWERS_PER_BATCH, limit_threads, score_probe
from .yardstick import score_yardstick, yardstick_digest


@dataclass(frozen=True)
class ProbeSet:
    """The held-out rows of a run by role, and how they are scored."""

    rows: dict[str, list[dict]]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_new_tokens: int
    yardstick: bool

    def scores_path(self, state: ModelState) -> Path:
        """Where the scores of a state are stored."""
        key = hash_key(state=state.key, max_length=self.max_length, max_new_tokens=self.max_new_tokens,
                       probes={role: digest_rows(rows) for role, rows in self.rows.items()},
                       yardstick=yardstick_digest() if self.yardstick else None)
        return state.store / "probes" / f"{key}.json"

    def score(self, state: ModelState) -> dict[str, dict[str, float]]:
        """The state's scores by role, from the store or computed now; loss in nats per token."""
        path = self.scores_path(state)
        if path.exists():
            return json.loads(path.read_text())
        model = state.load()
        with limit_threads(model.num_parameters() * ANSWERS_PER_BATCH):
            scores = {role: score_probe(model, self.tokenizer, rows, self.max_length, self.max_new_tokens)
                      for role, rows in self.rows.items()}
            if self.yardstick:
                scores["yardstick"] = score_yardstick(model, self.tokenizer)
        del model
        release_memory()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, scores)
        return scores
