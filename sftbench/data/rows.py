"""The row cache: every record is read once, checked, turned into one shape and stored as an Arrow table.

`datasets` writes the tables, maps them and locks them against a second writer. They lie in `sftbench` below
its cache folder, under a hash of what they were made from, and may be removed at any time. A million rows
(212 MB of JSON Lines, 83 million tokens) take 222 s and 647 MB of anonymous memory on one core, with tokens
and packing; Arrow streams written and read by hand took 221 s and 675 MB (`benchmarks/million_rows.py`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value

from ..errors import BadInput, RunFailed
from ..runs.stage_store import hash_key
from ..sources.origins import Origin, open_sources
from .conversations import parse_row

CACHE_FORMAT = 4  # of the cached tables: with another number they are written again
NAMED_BAD_ROWS = 20  # bad rows that are named one by one
MAX_TYPES = 1000  # different values of `type` that are counted: a field that differs in every row is no type
NO_ROW = -1  # in place of a file's number
BODIES = {"text": ("text", Value("string")),
          "tasks": ("messages", List({"role": Value("string"), "content": Value("string")}))}
# `hash` and `rest` name the row, `error` and `field` say why a record cannot be used
COLUMNS = {name: Value(kind) for name, kind in {
    "hash": "int64", "rest": "int64", "file": "int32", "line": "int32", "shape": "string", "type": "string",
    "system": "bool", "error": "string", "field": "string"}.items()}


@dataclass
class Rows:
    """The usable rows of a source; `about` counts shapes, types, system messages and bad rows.

    `table` has the column `text` or `messages`. `names` are two numbers a row, 128 bits of a hash of its
    content; the first alone identifies a row (among a million, two are taken for one with a chance of 3e-8).
    `lines` are the number of its origin and its line there.
    """

    table: Dataset
    names: np.ndarray
    lines: np.ndarray
    origins: list[Origin]
    about: dict

    def where(self, index: int) -> str:
        """The file and line of a row."""
        origin, line = self.lines[:, index]
        return self.origins[origin].where(line)


def row_hash(row: dict) -> tuple[int, int]:
    """The two numbers, unsigned with 64 bits, that name a row's content."""
    digest = hashlib.sha256(_canonical_bytes(row)).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def _canonical_bytes(row: dict) -> bytes:
    return json.dumps(row, sort_keys=True, ensure_ascii=False).encode()


def digest_rows(rows: list[dict]) -> str:
    """A hash of rows and their order, 20 hex digits."""
    return hashlib.sha256(b"".join(map(_canonical_bytes, rows))).hexdigest()[:20]


def cache_folder() -> Path:
    """Where rows and tokens are stored: in `sftbench` below the cache of `datasets`."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "sftbench"


def cache_table(make: Callable[..., Dataset], **options) -> Dataset:
    """Call a function of `datasets` that stores its table in the cache; raises RunFailed where it cannot."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        return make(**options)
    except (OSError, datasets.exceptions.DatasetGenerationError) as error:
        # `datasets` (5.2) wraps what a generator raises
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise cause from None
        raise RunFailed(f"{cache_folder()} cannot be written ({cause}); free space, or set "
                        "HF_DATASETS_CACHE to a folder with room") from error


def read_rows(origins: list[Origin], kind: str, systems: dict | None = None) -> Rows:
    """The rows of these origins for a role of this kind ("text" or "tasks"), bad ones left out and counted.

    `systems` gives tasks without a system message one: `types` by the row's field `field`, else `default`.
    """
    systems = systems if kind == "tasks" and systems else {}
    body, body_type = BODIES[kind]
    key = hash_key(format=CACHE_FORMAT, kind=kind, systems=systems,
                   origins=[(origin.name, origin.content, origin.shape) for origin in origins])
    table = cache_table(
        Dataset.from_generator, generator=lambda: _parse_records(origins, kind, systems),
        features=Features({body: body_type} | COLUMNS), fingerprint=key, cache_dir=str(cache_folder()))
    return _split_usable(table, body, origins)


