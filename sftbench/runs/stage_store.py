"""The stage store: a finished stage lies under its key, complete or not at all, and is trained once for all.

A stage is built in a temporary folder beside; the manifest (size and sha256 of every file) is written last,
everything is fsynced, and a rename makes it visible. A stage without a sound manifest does not exist.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from ..errors import RunFailed
from .folder import try_read_json, write_json

MANIFEST = "manifest.json"
PARTIAL, RUN_FILE = ".partial", "run"  # checkpoints of unfinished stages, and in each the run that wrote them


def hash_key(**parts) -> str:
    """A key of 20 hex digits for these JSON-able parts; equal parts give equal keys on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_folder(folder: Path) -> None:
    """Write the manifest of a folder: size and sha256 of every file, once all of them are safely on disk."""
    manifest = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        manifest[path.relative_to(folder).as_posix()] = [path.stat().st_size, file_sha256(path)]
    write_json(folder / MANIFEST, manifest)


def find_damage(folder: Path) -> Path | None:
    """The first file of a sealed folder that differs from its manifest, or the manifest itself; else None."""
    manifest = try_read_json(folder / MANIFEST)
    if not manifest:
        return folder / MANIFEST
    for name, (size, digest) in manifest.items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size or file_sha256(path) != digest:
            return path
    return None


def has_stage(store: Path, key: str) -> bool:
    """Whether the store has the finished stage; its files are not looked at."""
    return (Path(store) / key / MANIFEST).exists()


def find_stage(store: Path, key: str) -> Path | None:
    """The folder of a finished stage, or None; raises RunFailed if its files no longer match the manifest."""
    if not has_stage(store, key):
        return None
    folder = Path(store) / key
    if path := find_damage(folder):
        raise RunFailed(f"{path} is damaged (it differs from its manifest); remove {folder} and run again",
                        "damaged")
    return folder


def build_stage(store: Path, key: str, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary folder, seal it with a manifest, move it to its key; returns the folder.

    If `write` raises, nothing is left behind.
    """
    folder = Path(store) / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=store))
    try:
        write(temporary)
        seal_folder(temporary)
        os.chmod(temporary, 0o755)
        if folder.exists():  # an unfinished folder of this key: it has no manifest, so nobody relies on it
            shutil.rmtree(folder)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def lock_stage(store: Path, key: str) -> FileLock:
    """A lock for one key among processes; the system frees it when its owner dies."""
    Path(store).mkdir(parents=True, exist_ok=True)
    return FileLock(Path(store) / f".{key}.lock")


def unused_stages(store: Path) -> list[Path]:
    """Stages and checkpoints that no run beside the store refers to, and leftovers of killed runs.

    Removes nothing. Checkpoints count as used while the run that wrote them is there and not complete.
    """
    store = Path(store)
    used = {"probes", PARTIAL}
    for path in store.parent.glob("*/result.json"):
        used |= {stage["key"] for stage in try_read_json(path).get("stages", [])}
    abandoned = [path for path in sorted((store / PARTIAL).glob("*")) if not _is_resumable(path)]
    return [path for path in sorted(store.glob("*")) if path.is_dir() and path.name not in used] + abandoned


def _is_resumable(partial: Path) -> bool:
    """Whether the run that wrote these checkpoints may still go on from them."""
    try:
        run = Path((partial / RUN_FILE).read_text(encoding="utf-8"))
    except OSError:
        return False
    return (run / "recipe.json").exists() and not try_read_json(run / "result.json").get("complete")
