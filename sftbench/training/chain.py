"""The chain: a recipe's stages one after another, each trained once, with the probes scored between them.

`run` writes the run's folder: the recipe first, an event whenever something happens, the result last.
"""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from datasets import Dataset
from filelock import FileLock, Timeout
from transformers import set_seed

from ..data.chat_template import training_pieces
from ..data.roles import digest_rows
from ..data.tokenization import encode_probe
from ..distributed import broadcast, is_follower, is_sharded, join_processes
from ..evaluation.probes import ANSWERS_PER_BATCH, limit_threads, mean_loss, score_probe
from ..evaluation.yardstick import score_yardstick, yardstick_digest
from ..models.checkpoint import ModelState, load_state
from ..models.loading import release_memory
from ..models.methods import METHOD_FUNCTIONS, save_stage_model, trainable_parameters
from ..recipes.recipe import ROLES, Recipe, recipe_to_dict, stage_settings
from ..runs.checkpoints import Checkpoints, stage_checkpoints
from ..runs.events import EventRecorder
from ..runs.folder import SCHEMA, new_run_folder, store_folder, write_json
from ..runs.ownership import StopSignal, claim_folder, release_folder, update_owner_record
from ..runs.stage_store import build_stage, find_stage, hash_key, lock_stage
from .forecast import cached_forecast
from .outcome import check_disk_space, describe_run, record_early_end
from .prepare import (
    LIVE_ROWS,
    PreparedRun,
    library_versions,
    plan_steps,
    prepare_recipe,
    stage_dataset,
    stage_keys,
)
from .trainer import train_stage


def run_chain(recipe: Recipe | PreparedRun, callbacks: Iterable[Callable[[dict], None]] = (),
        timed: bool = True) -> Path:
    """Train the recipe's chain and return the run's folder, with `result.json` in it.

    Every event is appended to `events.jsonl` and then handed to each callback. Stages that the store beside
    the folder already holds are not trained again, and one that was stopped goes on from its last checkpoint.
    `timed` False spares the forecast's trial, unless `expect` has made it for this very `Prepared`. The first
    SIGINT or SIGTERM stops after a step, with a checkpoint; the second at once. Raises BadInput
    before any work, RunFailed in the middle of it, Stopped where it was stopped.
    """
    join_processes()
    ready = recipe if isinstance(recipe, PreparedRun) else prepare_recipe(recipe)
    if is_follower():
        return _follow_main_process(ready)
    folder = new_run_folder(ready.recipe.mode, ready.recipe.method, ready.recipe.output_dir)
    described, keys = describe_run(folder, ready), stage_keys(ready)
    datasets = {stage["name"]: stage_dataset(ready, stage) for stage in ready.stages}
    check_disk_space(folder, ready, keys[1:])
    claim_folder(folder)
    try:
        with StopSignal(folder) as stop:
            emit = EventRecorder(folder, list(callbacks))
            (folder / "result.json").unlink(missing_ok=True)
            write_json(folder / "recipe.json", described)
            result = {"schema": SCHEMA, "complete": False, "state": "running",
                      "recipe": recipe_to_dict(ready.recipe), "start": {}, "stages": [],
                      "forecast": {"steps": plan_steps(ready, datasets)}, "versions": library_versions()}
            try:
                result["forecast"] = cached_forecast(ready, datasets, keys[1:], store_folder(folder), timed)
                _train_chain(folder, ready, keys, datasets, result, emit, stop)
                broadcast({"folder": folder})
                write_json(folder / "result.json", result | {"complete": True, "state": "done"})
            except BaseException as error:
                told = record_early_end(folder, result, emit, error)
                if told is error:
                    raise
                raise told from error
            emit.settle()
            emit({"stage": emit.last["stage"], "step": emit.last["step"], "state": "done"})
    finally:
        release_folder(folder)
    return folder


def _train_chain(folder: Path, ready: PreparedRun, keys: list[str], datasets: dict, result: dict,
                 emit: EventRecorder, stop: StopSignal) -> None:
    """All stages and the scores between them; what is known goes into `result` as it becomes known."""
    emit({"stage": "start", "step": 0, "plan": result["forecast"]["steps"], "forecast": result["forecast"],
          "warnings": list(ready.warnings)})
    began = time.monotonic()
    update_owner_record(folder, state="running")
    state = ModelState(keys[0], ready.start)
    result["start"] = {"name": ready.mode["start"], "model": ready.start,
                       "probes": _score_and_record(folder, ready, state, emit, "start", 0)}
    for stage, key in zip(ready.stages, keys[1:], strict=True):
        stop.check()
        state, entry = _run_stage(folder, ready, stage, key, state, datasets[stage["name"]], emit, stop)
        result["stages"].append(entry)
        entry["probes"] = _score_and_record(folder, ready, state, emit, stage["name"], entry["steps"])
    result["forecast"] = result["forecast"] | {"took": {  # the event that told it stays as it was told
        "seconds": round(time.monotonic() - began, 2),
        "peak_memory_bytes": max(entry["peak_memory_bytes"] for entry in result["stages"])}}


