"""Before the run: how much memory and time it will take, so that nobody learns it from a run that dies.

Memory is counted on a model without weights (`footprint`); time is measured, by a few real steps of each
stage's kind and by scoring a part of the probes, and taken times what is planned.
"""

import contextlib
import time
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from transformers import set_seed

from . import blocks, data, evaluate, footprint, methods, models, train, yardstick
from .folder import release_memory
from .ready import LIVE_ROWS, Prepared
from .recipe import stage_settings
from .runs import duration

WARM, TIMED = 1, 4  # steps of a trial that only warm up, and that are timed
SHORT = 20  # a stage of fewer steps is not worth a trial: it would take a good part of the stage itself
SAMPLE = 64  # rows of a probe that are scored in a trial, one batch of answers
TIGHT = 0.85  # of the room from which on another program or a longer row may be too much


def forecast(ready: Prepared, datasets: dict[str, tuple[Dataset, dict]], plan: dict[str, int],
             stored: set[str] = frozenset(), timed: bool = True) -> dict:
    """What the run will take, as plain data; `stored` names the stages that need no training.

    `steps` is the plan; `stages` has for each stage its `seconds` and `memory` in bytes by part; then
    `probe_seconds` of scoring all probes once, the run's `seconds`, its `peak_memory_bytes`, `room_bytes` on
    this machine and `fits` ("fits", "tight", "does not fit"). What could not be told is None. `timed` False,
    or memory that does not fit, leaves out the trial and so all seconds.
    """
    room, base = _room()
    stages = {stage["name"]: _stage_memory(ready, stage, datasets[stage["name"]][0], base, plan)
              for stage in ready.stages}
    told = [stage["peak_memory_bytes"] for stage in stages.values() if stage["peak_memory_bytes"]]
    peak = max(told, default=None)
    fits = None if peak is None else (
        "does not fit" if peak > room else "tight" if peak > TIGHT * room else "fits")
    found = {"steps": plan, "stages": stages, "probe_seconds": None, "seconds": None,
             "peak_memory_bytes": peak, "room_bytes": room, "fits": fits}
    todo = [stage for stage in ready.stages if stage["name"] not in stored]
    for name in stored:
        stages[name]["seconds"] = 0.0
    if timed and fits != "does not fit" and todo and all(plan[stage["name"]] >= SHORT for stage in todo):
        _time(ready, datasets, plan, todo, found)
    return found


def _room() -> tuple[int, int]:
    """Bytes that training may take here, and how many of them this process holds already."""
    if torch.cuda.is_available():
        held = torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved(), held
    with contextlib.suppress(ImportError):
        import torch._dynamo  # noqa: F401  the first training imports it (transformers 5.23), 40 MB
    held, room = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text())
                       for name in ("memory.max", "memory.current"))
        room = min(room, limit - used)
    return room + held, held


def _stage_memory(ready: Prepared, stage: dict, dataset: Dataset, base: int, plan: dict) -> dict:
    """A stage's memory by part, and their sum; without both where the model cannot be counted."""
    settings = stage_settings(ready.recipe, stage["kind"])
    width = max(map(sum, dataset["seq_lengths"]))
    config = models.load_config(ready.start, ready.recipe.model_revision)
    try:
        parts = {"base": base} | footprint.count(config, settings, ready.tokenizer, width)
    except Exception:  # a family that the meta device cannot run: better no forecast than no run
        parts = {}
    return {"seconds": None, "memory": parts, "peak_memory_bytes": sum(parts.values()) or None}


