"""How a run begins and ends in its folder: what it records, and when the folder is refused."""

import errno
import shutil
import tempfile
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from ..data.roles import Role
from ..distributed import process_count
from ..errors import BadInput, RunFailed, Stopped
from ..models.loading import release_memory
from ..recipes.recipe import FREE_FIELDS, differing_fields, recipe_to_dict
from ..runs.events import RunLog
from ..runs.folder import SCHEMA, mask_message, read_json, store_folder, write_json
from .memory import read_peak_memory
from .prepare import PreparedRun, library_versions


def describe_run(folder: Path, ready: PreparedRun) -> dict:
    """What `recipe.json` is to hold; raises BadInput where the folder holds a run of anything else."""
    described = {
        "schema": SCHEMA, "recipe": recipe_to_dict(ready.recipe), "mode": asdict(ready.mode),
        "reasons": ready.reasons, "revision": ready.revision,
        "data": {name: _describe_role(role) for name, role in ready.roles.items()},
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
                       "take another output_dir, or remove that folder", field="output_dir",
                       where=str(folder))
    return described | {"reasons": before.get("reasons", {}) | ready.reasons}


def _describe_role(role: Role) -> dict:
    """What `recipe.json` has of a role's data."""
    about = {name: role.rows.about[name] for name in ("shapes", "unused", "bad_reasons", "passed_over")}
    return {"source": role.source, **about, "notes": role.rows.notes, "rows": len(role.train),
            "digest": role.digest, "probe_rows": len(role.probe), "shared_groups": role.shared_groups,
            "dropped": role.dropped}


def check_disk_space(folder: Path, ready: PreparedRun) -> None:
    """Raise BadInput where the folder cannot be written, or the disk hold one checkpoint and the new stages.

    The first comes first: what cannot be written, such as a mounted image, often has no room either.
    """
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise BadInput(f"{folder} cannot be written ({error.strerror}); take another output_dir",
                       field="output_dir", where=str(folder)) from error
    store, weights = store_folder(folder), 4 * ready.facts.parameters
    needed = weights * sum(stage.settings.method != "ptuning_v2" for stage in ready.untrained_stages(store))
    if needed and {ready.recipe.method, ready.recipe.cpt_method} & {"full", "freeze"}:
        needed += 3 * weights  # a checkpoint has the weights, and AdamW's two numbers for each
    needed += 2 * weights * bool(needed and ready.recipe.keep_best)  # the best point, and a better one
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise BadInput(f"{store.parent} has {free / 1e9:.1f} GB free, and this run needs {needed / 1e9:.1f} "
                       "GB for its stages and a checkpoint; free space, or take another output_dir",
                       field="output_dir", where=str(store.parent))


def record_early_end(folder: Path, result: dict, log: RunLog, error: BaseException) -> BaseException:
    """Record the end in the folder, release what the run used, and return what is to be raised."""
    traceback.clear_frames(error.__traceback__)  # they hold model and optimiser
    release_memory()
    stage, step = log.last["stage"], log.last["step"]
    if not folder.exists():
        return RunFailed(f"{folder} is gone: it was removed while its run went on; finished stages remain")
    if isinstance(error, KeyboardInterrupt):
        state, error = "stopped", error if isinstance(error, Stopped) else Stopped("stopped at once")
    else:
        state, error = "failed", _explain_error(error, stage, step)
    end = {"state": state, "message": mask_message(str(error)), "reason": getattr(error, "reason", "")}
    with suppress(OSError):  # the first error is the one to show
        write_json(folder / "result.json", {**result, **end})
    with suppress(OSError):
        log.settle()
        log({"stage": stage, "step": step, **end})
    return error


def _explain_error(error: BaseException, stage: str, step: int) -> BaseException:
    """A full disk or memory as a RunFailed with the remedy; any other error unchanged."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFailed(f"the disk is full, in stage {stage} at step {step}; free space and run again, "
                         f"finished stages and earlier checkpoints remain: {error}", "disk")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            isinstance(error, RuntimeError) and "allocate memory" in str(error)):
        return RunFailed(f"out of memory in stage {stage} at step {step} ({read_peak_memory() / 1e9:.1f} GB "
                         "at the peak); take a smaller batch with more accumulation, a shorter "
                         "max_length, or lora or qlora", "memory")
    if process_count() > 1 and isinstance(error, RuntimeError) and "onnection" in str(error):
        return RunFailed(f"another process of this run died, in stage {stage} at step {step}; what torchrun "
                         "says tells which. Finished stages and earlier checkpoints remain")
    return error
