"""Standard benchmarks through lm-eval, for a run's start and its last stage: the extra `eval`.

Tasks are lm-eval's names, whose data come from the hub or its cache, or YAML files of one's own.
"""

import logging
import re
from pathlib import Path

from ..errors import BadInput, RunFailed
from ..models.checkpoint import CheckpointRef
from ..models.loading import release_memory, silence_libraries
from ..runs.folder import SCHEMA, read_json, read_result, write_json

IGNORED_METRICS = ("alias", "sample_len", "name", "sample_count")


def run_benchmarks(run: Path | str, tasks: list[str], stages: list[str] | None = None,
                 limit: int | None = None) -> dict:
    """Scores of checkpoints as `{stage: {task: {metric: value}}}`, added to the run's `standard.json`.

    `stages` are `start` and stages' names (None: start and the last); `limit` takes the first rows of each
    task only. Raises BadInput where lm-eval is not installed, or a task or stage is not known.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise BadInput(f"lm-eval is not installed; {INSTALL_EXTRAS}") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    silence_libraries()
    entries = read_result(run)["stages"]
    places = {name: CheckpointRef.parse(f"{run}:{name}") for name in stages or ["start", entries[-1]["name"]]}
    names = [_name_of(task) for task in tasks]
    manager = TaskManager(include_path=[str(Path(task).parent) for task in tasks if _is_file(task)] or None)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise BadInput(f"lm-eval knows no task {', '.join(unknown)}; `lm-eval ls tasks` lists all, "
                       "and a task file of yours ends in .yaml")
    scores = {name: _scores(manager, place, names, limit) for name, place in places.items()}
    path = Path(run) / "standard.json"
    before = read_json(run, "standard.json")["scores"] if path.exists() else {}
    for name, found in scores.items():
        before.setdefault(name, {}).update(
            {task: {"limit": limit, **values} for task, values in found.items()})
    write_json(path, {"schema": SCHEMA, "scores": before})
    return scores


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _name_of(task: str) -> str:
    """A task's name, for a YAML file the one in it."""
    if not _is_file(task):
        return task
    if not Path(task).is_file():
        raise BadInput(f"{task}: no such task file")
    named = re.search(r"^task: *['\"]?([^'\"\s]+)", Path(task).read_text(encoding="utf-8"), re.M)
    if not named:
        raise BadInput(f"{task}: no line `task: NAME`; lm-eval's task guide shows what the file needs")
    return named[1]


def _scores(manager, place: CheckpointRef, tasks: list[str], limit: int | None) -> dict:
    """Each task's metrics for one checkpoint."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    model, tokenizer = place.load()
    try:
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
        found = lm_eval.simple_evaluate(wrapped, tasks=tasks, task_manager=manager, limit=limit,
                                        bootstrap_iters=0, log_samples=False)
    except (KeyError, ValueError) as error:
        raise BadInput(f"lm-eval cannot use these tasks: {error}") from error
    except (OSError, ConnectionError) as error:
        raise RunFailed(f"lm-eval could not read a task's data: {error}") from error
    finally:
        del model
        release_memory()
    return {task: {metric: value for metric, value in metrics.items()
                   if metric not in IGNORED_METRICS and isinstance(value, (int, float))}
            for task, metrics in found["results"].items()}


def format_scores(scores: dict) -> str:
    """The scores as a table: one line a task and metric, one column a checkpoint."""
    lines = []
    first = next(iter(scores.values()))
    for task, metrics in first.items():
        for metric in metrics:
            values = [stage[task][metric] for stage in scores.values()]
            lines.append((f"{task} {metric.removesuffix(',none')}", [f"{value:.3f}" for value in values]))
    width = max(len(name) for name, _ in lines)
    cells = [max(len(name), 8) for name in scores]
    head = "benchmark".ljust(width) + "".join(
        "  " + name.rjust(cell) for name, cell in zip(scores, cells, strict=True))
    return "\n".join([head, "-" * len(head), *(
        name.ljust(width) + "".join("  " + value.rjust(cell)
                                    for value, cell in zip(values, cells, strict=True))
        for name, values in lines)])

INSTALL_EXTRAS = (
    "where sftbench lies: pip install -c requirements.lock -e '.[eval,track]'"  # as README says it
)