def _run_stage(folder: Path, ready: PreparedRun, stage: dict, key: str, parent: ModelState,
           dataset: tuple[Dataset, dict], emit: EventRecorder, stop: StopSignal) -> tuple[ModelState, dict]:
    """The stage taken from the store, or trained and put there; its state and its entry for the result."""
    settings = stage_settings(ready.recipe, stage["kind"])
    shelf = store_folder(folder)
    with _wait_for_lock(lock_stage(shelf, key), stage, emit, stop):
        reused = find_stage(shelf, key) is not None
        if not reused:
            with stage_checkpoints(shelf, key, folder, ready.recipe.save_steps, stop) as kept:
                build_stage(shelf, key, lambda place: _train_into(
                    place, shelf, ready, stage, parent, dataset, emit, kept))
    stored = json.loads((shelf / key / "stage.json").read_text(encoding="utf-8"))
    if reused:
        for event in stored["events"]:
            emit({**event, "stage": stage["name"], "reused": True, "time": round(time.time(), 3)})
    prefixed = settings["method"] == "ptuning_v2"
    state = ModelState(key, parent.start, parent.stage if prefixed else key, key if prefixed else None)
    entry = {"name": stage["name"], "kind": stage["kind"], "method": settings["method"],
             "key": key, "reused": reused}
    return state, entry | stored["figures"]


def _wait_for_lock(lock: FileLock, stage: dict, emit: EventRecorder, stop: StopSignal) -> FileLock:
    """The stage's lock, once it is ours; while another run trains the stage, this one waits and says so."""
    while True:
        try:
            return lock.acquire(timeout=0.2)
        except Timeout:
            if "waiting" not in emit.last:
                emit.settle()
                emit({"stage": stage["name"], "step": 0, "waiting": True})
            stop.check()


def _train_into(place: Path, shelf: Path, ready: PreparedRun, stage: dict, parent: ModelState,
                dataset: tuple[Dataset, dict], emit: EventRecorder, kept: Checkpoints) -> None:
    """Train the stage, from its last checkpoint if it has one, and write all that it leaves into `place`."""
    settings, tokenizer = stage_settings(ready.recipe, stage["kind"]), ready.tokenizer

    def record(event: dict) -> None:
        emit(event)
        kept.events.append(emit.last)

    _resume_checkpoint(kept, stage, record)
    emit.settle()
    broadcast({"shelf": shelf, "stage": stage, "parent": parent, "kept": {
        "folder": kept.folder, "found": kept.found, "progress": kept.progress}})
    model, figures = _train_together(shelf, ready, stage, parent, dataset[0], record, kept,
                          (ready.recipe.report_to, emit.folder))
    sizes = trainable_parameters(model)
    if settings["method"] == "qlora":
        figures["quantisation_loss"] = _quantisation_loss(
            shelf, parent, ready, _live_probes(ready, settings), figures["start_loss"])
    model = save_stage_model(model, settings["method"], place)
    tokenizer.save_pretrained(place / ("model" if (place / "model").exists() else "adapter"))
    figures |= {"parameters": model.num_parameters() if settings["method"] != "ptuning_v2"
                else model.get_base_model().num_parameters(),
                "trainable_parameters": sum(sizes.values()), "data": dataset[1]}
    write_json(place / "stage.json", {"figures": figures, "events": kept.events})
    del model
    release_memory()


def _train_together(
    shelf: Path,
    ready: PreparedRun,
    stage: dict,
    parent: ModelState,
    dataset: Dataset,
    record: Callable,
    kept: Checkpoints,
    report: tuple = (None, Path()),
) -> tuple:
    """The part of a stage that every process takes part in: the trained model and the stage's figures."""
    settings = stage_settings(ready.recipe, stage["kind"])

    def fresh():
        set_seed(settings["seed"])
        model = load_state(shelf, parent, ready.recipe.model_revision, settings, stay=is_sharded())
        change = METHOD_FUNCTIONS[settings["method"]]
        return change(model, ready.tokenizer, settings, _prefix_text(ready, stage))

    model, kept.stop.training = fresh(), True
    figures = train_stage(model, ready.tokenizer, dataset, settings, stage["name"], record,
                          _live_probes(ready, settings), ready.recipe.eval_steps, kept, report)
    kept.stop.training = False
    whole = figures.pop("gathered", None)
    if whole is not None and not is_follower():  # no process held the whole of a sharded model
        model = fresh()
        model.load_state_dict(whole, strict=False)
    return model, figures


