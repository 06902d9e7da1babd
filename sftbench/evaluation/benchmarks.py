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
from ..sources.origins import offline_without_network

INSTALL_EXTRAS = "where sftbench lies: pip install -c requirements.lock -e '.[eval,track]'"
IGNORED_METRICS = ("alias", "sample_len", "name", "sample_count")


def run_benchmarks(run: Path | str, tasks: list[str], stages: list[str] | None = None,
                   limit: int | None = None) -> dict:
    """Scores of checkpoints as `{stage: {task: {metric: value}}}`, added to the run's `standard.json`.

    `stages` are `start` and stages' names (None: start and the last); `limit` takes the first rows of each
    task only. Raises BadInput where lm-eval is not installed, or a task or stage is not known.
    """
    try:
        from lm_eval.config.evaluate_config import EvaluatorConfig
    except ImportError:
        raise BadInput(f"lm-eval is not installed; {INSTALL_EXTRAS}", field="tasks") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    silence_libraries()
    names = stages or ["start", read_result(run)["stages"][-1]["name"]]
    checkpoints = {name: CheckpointRef.parse(f"{run}:{name}") for name in names}
    config = EvaluatorConfig(tasks=tasks)
    try:
        manager = config.process_tasks()
    except ValueError as error:
        raise BadInput(f"lm-eval: {error}; `lm-eval ls tasks` lists its tasks, a file with a task of your "
                       "own ends in .yaml", field="tasks") from error
    with offline_without_network():
        scores = {name: _scores(manager, checkpoint, config.tasks, limit)
                  for name, checkpoint in checkpoints.items()}
    path = Path(run) / "standard.json"
    stored = read_json(run, "standard.json")["scores"] if path.exists() else {}
    for name, results in scores.items():
        stored.setdefault(name, {}).update(
            {task: {"limit": limit, **metrics} for task, metrics in results.items()})
    write_json(path, {"schema": SCHEMA, "scores": stored})
    return scores


def _fetch_command(error: str) -> str:
    """The command that fetches the data of which this error tells; empty where it names no hub's data."""
    name = re.search(r"'([\w.-]+/[\w.-]+)'", error)
    return name and ("; where there is a network, this fetches them into the cache: "
                     f"python -c \"import datasets; datasets.load_dataset('{name[1]}')\"") or ""


def _scores(manager, checkpoint: CheckpointRef, tasks: list, limit: int | None) -> dict:
    """Each task's metrics for one checkpoint."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    model, tokenizer = checkpoint.load()
    try:
        evaluated = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
            tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False)
    except (KeyError, ValueError) as error:
        raise BadInput(f"lm-eval cannot use these tasks: {error}", field="tasks") from error
    except (OSError, ConnectionError) as error:
        raise RunFailed(f"lm-eval could not read a task's data: {error}"
                        f"{_fetch_command(str(error))}") from error
    finally:
        del model
        release_memory()
    return {task: {metric: value for metric, value in metrics.items()
                   if metric not in IGNORED_METRICS and isinstance(value, (int, float))}
            for task, metrics in evaluated["results"].items()}
