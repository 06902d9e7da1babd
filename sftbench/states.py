"""Where the models of a run lie, and loading them: a start, a stage's weights, a prefix on top of them."""

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from . import models, runs, store
from .errors import BadInput
from .ready import Prepared


@dataclass
class State:
    """Where a model lies: a start model or a stage's weights, and the stage whose prefix goes on top."""

    key: str
    start: str
    stage: str | None = None
    adapter: str | None = None


def load_state(shelf: Path, state: State, revision: str | None = None, settings: dict | None = None,
               stay: bool = False):
    """The model of a state; a QLoRA stage's `settings` load it quantised, a bf16 adapter's in bfloat16."""
    settings = settings or {"method": "full", "bf16": False}
    name = str(shelf / state.stage / "model") if state.stage else state.start
    model = models.load_for(name, None if state.stage else revision, settings, stay)
    if state.adapter:
        model = PeftModel.from_pretrained(model, shelf / state.adapter / "adapter")
    return model


def check_start(run: Path) -> str:
    """The revision of a run's start model; raises BadInput where that is not the model it started from."""
    recipe, stored = runs.read_result(run)["recipe"], runs.read_json(run, "recipe.json")["revision"]
    start = runs.read_result(run)["start"]["model"]
    now = models.revision_of(start, recipe["model_revision"])
    if now != stored:
        raise BadInput(f"{start} is not the model that {run} started from (revision {stored}, now {now}), "
                       "and an adapter goes with its own base only")
    return stored


def load(run: Path | Prepared, stage: int = -1):
    """The model and tokenizer of a run's stage (by default the last; 0 is the first), or of a ready start."""
    if isinstance(run, Prepared):
        return models.load_model(run.start, run.recipe.model_revision), run.tokenizer
    result = runs.read_result(run)
    entry, shelf = result["stages"][stage], runs.store_of(run)
    prefixed = entry["method"] == "ptuning_v2"
    weights = [earlier["key"] for earlier in result["stages"][:result["stages"].index(entry) + 1]
               if earlier["method"] != "ptuning_v2"]
    state = State(entry["key"], result["start"]["model"], weights[-1] if weights else None,
                  entry["key"] if prefixed else None)
    if not weights:
        check_start(run)
    for key in {entry["key"], *weights[-1:]}:
        if store.find(shelf, key) is None:
            raise BadInput(f"{shelf / key}: this stage's weights are gone; run the recipe again")
    place = shelf / entry["key"] / ("adapter" if prefixed else "model")
    return (load_state(shelf, state, result["recipe"]["model_revision"]), models.load_tokenizer(str(place)))
