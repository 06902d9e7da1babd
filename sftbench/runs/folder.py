"""A run's folder: its events, its recipe, its result. Everything a person sees is read from these files.

`events.jsonl` is appended to while the run goes on, one whole line per event; `result.json` is written last,
in one move, and a run without `"complete": true` in it is not done.
"""

import itertools
import json
import os
import re
from datetime import datetime
from pathlib import Path

from ..errors import BadInput

SCHEMA = 1


def runs_root() -> Path:
    """The folder under which runs lie: `SFTBENCH_RUNS`, or `runs` in the current folder."""
    return Path(os.environ.get("SFTBENCH_RUNS", "runs"))


def find_run(run: str | Path) -> Path:
    """A run's folder by its path, or by its name alone where it lies under `runs_root()`.

    Raises BadInput for a file; whether a folder holds a run, whoever reads it finds.
    """
    named, path = runs_root() / run, Path(run)
    if path.is_file():
        raise BadInput(f"{path}: a file is there; give the folder of a run", where=str(path))
    return named if not path.exists() and (named / "recipe.json").exists() else path


def new_run_folder(mode: str, method: str, output_dir: str | None) -> Path:
    """The run's folder: `output_dir`, or a new one under `runs_root()` named by mode, method and time.

    Raises BadInput for an `output_dir` that is a file.
    """
    if output_dir is not None:
        if Path(output_dir).is_file():
            raise BadInput(f"{output_dir}: a file is there; name a folder", field="output_dir",
                           where=output_dir)
        return Path(output_dir)
    stem = f"mode_{Path(mode).stem}-{method}-{datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(folder for name in names if not (folder := runs_root() / name).exists())


def store_folder(folder: Path) -> Path:
    """The stage store that a run's folder uses: `.stages` beside it."""
    return Path(folder).resolve().parent / ".stages"


def mask_token(text: str) -> str:
    """Text without the environment's token of a model hub."""
    token = os.environ.get("HF_TOKEN", "")
    return text.replace(token, "hf_***") if len(token) > 8 else text


def mask_message(text: str) -> str:
    """A message without whatever looks like a token of a model hub.

    Only messages: a path may look like one as well, and a recipe must be stored as it was given.
    """
    return re.sub(r"hf_[A-Za-z0-9]{16,}", "hf_***", mask_token(text))


def write_text(path: Path, text: str) -> None:
    """Write a file in one move: a reader sees the old one or the new one complete, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    # half a character, as a path may hold, becomes the escape that JSON has for it
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(mask_token(text))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, data: dict) -> None:
    """Write JSON in one move, as `write_text`; NaN and infinity are refused."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))


def read_json(folder: Path, name: str) -> dict:
    """A run's `recipe.json` or `result.json`; raises BadInput if it is missing, torn or of another schema."""
    path = Path(folder) / name
    if not Path(folder).exists():
        raise BadInput(f"{folder}: there is no run of that name, neither as a folder nor under "
                       f"{runs_root()}/", where=str(folder))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{path}: not there; either {folder} is no run's folder, or its run has not finished "
                       f"and goes on with: sftbench resume {folder}", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not readable as JSON: {error}", where=str(path)) from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise BadInput(f"{path}: schema {schema!r} is not known here (known: {SCHEMA}); update sftbench",
                       where=str(path))
    return data


def try_read_json(path: Path) -> dict:
    """A file's JSON object; empty where the file is missing, torn or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def read_result(folder: Path) -> dict:
    """The result of a finished run; raises BadInput where the run is not done."""
    result = read_json(folder, "result.json")
    if result.get("complete") is not True:
        raise BadInput(f"{folder}: the run is not complete (state: {result.get('state')}); "
                       f"go on with it: sftbench resume {folder}", where=str(folder))
    return result
