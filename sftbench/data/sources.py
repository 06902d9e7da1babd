"""What a source of data or a model's name says by itself: files, folders, hub names, shapes and weights."""

import json
import math
import re
from pathlib import Path

from ..errors import BadInput
from ..pocket import FOLDERS
from .conversations import SHAPES

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *TEXT_SUFFIXES)
PART = re.compile(rf"(?:({'|'.join(SHAPES)})=)?(.+?)(?::(\d+(?:\.\d+)?))?")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?(?:#[\w./-]+)?")


def parse_source(source: str, role: str) -> list[tuple[str | None, str, float]]:
    """What a source names, each as shape, path, weight: `[SHAPE=]PATH[:WEIGHT]`, several with commas between.

    A path that exists is taken as it is, so it may hold any character; in a list, one with a comma stands in
    double quotes. Raises BadInput, with the role, for a weight of 0.
    """
    if Path(source).expanduser().exists():
        return [(None, source, 1.0)]
    found = []
    for token in re.findall(r'(?:[^,"]|"[^"]*")+', source):
        token = token.strip()
        whole = token.strip('"')
        exists = Path(whole).expanduser().exists()
        shape, path, weight = (None, whole, None) if exists else PART.fullmatch(token).groups()
        if weight is not None and float(weight) == 0:
            raise BadInput(f"{role}: {token}: the weight must be above 0")
        found.append((shape, path.strip('"'), float(weight or 1)))
    return found


def locate_source(path: str, role: str) -> Path | None:
    """The file or folder of a source's path, without a saved data set's #SPLIT; None for a hub name.

    Raises BadInput, with the role, for what is neither.
    """
    bare, _, split = path.partition("#")
    if (whole := Path(path).expanduser()).exists():
        return whole
    if split and Path(bare).is_dir():
        return Path(bare)
    if HUB_NAME.fullmatch(path) and Path(bare).suffix.lower() not in SUFFIXES:
        return None
    raise BadInput(f"{role}: {path}: no such file or folder in {Path.cwd()}, and no hub name "
                   "of the form owner/name")


def check_source(source: str, role: str) -> None:
    """Raise BadInput where a source names something that is not there; hub names are not asked for."""
    for _, path, _ in parse_source(source, role):
        locate_source(path, role)


def read_card_rate(model: str) -> float | None:
    """The peak pre-training rate that a local model's config.json states, if any; see `card_rate`."""
    folder = find_model_folder(model)
    try:
        return card_rate(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("sftbench"))
    except (AttributeError, OSError, TypeError, ValueError):  # a hub name, no such file, nothing of the kind
        return None


def card_rate(card) -> float | None:
    """The peak pre-training rate under the key `sftbench` of a model's configuration; None for nonsense.

    Nothing else is read from there: a stranger's file must not take the place of what is measured.
    """
    rate = card.get("pretraining_learning_rate") if isinstance(card, dict) else None
    return rate if isinstance(rate, float) and math.isfinite(rate) and rate > 0 else None


def find_model_folder(name: str) -> Path | None:
    """The folder of a pocket's name or a local model; None for a hub name; raises BadInput for neither."""
    if name in FOLDERS:
        return FOLDERS[name]
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise BadInput(f"model {name!r}: no such folder, and no hub name of the form owner/name; "
                       f"embedded models are {', '.join(FOLDERS)}")
    return None