def _live_probes(ready: PreparedRun, settings: dict) -> dict:
    """The part of each probe that is scored while a stage trains, encoded."""
    probes = {name: encode_probe(ready.tokenizer, role.probe[:LIVE_ROWS], settings["max_length"])[0]
              for name, role in ready.roles.items()}
    return {name: rows for name, rows in probes.items() if rows}


def _follow_main_process(ready: PreparedRun) -> Path:
    """Train what rank 0 trains, and return the run's folder once it is done; writes nothing of its own."""
    while "stage" in (order := broadcast()):
        dataset, _ = stage_dataset(ready, order["stage"])
        stop = StopSignal(order["kept"]["folder"])  # asked, but what rank 0 says counts
        kept = Checkpoints(save_steps=None, stop=stop, events=[], **order["kept"])
        _train_together(
            order["shelf"], ready, order["stage"], order["parent"], dataset, lambda event: None, kept
        )
        release_memory()
    return order["folder"]


def _resume_checkpoint(kept: Checkpoints, stage: dict, record: Callable) -> None:
    """Take the stage's last sound checkpoint, tell again what led up to it, and what was passed over."""
    torn = kept.resolve()
    for event in kept.progress.get("events", []):
        record(event)
    if torn or kept.found:
        event = {"stage": stage["name"], "step": kept.progress.get("step", 0)}
        if kept.found:
            event["resumed"] = f"goes on from {kept.found.name}"
        if torn:
            event["passed_over"] = f"{', '.join(torn)}: not whole, written when the run was cut off"
        record(event)


def _prefix_text(ready: PreparedRun, stage: dict) -> str:
    """A few rows of the stage's data as the model sees them, from which a prefix may start."""
    rows = [row for role in stage["shares"] for row in ready.roles[role].train.take(8)]
    return "".join(part for row in rows for text in training_pieces(ready.tokenizer, row) for part, _ in text)


def _quantisation_loss(
    shelf: Path, parent: ModelState, ready: PreparedRun, probes: dict, quantised: dict
) -> dict:
    """How much each probe's loss rose when the parent's weights were quantised, in nats per token."""
    plain = load_state(shelf, parent, ready.recipe.model_revision)
    return {role: round(quantised[role] - mean_loss(plain, rows, ready.tokenizer.pad_token_id), 5)
            for role, rows in probes.items()}


def _score_and_record(
    folder: Path, ready: PreparedRun, state: ModelState, emit: EventRecorder, stage: str, step: int
) -> dict:
    """The scores of a state, from the store or taken now, and told."""
    shelf = store_folder(folder)
    if not _scores_path(shelf, ready, state).exists():
        emit.settle()
    scores = score_state(shelf, ready, state)
    emit({"stage": stage, "step": step, **{f"eval_{role}_{name}": value for role, figures in scores.items()
                                           for name, value in figures.items()}})
    return scores


def _scores_path(shelf: Path, ready: PreparedRun, state: ModelState) -> Path:
    recipe = ready.recipe
    key = hash_key(state=state.key, max_length=recipe.max_length, max_new_tokens=recipe.max_new_tokens,
                       probes={name: digest_rows(role.probe) for name, role in ready.roles.items()},
                       yardstick=yardstick_digest() if recipe.yardstick else None)
    return shelf / "probes" / f"{key}.json"


def score_state(shelf: Path, ready: PreparedRun, state: ModelState | None = None) -> dict:
    """All probes on a state (by default the start), as reloaded from disk; kept in the store, taken once."""
    recipe, state = ready.recipe, state or ModelState(stage_keys(ready)[0], ready.start)
    place = _scores_path(shelf, ready, state)
    if place.exists():
        return json.loads(place.read_text())
    model = load_state(shelf, state, recipe.model_revision)
    with limit_threads(model.num_parameters() * ANSWERS_PER_BATCH):
        scores = {name: score_probe(model, ready.tokenizer, ready.roles[name].probe, recipe.max_length,
                                       recipe.max_new_tokens) for name in ROLES if name in ready.roles}
        if recipe.yardstick:
            scores["yardstick"] = score_yardstick(model, ready.tokenizer)
    del model
    release_memory()
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, scores)
    return scores
