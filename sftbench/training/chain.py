"""The chain: a recipe's stages one after another, each trained once, with the probes scored between them.

`run_chain` writes the run's folder: the recipe first, an event whenever something happens, the result last.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout
from transformers import set_seed

from ..data.chat_template import training_pieces
from ..distributed import broadcast, is_follower, is_sharded, join_processes
from ..errors import RunFailed
from ..evaluation.probes import probe_losses
from ..evaluation.scoring import interval_figures, sum_scores
from ..models.checkpoint import ModelState
from ..models.loading import release_memory
from ..models.methods import METHOD_FUNCTIONS, save_stage_model, trainable_parameters
from ..recipes.recipe import Recipe, recipe_to_dict
from ..recipes.stages import Stage
from ..runs.answers import PROMPT_ALONE, AnsweredRow, write_answers
from ..runs.checkpoints import Checkpoints, stage_checkpoints
from ..runs.events import RunLog
from ..runs.folder import SCHEMA, new_run_folder, store_folder, write_json
from ..runs.ownership import StopSignal, claim_folder, release_folder, update_owner_record
from ..runs.stage_store import build_stage, find_stage, lock_stage
from ..templates.rendering import set_rendering
from .forecast import forecast_recipe
from .hand_over import BestPoint, check_stored, score_trained
from .memory import read_peak_memory
from .outcome import check_disk_space, describe_run, record_early_end
from .prepare import PreparedRun, library_versions, prepare_recipe
from .trainer import StageContext, StageMetrics, train_stage


@dataclass
class Run:
    """A run in progress: what its stages share."""

    folder: Path
    ready: PreparedRun
    log: RunLog
    stop: StopSignal
    result: dict  # what result.json will hold, filled as it becomes known
    answers: dict[str, dict[str, list[AnsweredRow]]] = field(default_factory=dict)  # by state and role

    @property
    def store(self) -> Path:
        """The stage store beside the run's folder."""
        return store_folder(self.folder)


def run_chain(recipe: Recipe | PreparedRun, callbacks: Iterable[Callable[[dict], None]] = (),
              timed: bool = True) -> Path:
    """Train the recipe's chain and return the run's folder, with `result.json` in it.

    Stages that the store beside the folder already holds are not trained again, and one that was stopped goes
    on from its last checkpoint. The first SIGINT or SIGTERM stops after a step, with a checkpoint; the second
    at once. Each callback gets every event after it was appended to `events.jsonl`. `timed` False spares the
    forecast's trial, unless `forecast_recipe` did one for this very PreparedRun.

    Raises BadInput before any work, RunFailed in the middle of it, Stopped where it was stopped.
    """
    join_processes()
    ready = recipe if isinstance(recipe, PreparedRun) else prepare_recipe(recipe)
    if is_follower():
        return _follow_main_process(ready)
    folder = new_run_folder(ready.recipe.mode, ready.recipe.method, ready.recipe.output_dir)
    description = describe_run(folder, ready)
    check_disk_space(folder, ready)
    claim_folder(folder)
    try:
        with StopSignal(folder) as stop:
            result = {"schema": SCHEMA, "complete": False, "state": "running",
                      "recipe": recipe_to_dict(ready.recipe), "start": {}, "stages": [],
                      "forecast": {"steps": ready.plan}, "versions": library_versions(),
                      "scorers": ready.probes.scorers}
            run = Run(folder, ready, RunLog(folder, list(callbacks)), stop, result)
            (folder / "result.json").unlink(missing_ok=True)
            write_json(folder / "recipe.json", description)
            _run_to_the_end(run, timed)
    finally:
        release_folder(folder)
    return folder


def _run_to_the_end(run: Run, timed: bool) -> None:
    """Train all stages and write the result, or record in the folder why it ended early."""
    try:
        run.result["forecast"] = forecast_recipe(run.ready, timed)
        _train_stages(run)
        broadcast({"folder": run.folder})
        write_json(run.folder / "result.json", run.result | {"complete": True, "state": "done"})
    except BaseException as error:
        reported = record_early_end(run.folder, run.result, run.log, error)
        if reported is error:
            raise
        raise reported from error
    run.log.settle()
    run.log({"stage": run.log.last["stage"], "step": run.log.last["step"], "state": "done"})


