"""Before the run: how much memory and time it will take, so that nobody learns it from a run that dies.

Memory is counted on a model without weights (`footprint`); time is measured, by a few real steps of each
stage's kind and by scoring a part of the probes, and taken times what is planned.
"""

import contextlib
import importlib
import time
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from transformers import set_seed

from ..data.packing import block_tokens
from ..data.tokenization import encode_probe
from ..distributed import process_count
from ..errors import RunFailed
from ..evaluation.probes import limit_threads, mean_loss, row_nats, score_probe, scoring_bytes
from ..evaluation.yardstick import encode_yardstick
from ..models.loading import load_for_training, load_model, load_model_config, release_memory
from ..models.methods import METHOD_FUNCTIONS
from ..recipes.recipe import Recipe, stage_settings
from ..runs.folder import new_run_folder, store_folder
from ..runs.stage_store import MANIFEST
from .memory import predict_memory
from .prepare import LIVE_ROWS, PreparedRun, plan_steps, prepare_recipe, stage_dataset, stage_keys
from .trainer import train_stage

WARMUP_STEPS = 1  # steps of a trial that only warm up
TIMED_STEPS = (3, 16)  # steps of a trial that are timed, at least and at most: else a tenth of the stage
MIN_TIMED_STEPS = (
    20  # a stage of fewer steps is not worth a trial: it would take a good part of the stage itself
)
NO_ROOM = "memory does not suffice to try a step"
SAMPLE_ROWS = 64  # rows of a probe that are scored in a trial, one batch of answers
TIGHT_SHARE = 0.85  # of the room from which on another program or a longer row may be too much


def predict_run(ready: PreparedRun, datasets: dict[str, tuple[Dataset, dict]], plan: dict[str, int],
             stored: set[str] = frozenset(), timed: bool = True) -> dict:
    """What the run will take, as plain data; `stored` names the stages that need no training.

    `steps` is the plan; `stages` has for each stage its `seconds` and `memory` in bytes by part; then
    `probe_seconds` of scoring all probes once, the run's `seconds`, its `peak_memory_bytes`, `room_bytes` on
    this machine and `fits` ("fits", "tight", "does not fit"). What could not be told is None; `untimed` says
    why there are no seconds. `timed` False leaves out the trial that takes them.
    """
    room, base = _available_memory()
    probes = {name: encode_probe(ready.tokenizer, role.probe[:LIVE_ROWS], ready.recipe.max_length)[0]
              for name, role in ready.roles.items()}
    probes = {name: rows for name, rows in probes.items() if rows}
    stages = {}
    for stage in ready.stages:
        name = stage["name"]
        stages[name] = _stage_memory(ready, stage, datasets[name][0], plan[name], probes, base)
    told = [stage["peak_memory_bytes"] for stage in stages.values() if stage["peak_memory_bytes"]]
    peak = max(told, default=None)
    fits = None if peak is None else (
        "does not fit" if peak > room else "tight" if peak > TIGHT_SHARE * room else "fits")
    found = {"steps": plan, "stages": stages, "probe_seconds": None, "seconds": None,
             "peak_memory_bytes": peak, "room_bytes": room, "fits": fits}
    todo = [stage for stage in ready.stages if stage["name"] not in stored]
    for name in stored:
        stages[name]["seconds"] = 0.0
    found["untimed"] = _untimed(timed, fits, {stage["name"]: plan[stage["name"]] for stage in todo})
    if not found["untimed"]:
        try:
            _time(ready, datasets, plan, todo, probes, found)
        except torch.OutOfMemoryError:
            found |= {"fits": "does not fit", "untimed": NO_ROOM}
        except RunFailed:  # of a loss that is no number: the run itself tells where
            found["untimed"] = "a tried step's loss was no number"
    return found


def _untimed(timed: bool, fits: str | None, todo: dict[str, int]) -> str | None:
    """Why no steps are tried for the stages and their steps `todo`, or None where they are."""
    short = [name for name, steps in todo.items() if steps < MIN_TIMED_STEPS]
    cases = (
        (not timed, "it was not asked for"),
        (not todo, "every stage is in the store already"),
        (process_count() > 1, "a trial is of one process, and here are several"),
        (fits == "does not fit", NO_ROOM),
        (short, f"a stage of fewer than {MIN_TIMED_STEPS} steps is not worth a trial ({', '.join(short)})"),
    )
    return next((why for holds, why in cases if holds), None)


