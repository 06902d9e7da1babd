"""Names to paths: what a source of data or a model's name refers to. Reads no data and loads no library."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from ..errors import BadInput
from ..named.models import NAMED, made_folder
from ..pocket import FOLDERS
from ..recipes.recipe import suggest_name

# the shapes of rows, each with the fields by which it is recognised, in this order
SHAPES = {
    "messages": ("messages",),
    "sharegpt": ("conversations", "conversation"),
    "alpaca": ("instruction",),
    "prompt": ("prompt", "completion"),
    "qa": ("question", "answer", "query"),
    "text": ("text",),
}
# as what a column may be read: by these a shape is recognised, or they say more of a row
FIELDS = (*(field for fields in SHAPES.values() for field in fields), "query", "response", "input", "output",
          "context", "passage", "document", "options", "system", "system_prompt", "history", "tools",
          "reasoning", "type", "scorer", "group", "label", "weight")
TEXT_SUFFIXES = (".txt", ".md", ".markdown")
DOCUMENT_SUFFIXES = (".pdf", ".docx", ".html", ".htm")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *TEXT_SUFFIXES, *DOCUMENT_SUFFIXES)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
ARCHIVE = ".zip"
# a comma that separates, or what it does not separate: text in double quotes and in brackets
COMMA = re.compile(r'("[^"]*"|\[(?:"[^"]*"|[^\]"])*\])|,')
PART = re.compile(rf'(?:({"|".join(SHAPES)})=)?(.*?)(?:\[((?:"[^"]*"|[^\]\["])*)\])?(?::(\d+(?:\.\d+)?))?',
                  re.DOTALL)
SELF_REPLAY = "self-replay"  # as general_tasks: what the start model itself answers (see `self_replay`)
HUB_DATASET = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?(?:#[\w./-]+)?")
HUB_MODEL = re.compile(r"\w[\w.-]*/[\w.-]+")
HUB_URL = re.compile(r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)"
                     r"(?!spaces/)(?:(?:datasets|models)/)?+([\w.-]+(?:/[\w.-]+)?)", re.IGNORECASE)


def expand_path(text: str) -> Path:
    """The path with the home folder in place of `~`; `Path.expanduser` raises for a user who is not there."""
    return Path(os.path.expanduser(text))


class SourcePart(NamedTuple):
    """One name of a source; `columns` is the column of the file by the field as which it is read."""

    shape: str | None
    path: str
    weight: float = 1.0
    columns: dict[str, str] = {}


def parse_source(source: str, role: str) -> list[SourcePart]:
    """What a source names: `[SHAPE=]PATH[COLUMNS][:WEIGHT]`, several with commas between.

    COLUMNS are columns by the field as which they are read, in brackets: `[question=Frage,answer=Antwort]`.
    A path that exists is taken literally, so it may have any character; in a list, one with a comma is in
    double quotes. Raises BadInput, with the role, for a weight of 0, an empty name and an unknown field.
    """
    if source and expand_path(source).exists():
        return [SourcePart(None, source)]
    parts = []
    for token in _split_list(source):
        shape, path, columns, weight = PART.fullmatch(token).groups()
        if (unquoted := token.strip('"')).strip() and expand_path(unquoted).exists():
            shape, path, columns, weight = None, unquoted, None, None
        path = path.strip().strip('"')
        if not path.strip():  # as a path it would be the current folder
            raise BadInput(f"{role}: {source!r} has an empty name; remove the comma that is too many, or "
                           "name a file ('.' is the current folder)", field=role, where=source)
        if path.count("[") != path.count("]") and not expand_path(path).exists():
            raise BadInput(f"{role}: {token}: a bracket is not closed; columns are written as "
                           "FILE[question=COLUMN,answer=COLUMN]", field=role, where=token)
        if weight is not None and float(weight) == 0:
            raise BadInput(f"{role}: {token}: the weight must be above 0", field=role, where=token)
        parts.append(SourcePart(shape, path, float(weight or 1),
                                {} if columns is None else _parse_columns(columns, role, token)))
    return parts


def _split_list(text: str) -> list[str]:
    """The text cut at commas that are neither in double quotes nor in brackets."""
    commas = [match.start() for match in COMMA.finditer(text) if not match[1]]
    return [text[start:end].strip() for start, end in zip([0, *(comma + 1 for comma in commas)],
                                                          [*commas, len(text)], strict=True)]


def _parse_columns(text: str, role: str, token: str) -> dict[str, str]:
    columns = {}
    for pair in _split_list(text):
        field, _, column = (half.strip().strip('"') for half in pair.partition("="))
        if not field or not column:
            raise BadInput(f"{role}: {token}: columns are written as [question=COLUMN,answer=COLUMN], not "
                           f"[{text}]", field=role, where=token)
        if field not in FIELDS:
            raise BadInput(f"{role}: {token}: no field {field!r}{suggest_name(field, FIELDS)}; a column can "
                           f"be read as {', '.join(FIELDS)}", field=role, where=token)
        if field in columns:
            raise BadInput(f"{role}: {token}: {field} is given twice; keep one", field=role, where=token)
        columns[field] = column
    return columns


def write_source(part: SourcePart) -> str:
    """A part as a source names it."""
    def quote(text: str) -> str:
        return f'"{text}"' if set(text) & set(",[]=:") else text

    columns = ",".join(f"{field}={quote(column)}" for field, column in part.columns.items())
    return (f"{part.shape}=" * bool(part.shape) + quote(part.path) + f"[{columns}]" * bool(columns)
            + f":{part.weight:g}" * (part.weight != 1))


def locate_source(path: str, role: str) -> Path | None:
    """The file or folder of a source's path, without #SPLIT; None for a hub name.

    Raises BadInput, with the role, for what is neither.
    """
    if expand_path(path).exists():
        return expand_path(path)
    bare, _, split = path.rpartition("#")
    if bare and split and (expand_path(bare).is_dir() or expand_path(bare).suffix.lower() == ARCHIVE
                           and expand_path(bare).exists()):
        return expand_path(bare)
    why, suffix = _hub_remedy(path), Path(path.partition("#")[0]).suffix.lower()
    if not why and HUB_DATASET.fullmatch(path) and suffix not in (*SUFFIXES, *COMPRESSED, ARCHIVE):
        return None
    why = why or f"no such file or folder in {Path.cwd()}, and no hub name of the form owner/name"
    raise BadInput(f"{role}: {path}: {why}", field=role, where=path)


def check_source(source: str, role: str) -> None:
    """Raise BadInput where a source names something that is not there; hub names are not looked up."""
    if (source, role) == (SELF_REPLAY, "general_tasks"):
        return
    for part in parse_source(source, role):
        locate_source(part.path, role)


def find_model_folder(name: str) -> Path | None:
    """The folder of a pocket's, named or local model; None for a hub name; raises BadInput for neither."""
    folder = FOLDERS.get(name) or made_folder(name) or expand_path(name)
    if name in NAMED and not made_folder(name):
        return None
    if folder.is_dir():
        return folder
    why = _hub_remedy(name)
    if not why and HUB_MODEL.fullmatch(name):
        return None
    why = why or ("no such folder, and no hub name of the form owner/name; "
                  f"embedded models are {', '.join(FOLDERS)}, named ones {', '.join(NAMED)}")
    raise BadInput(f"model {name!r}: {why}", field="model", where=name)


def _hub_remedy(text: str) -> str | None:
    """What to write in place of an address of the hub; None for anything else."""
    match = HUB_URL.match(text)
    return match and "this is an address of the hub; write it as " + (
        match[1] if "/" in match[1] else f"OWNER/{match[1]}, with the name of its owner")


def read_model_config(model: str) -> dict:
    """A local model's config.json; empty where there is none to read."""
    folder = find_model_folder(model)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError):  # a hub name, no such file, nothing of the kind
        return {}
    return config if isinstance(config, dict) else {}