def _train_stages(run: Run) -> None:
    """All stages and the scores between them; what is known goes into the result as it becomes known."""
    ready, result = run.ready, run.result
    run.log({"stage": "start", "step": 0, "plan": ready.plan, "forecast": result["forecast"],
             "warnings": list(ready.warnings)})
    began = time.monotonic()
    update_owner_record(run.folder, state="running")
    state = ready.start_state(run.store)
    result["start"] = {"name": ready.mode.start, "model": ready.start, **_score_state(run, state, "start", 0)}
    _score_prompt_alone(run, state)
    for stage in ready.stages:
        run.stop.check()
        entry = _run_stage(run, stage, state)
        state = state.after(stage.key, stage.settings.method)
        result["stages"].append(entry)
        # by the plan: for whoever reads events a stage that ended early is done
        entry |= _score_state(run, state, stage.name, ready.plan[stage.name])
    if "prompt_alone" in result:
        result["prompt_alone"] |= {"change_intervals": interval_figures(
            run.answers[stage.name], run.answers[PROMPT_ALONE])["change_intervals"]}
    # a new dict: the event of the forecast stays as it was logged
    result["forecast"] = result["forecast"] | {"took": {
        "seconds": round(time.monotonic() - began, 2),
        "peak_memory_bytes": max(entry["peak_memory_bytes"] for entry in result["stages"])}}


def _run_stage(run: Run, stage: Stage, parent: ModelState) -> dict:
    """Take the stage from the store, or train it and put it there; returns its entry for the result."""
    with _wait_for_lock(run, stage):
        reused = find_stage(run.store, stage.key) is not None
        if not reused:
            with stage_checkpoints(run.store, stage.key, run.folder, run.ready.recipe.save_steps,
                                   run.stop) as checkpoints:
                build_stage(run.store, stage.key, lambda folder: _train_into(
                    folder, run, stage, parent, checkpoints))
    stored = json.loads((run.store / stage.key / "stage.json").read_text(encoding="utf-8"))
    if reused:  # a run that reuses a stage shows its complete curve
        for event in stored["events"]:
            run.log({**event, "stage": stage.name, "reused": True, "time": round(time.time(), 3)})
    return {"name": stage.name, "kind": stage.kind, "method": stage.settings.method, "key": stage.key,
            "reused": reused} | stored["figures"]


def _wait_for_lock(run: Run, stage: Stage) -> FileLock:
    """The stage's lock, once it is ours; while another run trains the stage, this one waits and logs it."""
    lock = lock_stage(run.store, stage.key)
    while True:
        try:
            return lock.acquire(timeout=0.2)
        except Timeout:
            if "waiting" not in run.log.last:
                run.log.settle()
                run.log({"stage": stage.name, "step": 0, "waiting": True})
            run.stop.check()


def _train_into(folder: Path, run: Run, stage: Stage, parent: ModelState, checkpoints: Checkpoints) -> None:
    """Train the stage, from its last checkpoint if it has one, and write all that it leaves into `folder`."""
    ready, method = run.ready, stage.settings.method

    def record(event: dict) -> None:
        run.log(event)
        checkpoints.events.append(run.log.last)

    _resume_checkpoint(checkpoints, stage, record)
    run.log.settle()
    broadcast({"stage": stage, "parent": parent, "checkpoints": {
        "folder": checkpoints.folder, "latest": checkpoints.latest, "progress": checkpoints.progress}})
    model, metrics = _train_together(ready, stage, parent, checkpoints, record,
                                     tracker=ready.recipe.report_to, run_folder=run.folder)
    figures = {name: value for name, value in vars(metrics).items() if value is not None}
    losses, trained = score_trained(model, ready.tokenizer, ready.live_probes), trainable_parameters(model)
    if method == "qlora":  # how much each probe's loss rose by it, in nats per token
        whole = probe_losses(parent.load(), ready.tokenizer, ready.live_probes)
        figures["quantisation_loss"] = {role: round(metrics.start_loss[role] - loss, 5)
                                        for role, loss in whole.items()}
    model = save_stage_model(model, method, folder)
    ready.tokenizer.save_pretrained(folder / ("adapter" if method == "ptuning_v2" else "model"))
    base = model.get_base_model() if method == "ptuning_v2" else model
    figures |= {"parameters": base.num_parameters(), "trainable_parameters": sum(trained.values()),
                "data": ready.datasets[stage.name][1]}
    del model, base
    release_memory()
    figures |= _check_hand_over(ready, stage, parent.after(folder.name, method), losses)
    figures["peak_memory_bytes"] = max(metrics.peak_memory_bytes, read_peak_memory())
    write_json(folder / "stage.json", {"figures": figures, "events": checkpoints.events})


def _check_hand_over(ready: PreparedRun, stage: Stage, written: ModelState, losses: dict[str, float]) -> dict:
    """The figure of a written stage, loaded with its tokenizer; RunFailed where it is not the trained one."""
    tokenizer = set_rendering(written.load_tokenizer(), ready.recipe.template_date,
                              ready.recipe.train_thoughts)
    probes = ready.encode_live_probes(tokenizer)
    if probes != ready.live_probes:
        raise RunFailed(f"stage {stage.name} wrote a tokenizer that reads the probes otherwise than the "
                        "start model's; take another model, or write its tokenizer anew", "hand-over")
    return {"hand_over_difference": check_stored(written, stage, losses, probes)}