def _time(ready: Prepared, datasets: dict, plan: dict, todo: list[dict], found: dict) -> None:
    """Put seconds into the forecast, by a trial of each kind of stage and of the probes."""
    trials = {}
    probes = {name: blocks.encode_rows(ready.tokenizer, role.probe[:LIVE_ROWS], ready.recipe.max_length)[0]
              for name, role in ready.roles.items()}
    probes = {name: rows for name, rows in probes.items() if rows}
    for stage in todo:
        settings = stage_settings(ready.recipe, stage["kind"])
        trial = _trial(ready, settings, datasets[stage["name"]][0], probes)
        trials[stage["name"]] = trial
        steps = plan[stage["name"]]
        every = ready.recipe.eval_steps or max(1, steps // 8)
        scored = (steps - 1) // every if probes else 0
        found["stages"][stage["name"]]["seconds"] = round(
            trial["begin"] + steps * trial["step"] + scored * trial["score"], 2)
    began = time.monotonic()
    model = models.load_model(ready.start, ready.recipe.model_revision)
    load = time.monotonic() - began
    found["probe_seconds"] = round(_probes_time(ready, model) + load, 2)
    del model
    release_memory()
    # each stage's model is loaded, scored before its first step, and written; probes are scored before all
    found["seconds"] = round(sum(stage["seconds"] for stage in found["stages"].values())
                             + sum(2 * load + trial["score"] for trial in trials.values())
                             + found["probe_seconds"] * (len(todo) + 1), 2)


def _trial(ready: Prepared, settings: dict, dataset: Dataset, probes: dict) -> dict:
    """Seconds of one step (`step`), of the live probes (`score`) and before the first step (`begin`)."""
    batches = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    whole = len(dataset) // batches
    chosen = [number * whole // (WARM + TIMED) * batches + row for number in range(WARM + TIMED)
              for row in range(batches)]  # whole batches, spread over the stage
    set_seed(settings["seed"])
    model = models.load_for(ready.start, ready.recipe.model_revision, settings)
    model = methods.METHODS[settings["method"]](model, ready.tokenizer, settings | {"prefix_init": "random"},
                                                "")
    marks = [time.monotonic()]
    figures = train.train(model, ready.tokenizer, dataset.select(chosen), settings | {
        "max_steps": WARM + TIMED}, "trial", lambda event: marks.append(time.monotonic()), probes,
        eval_steps=10**9)
    del model
    release_memory()
    steps = sorted(after - before for before, after in zip(marks[1 + WARM:], marks[2 + WARM:], strict=False))
    # the middle ones: another program may take the machine for a moment
    step = sum(steps[1:-1]) / len(steps[1:-1]) if len(steps) > 2 else sum(steps) / len(steps)
    return {"step": step, "score": marks[1] - marks[0],
            "begin": max(figures["seconds"] - sum(steps) - WARM * step, 0)}


def _probes_time(ready: Prepared, model) -> float:
    """Seconds of scoring all probes once, by scoring a part of each."""
    whole = 0.0
    for role in ready.roles.values():
        rows = role.probe[:SAMPLE]
        if rows:
            began = time.monotonic()
            evaluate.probe(model, ready.tokenizer, rows, ready.recipe.max_length, ready.recipe.max_new_tokens)
            whole += (time.monotonic() - began) * len(role.probe) / len(rows)
    if ready.recipe.yardstick:
        began = time.monotonic()
        yardstick.score(model, ready.tokenizer, SAMPLE)
        whole += (time.monotonic() - began) * yardstick.WORK / SAMPLE
    return whole


def forecast_text(found: dict) -> str:
    """The forecast as a person reads it: one line a stage, and whether it fits."""
    lines = []
    for name, stage in found["stages"].items():
        parts = stage["memory"]
        line = f"{name}: {found['steps'][name]:,} steps"
        line += "" if stage["seconds"] is None else (
            ", in the store already" if stage["seconds"] == 0 else f", {duration(stage['seconds'])}")
        if parts:
            line += (f"; {_gigabytes(stage['peak_memory_bytes'])} = " + " + ".join(
                f"{_gigabytes(size)} {part}" for part, size in parts.items()))
        lines.append(line)
    if found["seconds"] is not None:
        lines.append(f"The run: {duration(found['seconds'])}, of it {duration(found['probe_seconds'])} each "
                     f"time that the probes are scored.")
    else:
        lines.append("Time was not measured.")
    if found["fits"]:
        lines.append(f"Memory: {found['fits']} ({_gigabytes(found['peak_memory_bytes'])} at the most, "
                     f"{_gigabytes(found['room_bytes'])} are free for it)." + REMEDIES[found["fits"]])
    return "\n".join(lines)


REMEDIES = {"fits": "", "tight": " Other programs may take what is missing.",
            "does not fit": " Take a smaller batch with more accumulation, a shorter max_length, "
                            "gradient_checkpointing, or lora or qlora."}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