def _available_memory() -> tuple[int, int]:
    """Bytes that training may take here, and how many of them this process holds already."""
    if torch.cuda.is_available():
        held = torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved(), held
    with contextlib.suppress(ImportError):
        importlib.import_module("torch._dynamo")  # the first training does (transformers 5.23): 40 MB
    release_memory()
    held = psutil.Process().memory_info().rss
    room = psutil.virtual_memory().available + held
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        room = min(room, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return room, held


def _stage_memory(ready: PreparedRun, stage: dict, dataset: Dataset, steps: int, probes: dict,
                  base: int) -> dict:
    """A stage's memory by part, and their sum; without both where the model cannot be counted."""
    settings = stage_settings(ready.recipe, stage["kind"])
    read = steps * settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    width = int(block_tokens(dataset)[:read].max())
    config = load_model_config(ready.start, ready.recipe.model_revision)
    try:
        parts = {"base": base} | predict_memory(config, settings, ready.tokenizer, width)
        # probes are scored while the optimiser holds what it holds; CUDA then uses the activations' memory
        # again, where glibc keeps it for pieces of its size
        scored = max((scoring_bytes(rows, ready.known["vocabulary"]) for rows in probes.values()),
                     default=0)
        parts["probes"] = max(scored - torch.cuda.is_available() * parts["activations"], 0)
    except Exception:  # a family that the meta device cannot run: better no forecast than no run
        parts = {}
    return {"seconds": None, "memory": parts, "peak_memory_bytes": sum(parts.values()) or None}


def _time(
    ready: PreparedRun, datasets: dict, plan: dict, todo: list[dict], probes: dict, found: dict
) -> None:
    """Put seconds into the forecast, by a trial of each stage that is to be trained, and of the probes."""
    trials = {}
    for stage in todo:
        settings = stage_settings(ready.recipe, stage["kind"])
        steps = plan[stage["name"]]
        trial = trials[stage["name"]] = _trial(ready, settings, datasets[stage["name"]][0], steps, probes)
        every = ready.recipe.eval_steps or max(1, steps // 8)
        scored = (steps - 1) // every if probes else 0
        found["stages"][stage["name"]]["seconds"] = round(
            trial["begin"] + steps * trial["step"] + scored * trial["score"], 2)
    began = time.monotonic()
    model = load_model(ready.start, ready.recipe.model_revision)
    load = time.monotonic() - began
    found["probe_seconds"] = round(_probes_time(ready, model) + load, 2)
    del model
    release_memory()
    # each stage's model is loaded, scored before its first step, and written; probes are scored before all
    found["seconds"] = round(sum(stage["seconds"] for stage in found["stages"].values())
                             + sum(2 * load + trial["score"] for trial in trials.values())
                             + found["probe_seconds"] * (len(todo) + 1), 2)


def _trial(ready: PreparedRun, settings: dict, dataset: Dataset, steps: int, probes: dict) -> dict:
    """Seconds of one step (`step`), of the live probes (`score`) and before the first step (`begin`)."""
    timed = min(max(steps // 10, TIMED_STEPS[0]), TIMED_STEPS[1])
    blocks_a_step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    chosen = [
        number * steps // (WARMUP_STEPS + timed) * blocks_a_step + block
        for number in range(WARMUP_STEPS + timed)
        for block in range(blocks_a_step)
    ]  # whole steps, spread over the stage
    chosen = [min(number, len(dataset) - 1) for number in chosen]
    set_seed(settings["seed"])
    model = load_for_training(ready.start, ready.recipe.model_revision, settings)
    trainable = METHOD_FUNCTIONS[settings["method"]]
    model = trainable(model, ready.tokenizer, settings | {"prefix_init": "random"}, "")
    marks = [time.monotonic()]
    figures = train_stage(
        model,
        ready.tokenizer,
        dataset.select(chosen),
        settings | {"max_steps": WARMUP_STEPS + timed},
        "trial",
        lambda event: marks.append(time.monotonic()),
        probes,
        eval_steps=10**9,
    )
    score = _score_time(model, ready, settings, figures, probes)
    del model
    release_memory()
    step = (marks[-1] - marks[-1 - timed]) / timed
    return {"step": step, "score": score,
            "begin": max(figures["seconds"] - (timed + WARMUP_STEPS) * step, 0)}


def _score_time(model, ready: PreparedRun, settings: dict, figures: dict, probes: dict) -> float:
    """Seconds of scoring the live probes in training; a fresh model's first time takes half as long again."""
    work = figures["tokens"] / figures["steps"] / settings["gradient_accumulation_steps"]
    with limit_threads(model.num_parameters() * work):
        began = time.monotonic()
        for rows in probes.values():
            mean_loss(model, rows, ready.tokenizer.pad_token_id)
        return time.monotonic() - began


def _probes_time(ready: PreparedRun, model) -> float:
    """Seconds of scoring all probes once, by scoring a part of each."""
    whole = 0.0
    for role in ready.roles.values():
        rows = role.probe[:SAMPLE_ROWS]
        if rows:
            began = time.monotonic()
            score_probe(model, ready.tokenizer, rows, ready.recipe.max_length, ready.recipe.max_new_tokens)
            whole += (time.monotonic() - began) * len(role.probe) / len(rows)
    if ready.recipe.yardstick:
        rows = encode_yardstick(ready.tokenizer)
        began = time.monotonic()
        row_nats(model, rows[::8], ready.tokenizer.pad_token_id)
        whole += (time.monotonic() - began) * len(rows) / len(rows[::8])
    return whole


def forecast_recipe(recipe: Recipe | PreparedRun, timed: bool = True) -> dict:
    """What the recipe's run will take in memory and time (`forecast.forecast`), before it is started."""
    ready = recipe if isinstance(recipe, PreparedRun) else prepare_recipe(recipe)
    folder = new_run_folder(ready.recipe.mode, ready.recipe.method, ready.recipe.output_dir)
    datasets = {stage["name"]: stage_dataset(ready, stage) for stage in ready.stages}
    return cached_forecast(ready, datasets, stage_keys(ready)[1:], store_folder(folder), timed)


def cached_forecast(ready: PreparedRun, datasets: dict, keys: list[str], shelf: Path, timed: bool) -> dict:
    """The forecast, unless it was made for the same stages before: a trial takes seconds."""
    stored = {stage["name"] for stage, key in zip(ready.stages, keys, strict=True)
              if (shelf / key / MANIFEST).exists()}
    if ready.expected is None or ready.expected[0] != stored:
        found = predict_run(ready, datasets, plan_steps(ready, datasets), stored, timed)
        if not timed:
            return found
        ready.expected = stored, found
    return ready.expected[1]
