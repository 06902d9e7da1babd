"""Names to paths: what a source of data or a model's name refers to. Reads no data and loads no library."""

import json
import math
import os
import re
from pathlib import Path

from ..errors import BadInput
from ..pocket import FOLDERS

# the shapes of rows, each with the fields by which it is recognised, in this order
SHAPES = {
    "messages": ("messages",),
    "sharegpt": ("conversations", "conversation"),
    "alpaca": ("instruction",),
    "prompt": ("prompt", "completion"),
    "qa": ("question", "answer", "query"),
    "text": ("text",),
}
TEXT_SUFFIXES = (".txt", ".md", ".markdown")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *TEXT_SUFFIXES)
OUTSIDE_QUOTES = r'(?=(?:[^"]*"[^"]*")*[^"]*$)'
PART = re.compile(rf"(?:({'|'.join(SHAPES)})=)?(.*?)(?::(\d+(?:\.\d+)?))?", re.DOTALL)
HUB_DATASET = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?(?:#[\w./-]+)?")
HUB_MODEL = re.compile(r"\w[\w.-]*/[\w.-]+")
HUB_URL = re.compile(r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)"
                     r"(?!spaces/)(?:(?:datasets|models)/)?+([\w.-]+(?:/[\w.-]+)?)", re.IGNORECASE)


def expand_path(text: str) -> Path:
    """The path with the home folder in place of `~`; `Path.expanduser` raises for a user who is not there."""
    return Path(os.path.expanduser(text))


def parse_source(source: str, role: str) -> list[tuple[str | None, str, float]]:
    """What a source names, each as shape, path, weight: `[SHAPE=]PATH[:WEIGHT]`, several with commas between.

    A path that exists is taken literally, so it may have any character; in a list, one with a comma is in
    double quotes. Raises BadInput, with the role, for a weight of 0 and for an empty name.
    """
    if source and expand_path(source).exists():
        return [(None, source, 1.0)]
    parts = []
    for token in map(str.strip, re.split("," + OUTSIDE_QUOTES, source)):
        shape, path, weight = PART.fullmatch(token).groups()
        if (unquoted := token.strip('"')).strip() and expand_path(unquoted).exists():
            shape, path, weight = None, unquoted, None
        path = path.strip('"')
        if not path.strip():  # as a path it would be the current folder
            raise BadInput(f"{role}: {source!r} has an empty name; remove the comma that is too many, or "
                           "name a file ('.' is the current folder)", field=role, where=source)
        if weight is not None and float(weight) == 0:
            raise BadInput(f"{role}: {token}: the weight must be above 0", field=role, where=token)
        parts.append((shape, path, float(weight or 1)))
    return parts


def locate_source(path: str, role: str) -> Path | None:
    """The file or folder of a source's path, without a saved data set's #SPLIT; None for a hub name.

    Raises BadInput, with the role, for what is neither.
    """
    bare, _, split = path.partition("#")
    if expand_path(path).exists():
        return expand_path(path)
    if split and expand_path(bare).is_dir():
        return expand_path(bare)
    why = _hub_remedy(path)
    if not why and HUB_DATASET.fullmatch(path) and Path(bare).suffix.lower() not in SUFFIXES:
        return None
    why = why or f"no such file or folder in {Path.cwd()}, and no hub name of the form owner/name"
    raise BadInput(f"{role}: {path}: {why}", field=role, where=path)


def check_source(source: str, role: str) -> None:
    """Raise BadInput where a source names something that is not there; hub names are not looked up."""
    for _, path, _ in parse_source(source, role):
        locate_source(path, role)


def find_model_folder(name: str) -> Path | None:
    """The folder of a pocket's name or a local model; None for a hub name; raises BadInput for neither."""
    folder = FOLDERS.get(name) or expand_path(name)
    if folder.is_dir():
        return folder
    why = _hub_remedy(name)
    if not why and HUB_MODEL.fullmatch(name):
        return None
    why = why or ("no such folder, and no hub name of the form owner/name; "
                  f"embedded models are {', '.join(FOLDERS)}")
    raise BadInput(f"model {name!r}: {why}", field="model", where=name)


def _hub_remedy(text: str) -> str | None:
    """What to write in place of an address of the hub; None for anything else."""
    match = HUB_URL.match(text)
    return match and "this is an address of the hub; write it as " + (
        match[1] if "/" in match[1] else f"OWNER/{match[1]}, with the name of its owner")


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
