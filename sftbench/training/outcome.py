"""What a run writes into its folder when it begins and when it ends early, and when a folder is refused."""

import errno
import shutil
import traceback
from contextlib import suppress
from pathlib import Path

import torch

from ..distributed import process_count
from ..errors import BadInput, RunFailed, Stopped
from ..models.loading import release_memory
from ..recipes.recipe import differing_fields, recipe_to_dict, stage_settings
from ..runs.events import EventRecorder
from ..runs.folder import SCHEMA, read_json, store_folder, write_json
from ..runs.stage_store import MANIFEST
from .memory import read_peak_memory
from .prepare import PreparedRun, library_versions

FREE_FIELDS = ("output_dir", "save_steps", "report_to")  # fields that decide nothing of what is learnt


def describe_run(folder: Path, ready: PreparedRun) -> dict:
    """What `recipe.json` is to hold; raises BadInput where the folder holds a run of anything else."""
    described = {
        "schema": SCHEMA, "recipe": recipe_to_dict(ready.recipe), "mode": ready.mode,
        "reasons": ready.reasons, "revision": ready.revision,
        "data": {name: {"source": role.source, "shapes": role.rows.about["shapes"], "rows": len(role.train),
                        "digest": role.digest, "probe_rows": len(role.probe), "dropped": role.dropped}
                 for name, role in ready.roles.items()},
        "versions": library_versions()}
    if not (folder / "recipe.json").exists():
        return described
    before = read_json(folder, "recipe.json")
    changed = differing_fields(before["recipe"], described["recipe"], ignore=FREE_FIELDS)
    if before.get("revision", ready.revision) != ready.revision:
        changed.append("the model's revision")
    changed += [f"the rows of {name}" for name, role in described["data"].items()
                if before["data"].get(name, {}).get("digest", role["digest"]) != role["digest"]]
    if changed:
        raise BadInput(f"{folder} holds a run of another recipe (they differ in {', '.join(changed)}); "
                       "take another output_dir, or remove that folder")
    return described | {"reasons": before.get("reasons", {}) | ready.reasons}


def check_disk_space(folder: Path, ready: PreparedRun, keys: list[str]) -> None:
    """Raise BadInput where the disk cannot even hold the stages to be trained and one checkpoint.

    `keys` are those of the stages; stages that are stored already cost nothing.
    """
    place = store_folder(folder)
    weights, needed = 4 * ready.known["parameters"], 0
    for stage, key in zip(ready.stages, keys, strict=True):
        method = stage_settings(ready.recipe, stage["kind"])["method"]
        if method != "ptuning_v2" and not (place / key / MANIFEST).exists():
            needed += weights
    if needed and {ready.recipe.method, ready.recipe.cpt_method} & {"full", "freeze"}:
        needed += 3 * weights  # the optimiser keeps two numbers for each one that it trains
    free = shutil.disk_usage(next(path for path in place.parents if path.exists())).free
    if needed > free:
        raise BadInput(f"{place.parent} has {free / 1e9:.1f} GB free, and this run needs {needed / 1e9:.1f} "
                       "GB for its stages and a checkpoint; free space, or take another output_dir")


def record_early_end(folder: Path, result: dict, emit: EventRecorder, error: BaseException) -> BaseException:
    """Leave word of the end in the folder, let go of what the run held, and return what is to be raised."""
    traceback.clear_frames(error.__traceback__)  # they hold model and optimiser
    release_memory()
    stage, step = emit.last["stage"], emit.last["step"]
    if not folder.exists():
        return RunFailed(f"{folder} is gone: it was removed while its run went on; finished stages are kept")
    if isinstance(error, KeyboardInterrupt):
        state, error = "stopped", error if isinstance(error, Stopped) else Stopped("stopped at once")
    else:
        state, error = "failed", _explain_error(error, stage, step)
    words = {"state": state, "message": str(error), "reason": getattr(error, "reason", "")}
    with suppress(OSError):  # the first error is the one to show
        write_json(folder / "result.json", {**result, **words})
    with suppress(OSError):
        emit.settle()
        emit({"stage": stage, "step": step, **words})
    return error


def _explain_error(error: BaseException, stage: str, step: int) -> BaseException:
    """A full disk or memory as a RunFailed with the remedy; any other error as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFailed(f"the disk is full, in stage {stage} at step {step}; free space and run again, "
                         f"finished stages and earlier checkpoints are kept: {error}", "disk")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            isinstance(error, RuntimeError) and "allocate memory" in str(error)):
        return RunFailed(f"out of memory in stage {stage} at step {step} ({read_peak_memory() / 1e9:.1f} GB "
                         "held at the most); take a smaller batch with more accumulation, a shorter "
                         "max_length, or lora or qlora", "memory")
    if process_count() > 1 and isinstance(error, RuntimeError) and "onnection" in str(error):
        return RunFailed(f"another process of this run died, in stage {stage} at step {step}; what torchrun "
                         "says tells which. Finished stages and earlier checkpoints are kept")
    return error
