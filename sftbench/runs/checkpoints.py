"""Checkpoints inside a stage: written by the trainer, sealed by a manifest; only sound ones count.

They lie beside the stage store under the stage's key, so any run that wants the stage goes on from them, and
go once the stage is finished. transformers (5.23) writes its checkpoints in place and takes the one with the
highest number unchecked; hence a manifest and a resolver of our own.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .folder import write_json, write_text
from .stage_store import PARTIAL, RUN_FILE, find_damage, seal_folder

KEPT_CHECKPOINTS = 2  # the last one may prove torn
SAVE_SECONDS = 600  # between two checkpoints where the recipe does not say how many steps
PROGRESS = "progress.json"  # the stage so far, beside the trainer's files


@dataclass
class Checkpoints:
    """A stage's checkpoints while it trains: when the next is due, and what the last sound one holds.

    `events` is the list to which the stage's events are added; it is saved with each checkpoint.
    """

    folder: Path
    save_steps: int | None
    stop: Callable[[], bool]
    events: list[dict]
    latest: Path | None = None
    progress: dict = field(default_factory=dict)
    saved_at: float = field(default_factory=time.monotonic)

    def resolve(self) -> list[str]:
        """Take the last sound checkpoint as `latest`, remove those that are not, and return their names."""
        torn = []
        for path in reversed(_numbered(self.folder)):
            if find_damage(path) is None:
                self.latest = path
                self.progress = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
                break
            torn.append(path.name)
            shutil.rmtree(path)
        return torn

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after this step."""
        if self.save_steps:
            return step % self.save_steps == 0
        return time.monotonic() - self.saved_at > SAVE_SECONDS

    def seal(self, step: int, progress: dict) -> None:
        """Make the checkpoint that the trainer wrote a sound one, and remove those before the last two."""
        path = self.folder / f"checkpoint-{step}"
        write_json(path / PROGRESS, progress | {"step": step, "events": self.events})
        seal_folder(path)
        for old in _numbered(self.folder)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
        self.saved_at = time.monotonic()


@contextlib.contextmanager
def stage_checkpoints(store: Path, key: str, run: Path, save_steps: int | None, stop: Callable[[], bool]):
    """The checkpoints of the stage with this key while the block trains it; they stay if it is left early.

    A file beside them names the folder of the run, so that `unused_stages` knows whether they are waited for.
    """
    folder = Path(store) / PARTIAL / key
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RUN_FILE, str(Path(run).resolve()))
    try:
        yield Checkpoints(folder, save_steps, stop, [])
    except BaseException:
        if not _numbered(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest step first."""
    paths = [path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(paths, key=lambda path: int(path.name[11:]))
