"""Where the models of a run lie, and loading them: a start, a stage's weights, a prefix on top of them."""

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from ..errors import BadInput
from ..runs.folder import find_run, read_json, read_result, runs_root, store_folder
from ..runs.stage_store import find_stage
from .loading import load_for_training, load_model, load_tokenizer, locate_model, resolve_revision


@dataclass
class ModelState:
    """Where a model lies: a start model or a stage's weights, and the stage whose prefix goes on top."""

    key: str
    start: str
    stage: str | None = None
    adapter: str | None = None


def load_state(shelf: Path, state: ModelState, revision: str | None = None, settings: dict | None = None,
               stay: bool = False):
    """The model of a state; a QLoRA stage's `settings` load it quantised, a bf16 adapter's in bfloat16."""
    settings = settings or {"method": "full", "bf16": False}
    name = str(shelf / state.stage / "model") if state.stage else state.start
    model = load_for_training(name, None if state.stage else revision, settings, stay)
    if state.adapter:
        model = PeftModel.from_pretrained(model, shelf / state.adapter / "adapter")
    return model


def check_start_revision(run: Path) -> str:
    """The revision of a run's start model; raises BadInput where that is not the model it started from."""
    recipe, stored = read_result(run)["recipe"], read_json(run, "recipe.json")["revision"]
    start = read_result(run)["start"]["model"]
    now = resolve_revision(start, recipe["model_revision"])
    if now != stored:
        raise BadInput(f"{start} is not the model that {run} started from (revision {stored}, now {now}), "
                       "and an adapter goes with its own base only")
    return stored


def load_stage(run: Path | str, stage: int = -1):
    """The model and tokenizer of a run's stage (by default the last; 0 is the first)."""
    result = read_result(run)
    entry, shelf = result["stages"][stage], store_folder(run)
    prefixed = entry["method"] == "ptuning_v2"
    weights = [earlier["key"] for earlier in result["stages"][:result["stages"].index(entry) + 1]
               if earlier["method"] != "ptuning_v2"]
    state = ModelState(entry["key"], result["start"]["model"], weights[-1] if weights else None,
                  entry["key"] if prefixed else None)
    if not weights:
        check_start_revision(run)
    for key in {entry["key"], *weights[-1:]}:
        if find_stage(shelf, key) is None:
            raise BadInput(f"{shelf / key}: this stage's weights are gone; run the recipe again")
    place = shelf / entry["key"] / ("adapter" if prefixed else "model")
    return (load_state(shelf, state, result["recipe"]["model_revision"]), load_tokenizer(str(place)))


def find_checkpoint(checkpoint: str) -> tuple[str | None, int | str | None]:
    """A checkpoint's run and stage: its number, None for the start; or None and a model's name.

    Raises BadInput, naming the run's stages or what is missing.
    """
    run, _, stage = checkpoint.rpartition(":")
    if _is_run(whole := str(find_run(checkpoint))):
        run, stage = whole, ""
    elif not run or not _is_run(run := str(find_run(run))):
        try:
            return None, str(locate_model(checkpoint))
        except BadInput as error:
            if Path(checkpoint).exists():
                raise
            raise BadInput(f"{checkpoint}: there is no run of that name, neither as a folder nor under "
                           f"{runs_root()}/, and no model: {error}") from None
    names = [entry["name"] for entry in read_result(run)["stages"]]
    if stage.isdigit() and 1 <= int(stage) <= len(names):
        return run, int(stage) - 1
    if stage not in ("", "start", *names):
        raise BadInput(f"{run}: no stage {stage!r}; it has start, {', '.join(names)}")
    return run, None if stage == "start" else names.index(stage) if stage else len(names) - 1


def _is_run(folder: str) -> bool:
    return (Path(folder) / "recipe.json").exists() or (Path(folder) / "result.json").exists()


def load_checkpoint(run: str | None, stage: int | str | None):
    """The model and tokenizer of what `find` returns."""
    if run and stage is not None:
        return load_stage(run, stage)
    if run:
        result = read_result(run)
        check_start_revision(run)
        name, revision = result["start"]["model"], result["recipe"]["model_revision"]
    else:
        name, revision = stage, None
    return load_model(name, revision), load_tokenizer(name, revision)
