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

from . import (
    blocks,
    checkpoints,
    data,
    encoded,
    evaluate,
    forecast,
    methods,
    models,
    process,
    ranks,
    runs,
    store,
    template,
    train,
    yardstick,
)
from .checkpoints import Checkpoints
from .folder import check_space, describe, ended_early, versions
from .ready import LIVE_ROWS, Prepared, prepare
from .recipe import ROLES, Recipe, stage_settings, to_dict
from .states import State, load_state


def run(recipe: Recipe | Prepared, callbacks: Iterable[Callable[[dict], None]] = (),
        timed: bool = True) -> Path:
    """Train the recipe's chain and return the run's folder, with `result.json` in it.

    Every event is appended to `events.jsonl` and then handed to each callback. Stages that the store beside
    the folder already holds are not trained again, and one that was stopped goes on from its last checkpoint.
    `timed` False spares the forecast's trial, unless `expect` has made it for this very `Prepared`. The first
    SIGINT or SIGTERM stops after a step, with a checkpoint; the second at once. Raises BadInput
    before any work, RunFailed in the middle of it, Stopped where it was stopped.
    """
    ranks.join()
    ready = recipe if isinstance(recipe, Prepared) else prepare(recipe)
    if ranks.follows():
        return _follow(ready)
    folder = runs.folder_for(ready.recipe.mode, ready.recipe.method, ready.recipe.output_dir)
    described, keys = describe(folder, ready), stage_keys(ready)
    datasets = {stage["name"]: stage_dataset(ready, stage) for stage in ready.stages}
    check_space(folder, ready, keys[1:])
    process.claim(folder)
    try:
        with process.Stop(folder) as stop:
            emit = runs.Recorder(folder, list(callbacks))
            (folder / "result.json").unlink(missing_ok=True)
            runs.write_json(folder / "recipe.json", described)
            result = {"schema": runs.SCHEMA, "complete": False, "state": "running",
                      "recipe": to_dict(ready.recipe), "start": {}, "stages": [],
                      "forecast": {"steps": plan(ready, datasets)}, "versions": versions()}
            try:
                result["forecast"] = _expected(ready, datasets, keys[1:], runs.store_of(folder), timed)
                _train_chain(folder, ready, keys, datasets, result, emit, stop)
                ranks.share({"folder": folder})
                runs.write_json(folder / "result.json", result | {"complete": True, "state": "done"})
            except BaseException as error:
                told = ended_early(folder, result, emit, error)
                if told is error:
                    raise
                raise told from error
            emit.settle()
            emit({"stage": emit.last["stage"], "step": emit.last["step"], "state": "done"})
    finally:
        process.release(folder)
    return folder


def _train_chain(folder: Path, ready: Prepared, keys: list[str], datasets: dict, result: dict,
                 emit: runs.Recorder, stop: process.Stop) -> None:
    """All stages and the scores between them; what is known goes into `result` as it becomes known."""
    emit({"stage": "start", "step": 0, "plan": result["forecast"]["steps"], "forecast": result["forecast"],
          "warnings": list(ready.warnings)})
    began = time.monotonic()
    process.note(folder, state="running")
    state = State(keys[0], ready.start)
    result["start"] = {"name": ready.mode["start"], "model": ready.start,
                       "probes": _score(folder, ready, state, emit, "start", 0)}
    for stage, key in zip(ready.stages, keys[1:], strict=True):
        stop.check()
        state, entry = _stage(folder, ready, stage, key, state, datasets[stage["name"]], emit, stop)
        result["stages"].append(entry)
        entry["probes"] = _score(folder, ready, state, emit, stage["name"], entry["steps"])
    result["forecast"] = result["forecast"] | {"took": {  # the event that told it stays as it was told
        "seconds": round(time.monotonic() - began, 2),
        "peak_memory_bytes": max(entry["peak_memory_bytes"] for entry in result["stages"])}}


def expect(recipe: Recipe | Prepared, timed: bool = True) -> dict:
    """What the recipe's run will take in memory and time (`forecast.forecast`), before it is started."""
    ready = recipe if isinstance(recipe, Prepared) else prepare(recipe)
    folder = runs.folder_for(ready.recipe.mode, ready.recipe.method, ready.recipe.output_dir)
    datasets = {stage["name"]: stage_dataset(ready, stage) for stage in ready.stages}
    return _expected(ready, datasets, stage_keys(ready)[1:], runs.store_of(folder), timed)


def _expected(ready: Prepared, datasets: dict, keys: list[str], shelf: Path, timed: bool) -> dict:
    """The forecast, unless it was made for the same stages before: a trial takes seconds."""
    stored = {stage["name"] for stage, key in zip(ready.stages, keys, strict=True)
              if (shelf / key / store.MANIFEST).exists()}
    if ready.expected is None or ready.expected[0] != stored:
        found = forecast.forecast(ready, datasets, plan(ready, datasets), stored, timed)
        if not timed:
            return found
        ready.expected = stored, found
    return ready.expected[1]