def _parse_records(origins: list[Origin], kind: str, systems: dict) -> Iterator[dict]:
    """Every record as a row of the cached table, with its name and line, or with its error."""
    record, types = None, set()
    for file, origin in enumerate(origins):
        for line, record in origin.records():
            entry = {"hash": 0, "rest": 0, "file": file, "line": line, "system": False}
            try:
                yield entry | _parse_record(origin, kind, record, systems, types)
            except BadInput as error:
                yield entry | {"error": _storable(str(error)), "field": _storable(error.field)}
    if record is None:  # `datasets` (5.2) cannot read back a table without a row
        yield {"hash": 0, "rest": 0, "file": NO_ROW, "line": NO_ROW, "system": False}


def _storable(text: str) -> str:
    """The text without halves of surrogate pairs, which Arrow cannot store."""
    return text.encode(errors="replace").decode()


def _parse_record(origin: Origin, kind: str, record, systems: dict, types: set[str]) -> dict:
    """The record's row, name, shape and type, with the system message for it if it has none of its own."""
    if isinstance(record, BadInput):
        raise record
    shape, row = parse_row(record, kind, origin.shape)
    # The name is of the row without an added system message, so that another one moves no row into or out of
    # the probe. Its numbers are stored signed: `datasets` (5.2) takes no larger integer from Python.
    name, rest = np.array(row_hash(row), dtype=np.uint64).view(np.int64).tolist()
    entry = {"hash": name, "rest": rest, "shape": shape}
    if kind == "text":
        return entry | row
    sort, messages = record.get(systems.get("field", "type")), row["messages"]
    system = systems.get("default")
    if isinstance(sort, str):
        system = systems.get("types", {}).get(sort) or system
        if len(types) < MAX_TYPES or sort in types:
            types.add(sort)
            entry["type"] = _storable(sort)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return entry | row | {"system": messages[0]["role"] == "system"}


def _split_usable(table: Dataset, body: str, origins: list[Origin]) -> Rows:
    """The usable rows of a cached table, with what was counted over all of it."""
    def numbers(*names: str) -> np.ndarray:
        return np.stack([table.data.column(name).to_numpy() for name in names])

    def counts(name: str) -> dict[str, int]:
        values = table.data.column(name).drop_null().value_counts().to_pylist()
        return {entry["values"]: entry["counts"] for entry in values}

    lines, faultless = numbers("file", "line"), table.data.column("error").is_null().to_numpy()
    usable, bad = np.flatnonzero(faultless & (lines[0] != NO_ROW)), np.flatnonzero(~faultless)
    faults = [(origins[row["file"]].where(row["line"]), row["error"], row["field"])
              for row in table.select(bad[:NAMED_BAD_ROWS])]
    rows = table.select_columns([body])
    return Rows(
        rows if len(usable) == len(table) else rows.select(usable),
        numbers("hash", "rest")[:, usable].view(np.uint64), lines[:, usable], origins,
        {"shapes": counts("shape"), "types": counts("type"), "systems": int(numbers("system").sum()),
         "bad": len(bad), "first_bad": [f"{where}: {error}" for where, error, _ in faults],
         "first_fault": {"where": faults[0][0], "field": faults[0][2] or ""} if faults else {}})


def read_source(source: str, role: str, bad_rows: str = "stop", systems: dict | None = None) -> Rows:
    """The rows of a source (see `parse_source`) for a role; raises BadInput for none, and for bad ones."""
    rows = read_rows(open_sources(source, role), role.split("_")[1], systems)
    bad, usable = rows.about["bad"], len(rows.table)
    if bad and (bad_rows == "stop" or not usable):
        more = f"{bad} of {bad + usable} rows cannot be used; `sftbench check` lists them"
        raise BadInput(f"{role}: {rows.about['first_bad'][0]} ({more if bad > 1 else 'correct it'}, and "
                       "`-p bad_rows drop` leaves such rows out)", **rows.about["first_fault"])
    if not usable:
        files = ", ".join(origin.name for origin in rows.origins)
        raise BadInput(f"{role}: {files}: the file holds no row", field=role, where=files)
    return rows
