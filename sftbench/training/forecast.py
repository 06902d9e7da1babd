"""Before the run: how much memory and time it will take, so that nobody learns it from a run that dies.

Memory is predicted on a model without weights (`memory`); time is measured, by a few real steps of each
stage's kind and by scoring a part of the probes, and multiplied by what is planned.
"""

import contextlib
import importlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from transformers import set_seed

from ..data.packing import batch_shape
from ..data.tokenization import encode_prompt
from ..distributed import process_count
from ..errors import RunFailed
from ..evaluation.probes import answer_probe, probe_losses, row_nats, scoring_bytes
from ..evaluation.scoring import ProbeSet
from ..evaluation.yardstick import encode_questions, encode_texts, score_options
from ..models.loading import load_for_training, load_model, load_model_config, release_memory
from ..models.methods import METHOD_FUNCTIONS
from ..recipes.recipe import Recipe
from ..recipes.stages import Stage
from ..runs.folder import new_run_folder, store_folder
from .memory import predict_memory
from .prepare import PreparedRun, prepare_recipe
from .trainer import StageContext, eval_interval, train_stage

WARMUP_STEPS = 1  # steps of a trial that only warm up
TIMED_STEPS = (3, 16)  # steps of a trial that are timed, at least and at most: else a 40th of the stage
MIN_TIMED_STEPS = 20  # a trial of a shorter stage would take a good part of the stage itself
TRIAL_SECONDS = 8.0  # from which on a trial takes no further step, once the least are timed
NO_ROOM = "memory does not suffice to try a step"
SAMPLE_ROWS = (8, 64)  # rows of a probe that are scored in a trial; more, a batch of answers, where
SAMPLE_SECONDS = 0.5  # the fewer took less than this
TIGHT_SHARE = 0.85  # of the room, from which on another program or a longer row may be too much


def forecast_recipe(recipe: Recipe | PreparedRun, timed: bool = True) -> dict:
    """What the recipe's run will take in memory and time, before it is started.

    Returns plain data: `steps` by stage; `stages` with each one's `seconds` and `memory` in bytes by part;
    then `probe_seconds` of scoring all probes once, the run's `seconds`, its `peak_memory_bytes`,
    `room_bytes` on this machine and `fits` ("fits", "tight", "does not fit"). What could not be predicted is
    None; `untimed` states why there are no seconds. `timed` False leaves out the trial that measures them,
    unless this PreparedRun had one for the same stored stages before.
    """
    ready = recipe if isinstance(recipe, PreparedRun) else prepare_recipe(recipe)
    folder = new_run_folder(ready.recipe.mode, ready.recipe.method, ready.recipe.output_dir)
    store = store_folder(folder)
    untrained = ready.untrained_stages(store)
    if ready.forecast is None or ready.forecast[0] != untrained:
        forecast = _predict_run(ready, untrained, store if timed else None)
        if not timed:
            return forecast
        ready.forecast = untrained, forecast
    return ready.forecast[1]


def _predict_run(ready: PreparedRun, untrained: list[Stage], store: Path | None) -> dict:
    """As `forecast_recipe`; what is in the `store` takes no time, and without it none is measured."""
    room, base = _available_memory()
    stages = {stage.name: {"seconds": None if stage in untrained else 0.0}
              | _stage_memory(ready, stage, base) for stage in ready.stages}
    peak = max((stage["peak_memory_bytes"] for stage in stages.values() if stage["peak_memory_bytes"]),
               default=None)
    fits = None if peak is None else (
        "does not fit" if peak > room else "tight" if peak > TIGHT_SHARE * room else "fits")
    forecast = {"steps": ready.plan, "stages": stages, "probe_seconds": None, "seconds": None,
                "peak_memory_bytes": peak, "room_bytes": room, "fits": fits}
    forecast["untimed"] = "it was not requested" if store is None else _why_untimed(ready, untrained, fits)
    if not forecast["untimed"]:
        try:
            _add_seconds(ready, untrained, store, forecast)
        except torch.OutOfMemoryError:
            forecast |= {"fits": "does not fit", "untimed": NO_ROOM}
        except RunFailed as error:  # the run itself reports where
            forecast["untimed"] = ("a tried step's loss was no number" if error.reason == "non-finite" else
                                   "the tried steps changed nothing")
    return forecast


def _why_untimed(ready: PreparedRun, untrained: list[Stage], fits: str | None) -> str | None:
    """Why no steps are tried for the stages that are to be trained, or None where they are."""
    if not untrained:
        return "every stage is in the store already"
    if process_count() > 1:
        return "a trial is of one process, and here are several"
    if fits == "does not fit":
        return NO_ROOM
    short = ", ".join(stage.name for stage in untrained if ready.plan[stage.name] < MIN_TIMED_STEPS)
    return f"a stage of fewer than {MIN_TIMED_STEPS} steps is not worth a trial ({short})" if short else None