def stage_keys(ready: Prepared) -> list[str]:
    """The key of the start, and that of each stage: a hash of all that decides it."""
    keys = [store.key_of(start=ready.revision)]
    for stage in ready.stages:
        keys.append(store.key_of(
            parent=keys[-1], kind=stage["kind"], shares=stage["shares"],
            settings=stage_settings(ready.recipe, stage["kind"]),
            data={role: ready.roles[role].digest for role in stage["shares"]}, versions=versions(),
            **({"processes": ranks.count()} if ranks.count() > 1 else {})))
    return keys


def plan(ready: Prepared, datasets: dict[str, tuple[Dataset, dict]]) -> dict[str, int]:
    """The optimiser steps of each stage, by its `stage_dataset`."""
    return {stage["name"]: train.steps_of(datasets[stage["name"]][0],
                                          stage_settings(ready.recipe, stage["kind"]))
            for stage in ready.stages}


def stage_dataset(ready: Prepared, stage: dict) -> tuple[Dataset, dict]:
    """The stage's blocks in training order, and what each role gave (rows, tokens, share, dropped)."""
    dataset, drawn = encoded.stage(
        ready.tokens, ready.pieces, {name: role.times for name, role in ready.roles.items()},
        stage["shares"], stage_settings(ready.recipe, stage["kind"]))
    for role, figures in drawn.items():
        figures["dropped"] = {reason: found["rows"] for reason, found in ready.roles[role].dropped.items()}
    return dataset, drawn


def _stage(folder: Path, ready: Prepared, stage: dict, key: str, parent: State,
           dataset: tuple[Dataset, dict], emit: runs.Recorder, stop: process.Stop) -> tuple[State, dict]:
    """The stage taken from the store, or trained and put there; its state and its entry for the result."""
    settings = stage_settings(ready.recipe, stage["kind"])
    shelf = runs.store_of(folder)
    with _taken(store.lock(shelf, key), stage, emit, stop):
        reused = store.find(shelf, key) is not None
        if not reused:
            with checkpoints.of_stage(shelf, key, folder, ready.recipe.save_steps, stop) as kept:
                store.build(shelf, key, lambda place: _train_into(
                    place, shelf, ready, stage, parent, dataset, emit, kept))
    stored = json.loads((shelf / key / "stage.json").read_text(encoding="utf-8"))
    if reused:
        for event in stored["events"]:
            emit({**event, "stage": stage["name"], "reused": True, "time": round(time.time(), 3)})
    prefixed = settings["method"] == "ptuning_v2"
    state = State(key, parent.start, parent.stage if prefixed else key, key if prefixed else None)
    entry = {"name": stage["name"], "kind": stage["kind"], "method": settings["method"],
             "key": key, "reused": reused}
    return state, entry | stored["figures"]


def _taken(lock: FileLock, stage: dict, emit: runs.Recorder, stop: process.Stop) -> FileLock:
    """The stage's lock, once it is ours; while another run trains the stage, this one waits and says so."""
    while True:
        try:
            return lock.acquire(timeout=0.2)
        except Timeout:
            if "waiting" not in emit.last:
                emit.settle()
                emit({"stage": stage["name"], "step": 0, "waiting": True})
            stop.check()


def _train_into(place: Path, shelf: Path, ready: Prepared, stage: dict, parent: State,
                dataset: tuple[Dataset, dict], emit: runs.Recorder, kept: Checkpoints) -> None:
    """Train the stage, from its last checkpoint if it has one, and write all that it leaves into `place`."""
    settings, tokenizer = stage_settings(ready.recipe, stage["kind"]), ready.tokenizer

    def record(event: dict) -> None:
        emit(event)
        kept.events.append(emit.last)

    _take_up(kept, stage, record)
    emit.settle()
    ranks.share({"shelf": shelf, "stage": stage, "parent": parent, "kept": {
        "folder": kept.folder, "found": kept.found, "progress": kept.progress}})
    model, figures = _fit(shelf, ready, stage, parent, dataset[0], record, kept,
                          (ready.recipe.report_to, emit.folder))
    sizes = methods.trainable(model)
    if settings["method"] == "qlora":
        figures["quantisation_loss"] = _quantisation_loss(
            shelf, parent, ready, _live_probes(ready, settings), figures["start_loss"])
    model = methods.finish(model, settings["method"], place)
    tokenizer.save_pretrained(place / ("model" if (place / "model").exists() else "adapter"))
    figures |= {"parameters": model.num_parameters() if settings["method"] != "ptuning_v2"
                else model.get_base_model().num_parameters(),
                "trainable_parameters": sum(sizes.values()), "data": dataset[1]}
    runs.write_json(place / "stage.json", {"figures": figures, "events": kept.events})
    del model
    models.release_memory()


