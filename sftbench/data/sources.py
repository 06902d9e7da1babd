"""Names to places: what a source of data or a model's name refers to. Reads no data and loads no library."""

import json
import math
import os
import re
from pathlib import Path

from ..errors import BadInput
from ..pocket import FOLDERS
from .conversations import SHAPES

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *TEXT_SUFFIXES)
OUTSIDE_QUOTES = r'(?=(?:[^"]*"[^"]*")*[^"]*$)'
PART = re.compile(rf"(?:({'|'.join(SHAPES)})=)?(.+?)(?::(\d+(?:\.\d+)?))?")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?(?:#[\w./-]+)?")
HUB_URL = re.compile(r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)"
                     r"(?:(?:datasets|models)/)?([\w.-]+/[\w.-]+)")


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
        unquoted = token.strip('"')
        match = PART.fullmatch(token)
        shape, path, weight = match.groups() if match else (None, "", None)
        if unquoted.strip() and expand_path(unquoted).exists():
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
    if (whole := expand_path(path)).exists():
        return whole
    if split and expand_path(bare).is_dir():
        return expand_path(bare)
    if HUB_NAME.fullmatch(path) and not HUB_URL.match(path) and Path(bare).suffix.lower() not in SUFFIXES:
        return None
    why = _hub_remedy(path) or (f"no such file or folder in {Path.cwd()}, and no hub name "
                                "of the form owner/name")
    raise BadInput(f"{role}: {path}: {why}", field=role, where=path)


def check_source(source: str, role: str) -> None:
    """Raise BadInput where a source names something that is not there; hub names are not looked up."""
    for _, path, _ in parse_source(source, role):
        locate_source(path, role)


def find_model_folder(name: str) -> Path | None:
    """The folder of a pocket's name or a local model; None for a hub name; raises BadInput for neither."""
    if name in FOLDERS:
        return FOLDERS[name]
    path = expand_path(name)
    if path.is_dir():
        return path
    if remedy := _hub_remedy(name):
        raise BadInput(f"model {name!r}: {remedy}", field="model", where=name)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise BadInput(f"model {name!r}: no such folder, and no hub name of the form owner/name; "
                       f"embedded models are {', '.join(FOLDERS)}", field="model", where=name)
    return None


def _hub_remedy(text: str) -> str:
    """What to write in place of an address of the hub; empty for anything else."""
    match = HUB_URL.match(text)
    return f"this is an address of the hub; write it as {match[1]}" if match else ""


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
