"""Self-replay: what a start model itself answers to everyday prompts, as `general_tasks` that it may keep.

A stage that mixes these in trains the model on its own old answers beside the new ones, so that it moves less
from where it was; nobody has to find general data. The answers are written once for each model and cached.
"""

import json
import os
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path

from ..data.rows import cache_folder
from ..errors import BadInput
from ..evaluation.probes import complete_answers
from ..models.loading import load_model, load_tokenizer, release_memory, resolve_revision
from ..recipes.recipe import Recipe, override
from ..runs.stage_store import hash_key
from ..sources.names import SELF_REPLAY
from ..templates.rendering import set_rendering

PROMPTS = [prompt for prompts in tomllib.loads(
    Path(__file__).with_name("everyday.toml").read_text(encoding="utf-8")).values() for prompt in prompts]
LONGEST = 96  # tokens of an answer; one that is not done by then is left out, since it would teach no end
LEAST = 1 / 4  # of the prompts must be answered; a base model often writes on without an end


def settle_self_replay(recipe: Recipe, start: str) -> Recipe:
    """The recipe with the file of the start model's own answers in place of `self-replay`."""
    if recipe.general_tasks != SELF_REPLAY:
        return recipe
    return override(recipe, general_tasks=str(replay_file(start, recipe)))


def replay_file(start: str, recipe: Recipe) -> Path:
    """The file of rows with the everyday prompts and a model's greedy answers, written where it is not there.

    Raises BadInput for a model that hardly answers any of them to an end.
    """
    revision = resolve_revision(start, recipe.model_revision)
    key = hash_key(revision=revision, prompts=PROMPTS, longest=LONGEST, date=recipe.template_date,
                   versions=[version(name) for name in ("torch", "transformers")])
    path = cache_folder() / f"self-replay-{key}.jsonl"
    if not path.exists():
        _write_rows(path, _answer_prompts(start, recipe))
    return path


def _answer_prompts(start: str, recipe: Recipe) -> list[dict]:
    questions = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    tokenizer = set_rendering(load_tokenizer(start, recipe.model_revision), recipe.template_date)
    model = load_model(start, recipe.model_revision)
    answers = complete_answers(model, tokenizer, questions, LONGEST)
    del model
    release_memory()
    rows = [{"messages": [*question, {"role": "assistant", "content": answer.text}]}
            for question, answer in zip(questions, answers, strict=True) if answer.text and not answer.cut]
    if len(rows) < LEAST * len(PROMPTS):
        raise BadInput(f"general_tasks {SELF_REPLAY}: {start} answered {len(rows)} of {len(PROMPTS)} "
                       "everyday prompts to an end, so it has little to keep; give a file, or start from a "
                       "chat model",
                       field="general_tasks", where=start)
    return rows


def _write_rows(path: Path, rows: list[dict]) -> None:
    """Write JSON Lines in one move: two runs may write the same file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(file.name, path)