def _fit(shelf: Path, ready: Prepared, stage: dict, parent: State, dataset: Dataset, record: Callable,
         kept: Checkpoints, report: tuple = (None, Path())) -> tuple:
    """The part of a stage that every process takes part in: the trained model and the stage's figures."""
    settings = stage_settings(ready.recipe, stage["kind"])

    def fresh():
        set_seed(settings["seed"])
        model = load_state(shelf, parent, ready.recipe.model_revision, settings, stay=ranks.sharded())
        change = methods.METHODS[settings["method"]]
        return change(model, ready.tokenizer, settings, _prefix_text(ready, stage))

    model, kept.stop.training = fresh(), True
    figures = train.train(model, ready.tokenizer, dataset, settings, stage["name"], record,
                          _live_probes(ready, settings), ready.recipe.eval_steps, kept, report)
    kept.stop.training = False
    whole = figures.pop("gathered", None)
    if whole is not None and not ranks.follows():  # no process held the whole of a sharded model
        model = fresh()
        model.load_state_dict(whole, strict=False)
    return model, figures


def _live_probes(ready: Prepared, settings: dict) -> dict:
    """The part of each probe that is scored while a stage trains, encoded."""
    probes = {name: blocks.encode_rows(ready.tokenizer, role.probe[:LIVE_ROWS], settings["max_length"])[0]
              for name, role in ready.roles.items()}
    return {name: rows for name, rows in probes.items() if rows}


def _follow(ready: Prepared) -> Path:
    """Train what rank 0 trains, and return the run's folder once it is done; writes nothing of its own."""
    while "stage" in (order := ranks.share()):
        dataset, _ = stage_dataset(ready, order["stage"])
        stop = process.Stop(order["kept"]["folder"])  # asked, but what rank 0 says counts
        kept = Checkpoints(save_steps=None, stop=stop, events=[], **order["kept"])
        _fit(order["shelf"], ready, order["stage"], order["parent"], dataset, lambda event: None, kept)
        models.release_memory()
    return order["folder"]


def _take_up(kept: Checkpoints, stage: dict, record: Callable) -> None:
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


def _prefix_text(ready: Prepared, stage: dict) -> str:
    """A few rows of the stage's data as the model sees them, from which a prefix may start."""
    rows = [row for role in stage["shares"] for row in ready.roles[role].train.take(8)]
    return "".join(part for row in rows for text in template.pieces(ready.tokenizer, row) for part, _ in text)


def _quantisation_loss(shelf: Path, parent: State, ready: Prepared, probes: dict, quantised: dict) -> dict:
    """How much each probe's loss rose when the parent's weights were quantised, in nats per token."""
    plain = load_state(shelf, parent, ready.recipe.model_revision)
    return {role: round(quantised[role] - evaluate.loss(plain, rows, ready.tokenizer.pad_token_id), 5)
            for role, rows in probes.items()}


def _score(folder: Path, ready: Prepared, state: State, emit: runs.Recorder, stage: str, step: int) -> dict:
    """The scores of a state, from the store or taken now, and told."""
    shelf = runs.store_of(folder)
    if not _place_of_scores(shelf, ready, state).exists():
        emit.settle()
    scores = scores_of(shelf, ready, state)
    emit({"stage": stage, "step": step, **{f"eval_{role}_{name}": value for role, figures in scores.items()
                                           for name, value in figures.items()}})
    return scores


def _place_of_scores(shelf: Path, ready: Prepared, state: State) -> Path:
    recipe = ready.recipe
    key = store.key_of(state=state.key, max_length=recipe.max_length, max_new_tokens=recipe.max_new_tokens,
                       probes={name: data.digest(role.probe) for name, role in ready.roles.items()},
                       yardstick=yardstick.digest() if recipe.yardstick else None)
    return shelf / "probes" / f"{key}.json"


def scores_of(shelf: Path, ready: Prepared, state: State | None = None) -> dict:
    """All probes on a state (by default the start), as reloaded from disk; kept in the store, taken once."""
    recipe, state = ready.recipe, state or State(stage_keys(ready)[0], ready.start)
    place = _place_of_scores(shelf, ready, state)
    if place.exists():
        return json.loads(place.read_text())
    model = load_state(shelf, state, recipe.model_revision)
    with train.few_threads(model.num_parameters() * evaluate.ANSWERS_PER_BATCH):
        scores = {name: evaluate.probe(model, ready.tokenizer, ready.roles[name].probe, recipe.max_length,
                                       recipe.max_new_tokens) for name in ROLES if name in ready.roles}
        if recipe.yardstick:
            scores["yardstick"] = yardstick.score(model, ready.tokenizer)
    del model
    models.release_memory()
    place.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(place, scores)
    return scores