def _train_together(ready: PreparedRun, stage: Stage, parent: ModelState, checkpoints: Checkpoints,
                    emit: Callable[[dict], None], **tracking) -> tuple[object, StageMetrics]:
    """The part of a stage that every process takes part in: the trained model and what was measured."""
    settings = stage.settings

    def load_trainable():
        set_seed(settings.seed)
        model = parent.load(settings, on_cpu=is_sharded())
        return METHOD_FUNCTIONS[settings.method](model, ready.tokenizer, settings, prefix_text(ready, stage))

    context = StageContext(stage.name, settings, ready.tokenizer, ready.datasets[stage.name][0], emit,
                           ready.live_probes, ready.recipe.eval_steps, checkpoints,
                           best=_best_point(ready, checkpoints), **tracking)
    model, checkpoints.stop.training = load_trainable(), True
    metrics = train_stage(model, context)
    checkpoints.stop.training = False
    if metrics.gathered is not None and not is_follower():  # no process has the complete sharded model
        model = load_trainable()
        model.load_state_dict(metrics.gathered, strict=False)
    metrics.gathered = None
    return model, metrics


def _best_point(ready: PreparedRun, checkpoints: Checkpoints) -> BestPoint | None:
    """Which point of a stage is kept, as far as its last checkpoint knows; None: the last."""
    if (role := ready.recipe.keep_best) is None:
        return None
    if role not in ready.live_probes:
        raise RunFailed(f"keep_best {role}: no row of its probe fits max_length {ready.recipe.max_length}; "
                        "take a larger one, or another role")
    return BestPoint(role, ready.recipe.early_stopping_patience, checkpoints.folder,
                     **checkpoints.progress.get("best", {}))


def _follow_main_process(ready: PreparedRun) -> Path:
    """Train what rank 0 trains, and return the run's folder once it is done; writes nothing of its own."""
    while "stage" in (order := broadcast()):
        stop = StopSignal(order["checkpoints"]["folder"])  # read, but what rank 0 broadcasts counts
        checkpoints = Checkpoints(save_steps=None, stop=stop, events=[], **order["checkpoints"])
        _train_together(ready, order["stage"], order["parent"], checkpoints, lambda event: None)
        release_memory()
    return order["folder"]


def _resume_checkpoint(checkpoints: Checkpoints, stage: Stage, record: Callable[[dict], None]) -> None:
    """Take the stage's last sound checkpoint, log again what led up to it, and what was passed over."""
    torn = checkpoints.resolve()
    for event in checkpoints.progress.get("events", []):
        record(event)
    if torn or checkpoints.latest:
        event = {"stage": stage.name, "step": checkpoints.progress.get("step", 0)}
        if checkpoints.latest:
            event["resumed"] = f"goes on from {checkpoints.latest.name}"
        if torn:
            event["passed_over"] = f"{', '.join(torn)}: not whole, written when the run was cut off"
        record(event)


def prefix_text(ready: PreparedRun, stage: Stage) -> str:
    """A few rows of the stage's data as the model sees them, from which a prefix may start."""
    rows = [row for role in stage.shares for row in ready.roles[role].train.take(8)]
    return "".join(part for row in rows for text in training_pieces(ready.tokenizer, row) for part, _ in text)


def _score_prompt_alone(run: Run, start: ModelState) -> None:
    """What the start model does with training rows in its prompt, as an entry of the result."""
    if run.ready.prompted is None:
        return
    probes, examples = run.ready.prompted
    if probes.unanswered(start):
        run.log.settle()
    plain = run.answers["start"]  # whose prompts are those without examples
    answers = {role: [replace(row, prompt=own.prompt) for row, own in zip(rows, plain[role], strict=True)]
               for role, rows in probes.answer(start).items()}
    run.answers[PROMPT_ALONE] = answers
    run.result["prompt_alone"] = {"examples": examples, "probes": sum_scores(answers),
                                  **interval_figures(answers)}


def _score_state(run: Run, state: ModelState, stage: str, step: int) -> dict:
    """The scores of a state, from the store or computed now: logged, and its answers in the run's folder."""
    probes = run.ready.probes
    if probes.unanswered(state):
        run.log.settle()
    run.answers[stage] = probes.answer(state)
    write_answers(run.folder, run.answers)
    scores = sum_scores(run.answers[stage])
    run.log({"stage": stage, "step": step, **{f"eval_{role}_{name}": value for role, figures in scores.items()
                                              for name, value in figures.items()}})
    before = run.answers["start"] if stage != "start" else None
    return {"probes": scores, **interval_figures(run.answers[stage], before)}
