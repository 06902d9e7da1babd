"""The models of a run, as paths and loaded: a start, a stage's weights, a prefix on top of them."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BadInput
from ..recipes.recipe import recipe_from_dict
from ..recipes.stages import StageSettings
from ..runs.folder import find_run, read_json, read_result, runs_root, store_folder
from ..runs.stage_store import find_stage, hash_key
from ..templates.rendering import set_rendering
from .loading import load_for_training, load_model, load_tokenizer, locate_model, resolve_revision


@dataclass(frozen=True)
class ModelState:
    """A model between two stages of a chain: the start model, or what a stage of the store made of it.

    `key` names the state: scores are stored under it.
    """

    key: str
    store: Path
    start: str  # folder or hub name of the start model
    revision: str | None = None
    weights: str | None = None  # the stage whose weights replace the start model's
    prefix: str | None = None  # the stage whose P-tuning v2 prefix goes on top of them

    def after(self, key: str, method: str) -> "ModelState":
        """The state after a stage: a prefix goes on top of these weights, any other method replaces them."""
        if method == "ptuning_v2":
            return replace(self, key=key, prefix=key)
        return replace(self, key=key, weights=key, prefix=None)

    def load(self, settings: StageSettings | None = None, on_cpu: bool = False):
        """The model; with `settings` as a stage of these trains it (quantised for QLoRA, adapters' in bf16).

        With `on_cpu` it stays in main memory, to be sharded over GPUs.
        """
        model = (load_for_training(*self._base, settings, on_cpu) if settings else
                 load_model(*self._base, on_cpu=on_cpu))
        if self.prefix:
            from peft import PeftModel  # here, since it takes a second to load
            model = PeftModel.from_pretrained(model, self.store / self.prefix / "adapter")
        return model

    def load_tokenizer(self):
        """The tokenizer that was written with the stage, or the start model's."""
        if self.prefix:
            return load_tokenizer(str(self.store / self.prefix / "adapter"))
        return load_tokenizer(*self._base)

    @property
    def _base(self) -> tuple[str, str | None]:
        """Name and revision of the weights, without a prefix."""
        if self.weights:
            return str(self.store / self.weights / "model"), None
        return self.start, self.revision


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint as a person names it: a stage of a run (None: its start), or a model."""

    run: Path | None = None
    stage: int | None = None  # counted from 0
    model: str | None = None

    @classmethod
    def parse(cls, text: str) -> "CheckpointRef":
        """`RUN` (its last stage), `RUN:start`, `RUN:STAGE` (name, or number from 1), or a model.

        Raises BadInput, naming the run's stages or what is missing.
        """
        run, _, stage = text.rpartition(":")
        if _is_run(complete := find_run(text)):
            run, stage = complete, ""
        elif not run or not _is_run(run := find_run(run)):
            try:
                return cls(model=str(locate_model(text)))
            except BadInput as error:
                if Path(text).exists():
                    raise
                raise BadInput(f"{text}: there is no run of that name, neither as a folder nor under "
                               f"{runs_root()}/, and no model: {error}", where=text) from None
        names = [entry["name"] for entry in read_result(run)["stages"]]
        if stage.isdigit() and 1 <= int(stage) <= len(names):
            return cls(run, int(stage) - 1)
        if stage not in ("", "start", *names):
            raise BadInput(f"{run}: no stage {stage!r}; it has start, {', '.join(names)}", field="stage",
                           where=str(run))
        return cls(run, None if stage == "start" else names.index(stage) if stage else len(names) - 1)

    def load(self):
        """The model and its tokenizer; raises BadInput where weights are gone or the start model changed."""
        if self.run is None:
            return load_model(self.model), set_rendering(load_tokenizer(self.model))
        state = state_of(self.run, self.stage)
        if not state.weights:
            check_start_revision(self.run)
        recipe = recipe_from_dict(read_result(self.run)["recipe"])
        return state.load(), set_rendering(state.load_tokenizer(), recipe.template_date,
                                           recipe.train_thoughts)


def start_key(revision: str) -> str:
    """The key of a start model's state, by what pins its weights."""
    return hash_key(start=revision)


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.json").exists() or (folder / "result.json").exists()


def state_of(run: Path | str, stage: int | None) -> ModelState:
    """The state after a stage of a finished run (None: its start).

    Raises BadInput for weights that are gone.
    """
    result, store = read_result(run), store_folder(run)
    key = start_key(read_json(run, "recipe.json")["revision"])
    state = ModelState(key, store, result["start"]["model"], result["recipe"]["model_revision"])
    for entry in result["stages"][:0 if stage is None else stage + 1]:
        state = state.after(entry["key"], entry["method"])
    for key in filter(None, (state.weights, state.prefix)):
        if find_stage(store, key) is None:
            raise BadInput(f"{store / key}: this stage's weights are gone; run the recipe again",
                           where=str(store / key))
    return state


def check_start_revision(run: Path | str) -> str:
    """The revision of a run's start model; raises BadInput where that is not the model it started from."""
    result, stored = read_result(run), read_json(run, "recipe.json")["revision"]
    start = result["start"]["model"]
    now = resolve_revision(start, result["recipe"]["model_revision"])
    if now != stored:
        raise BadInput(f"{start} is not the model that {run} started from (revision {stored}, now {now}), "
                       "and an adapter goes with its own base only", where=start)
    return stored


def load_stage(run: Path | str, stage: int = -1):
    """The model and tokenizer of a finished run's stage (by default the last; 0 is the first)."""
    count = len(read_result(run)["stages"])
    return CheckpointRef(Path(run), range(count)[stage]).load()