def _available_memory() -> tuple[int, int]:
    """Bytes that training may take here, and how many of them this process uses already."""
    if torch.cuda.is_available():
        in_use = torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved(), in_use
    with contextlib.suppress(ImportError):
        importlib.import_module("torch._dynamo")  # the first training does (transformers 5.23): 40 MB
    release_memory()
    in_use = psutil.Process().memory_info().rss
    room = psutil.virtual_memory().available + in_use
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        room = min(room, int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    return room, in_use


def _stage_memory(ready: PreparedRun, stage: Stage, base: int) -> dict:
    """A stage's memory by part, and their sum; without both where it cannot be predicted."""
    width, trained = batch_shape(ready.datasets[stage.name][0], ready.plan[stage.name], stage.settings)
    config = load_model_config(ready.start, ready.recipe.model_revision)
    try:
        parts = {"base": base} | predict_memory(config, stage.settings, ready.tokenizer, width, trained)
        # probes are scored while the optimiser holds its state; CUDA then uses the activations' memory again,
        # where glibc keeps it for pieces of its size
        scoring = max((scoring_bytes(rows, ready.facts.vocabulary) for rows in ready.live_probes.values()),
                      default=0)
        parts["probes"] = max(scoring - torch.cuda.is_available() * parts["activations"], 0)
    except Exception:  # a family that the meta device cannot run: better no forecast than no run
        parts = {}
    return {"memory": parts, "peak_memory_bytes": sum(parts.values()) or None}


def _add_seconds(ready: PreparedRun, untrained: list[Stage], store: Path, forecast: dict) -> None:
    """Put seconds into the forecast, by a trial of each stage that is to be trained, and of the probes."""
    trials = {stage.name: _try_stage(ready, stage) for stage in untrained}
    for name, trial in trials.items():
        steps = ready.plan[name]
        every = eval_interval(steps, ready.recipe.eval_steps)
        times_scored = (steps - 1) // every if ready.live_probes else 0
        forecast["stages"][name]["seconds"] = round(
            trial.before + steps * trial.step + times_scored * trial.score, 2)
    began = time.monotonic()
    model = load_model(ready.start, ready.recipe.model_revision)
    load = time.monotonic() - began
    rows = _time_rows(ready.probes, model)
    forecast["probe_seconds"] = round(sum(rows.values()) + _time_yardstick(ready, model) + load, 2)
    start = ready.start_state(store)
    before = forecast["probe_seconds"] if ready.probes.unanswered(start) else 0.0
    if ready.prompted and ready.prompted[0].unanswered(start):
        before += load + sum(rows[role] * _prompt_tokens(ready.prompted[0], role)
                             / _prompt_tokens(ready.probes, role) for role in ready.prompted[0].rows)
    del model
    release_memory()
    # each stage's model is loaded, scored before its first step and after the last, written, loaded again and
    # scored; probes are scored before all
    forecast["seconds"] = round(sum(stage["seconds"] for stage in forecast["stages"].values())
                                + sum(3 * load + 3 * trial.score for trial in trials.values())
                                + forecast["probe_seconds"] * len(untrained) + before, 2)


@dataclass
class Trial:
    """Seconds of one step, of scoring the live probes once, and of all before the first step."""

    step: float
    score: float
    before: float


def _try_stage(ready: PreparedRun, stage: Stage) -> Trial:
    """Train a few steps of a stage, spread over it, and time them."""
    settings, (dataset, _) = stage.settings, ready.datasets[stage.name]
    timed = min(max(ready.plan[stage.name] // 40, TIMED_STEPS[0]), TIMED_STEPS[1])
    steps, size = WARMUP_STEPS + timed, settings.blocks_per_step
    firsts = [number * ready.plan[stage.name] // steps * size for number in range(steps)]
    chosen = [min(first + block, len(dataset) - 1) for first in firsts for block in range(size)]
    set_seed(settings.seed)
    model = load_for_training(ready.start, ready.recipe.model_revision, settings)
    model = METHOD_FUNCTIONS[settings.method](
        model, ready.tokenizer, replace(settings, prefix_init="random"), "")
    marks = [time.monotonic()]
    metrics = train_stage(model, StageContext(
        "trial", replace(settings, max_steps=steps), ready.tokenizer, dataset.select(chosen),
        emit=lambda event: marks.append(time.monotonic()), probes=ready.live_probes, eval_steps=10**9,
        trial=(WARMUP_STEPS + TIMED_STEPS[0], TRIAL_SECONDS)))
    timed = metrics.steps - WARMUP_STEPS
    step = (marks[-1] - marks[-1 - timed]) / timed
    # scored again now: a fresh model's first time takes half as long again
    began = time.monotonic()
    probe_losses(model, ready.tokenizer, ready.live_probes)
    score = time.monotonic() - began
    del model
    release_memory()
    return Trial(step, score, max(metrics.seconds - metrics.steps * step, 0))


def _time_rows(probes: ProbeSet, model) -> dict[str, float]:
    """By role the seconds of answering all rows once, by answering a part of them."""
    seconds = {}
    for role, rows in probes.rows.items():
        for count in SAMPLE_ROWS:
            sample, began = rows[:count], time.monotonic()
            answer_probe(model, probes.tokenizer, sample, probes.max_length, probes.max_new_tokens)
            if (took := time.monotonic() - began) > SAMPLE_SECONDS:
                break
        seconds[role] = took * len(rows) / len(sample)
    return seconds


def _prompt_tokens(probes: ProbeSet, role: str) -> int:
    """All tokens of a role's questions: what answering takes goes with them."""
    return sum(len(encode_prompt(probes.tokenizer, row)) for row in probes.rows[role])


def _time_yardstick(ready: PreparedRun, model) -> float:
    """Seconds of scoring the yardstick, where the recipe has it, by scoring a part of it."""
    if not ready.recipe.yardstick:
        return 0.0
    texts, questions = encode_texts(ready.tokenizer), encode_questions(ready.tokenizer)
    began = time.monotonic()
    row_nats(model, texts[::16], ready.tokenizer.pad_token_id)
    total = (time.monotonic() - began) * len(texts) / len(texts[::16])
    began = time.monotonic()
    score_options(model, questions[::16], ready.tokenizer.pad_token_id)
    return total + (time.monotonic() - began) * len(questions) / len(questions[::16])
