"""The row cache: every record is read once, checked, turned into one shape and stored as an Arrow table.

`datasets` writes the tables, maps them and locks them against a second writer. They lie in `sftbench` below
its cache folder, under a hash of what they were made from, and may be removed at any time.
"""

import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value
from datasets.builder import Key
from datasets.packaged_modules.generator.generator import GeneratorConfig

from ..errors import BadInput, RunFailed
from ..runs.stage_store import hash_key
from ..sources.origins import Origin, describe_source, open_sources, propose_source
from ..sources.readers import READ_BATCH
from . import choices, conversations, fields, tool_calls
from .conversations import parse_row
from .fields import without_nulls

CACHE_FORMAT = 7  # of the cached tables: with another number they are written again
NAMED_BAD_ROWS = 10  # bad rows that are named one by one
MAX_NAMES = 1000  # different values of `type`, and sets of unused fields, that are counted
NO_ROW = -1  # in place of a file's number
OWN_TO_A_ROW = re.compile(r"(?:, not |; it has ).*", re.DOTALL)  # what an error says of one row alone
# A task is stored as JSON: in structs of Arrow's, every call would have the arguments of all calls, and
# `datasets` (5.2) takes a third longer to write them.
BODIES = {"text": {"text": Value("string")}, "tasks": {"json": Value("binary")}}
# `hash` and `rest` name the row, `group` the rows that stay on one side of the probe's split with it (0: by
# itself), `error` and `field` say why a record cannot be used, `unused` has names with line breaks between
COLUMNS = {name: Value(kind) for name, kind in {
    "hash": "int64", "rest": "int64", "group": "int64", "file": "int32", "line": "int32", "shape": "string",
    "type": "string", "system": "bool", "unused": "string", "error": "string", "field": "string"}.items()}


@dataclass
class Rows:
    """The usable rows of a source; `about` counts shapes, types, system messages, unused fields and bad rows.

    `table` gives rows as `conversations` has them. `names` are two numbers a row, 128 bits of a hash of its
    content; the first alone identifies a row (among a million, two are taken for one with a chance of 3e-8).
    Rows of one number in `groups` belong together. `lines` are the number of a row's origin and its line.
    """

    table: Dataset
    names: np.ndarray
    groups: np.ndarray
    lines: np.ndarray
    origins: list[Origin]
    about: dict

    def where(self, index: int) -> str:
        """The file and line of a row."""
        origin, line = self.lines[:, index]
        return self.origins[origin].where(line)

    @cached_property
    def notes(self) -> list[str]:
        """How texts are cut into rows, and what of documents is not read, by file; this reads them again."""
        return [f"{origin.name}: {note}" for origin in self.origins if (note := origin.note)]

    @property
    def uses(self) -> set[str]:
        """Which of `tools` and `thoughts` the rows have, by the names of their fields."""
        if "json" not in self.table.data.column_names:
            return set()
        bodies = self.table.data.column("json")  # quotes within a text are escaped there
        fields = (("tools", "tool_calls"), ("tools", "tools"), ("thoughts", "reasoning_content"))
        return {use for use, field in fields
                if pc.any(pc.match_substring(bodies, f'"{field}": ')).as_py()}


def row_hash(row: dict) -> tuple[int, int]:
    """The two numbers, unsigned with 64 bits, that name a row's content."""
    digest = hashlib.sha256(_canonical_bytes(row)).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def _canonical_bytes(row: dict) -> bytes:
    return _json_bytes(row, sort_keys=True)


def _json_bytes(row: dict, **options) -> bytes:
    """A row as JSON, which `json.loads` takes as it is; halves of surrogate pairs go in and come out."""
    return json.dumps(row, ensure_ascii=False, **options).encode(errors="surrogatepass")


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
    key = hash_key(format=CACHE_FORMAT, kind=kind, systems=systems, code=_code_digest(),
                   origins=[(origin.name, origin.content, origin.shape) for origin in origins])
    table = cache_table(_store_rows, generator=lambda: _parse_records(origins, kind, systems),
                        features=Features(BODIES[kind] | COLUMNS), key=key)
    return _split_usable(table, kind, origins)


class RowBuilder(datasets.ArrowBasedBuilder):
    """Stores what a generator yields as `Dataset.from_generator` does, but many rows at a time.

    That one (5.2) looks at every value of every row by itself, a sixth of all the time to prepare a file.
    """

    BUILDER_CONFIG_CLASS = GeneratorConfig

    def _info(self):
        return datasets.DatasetInfo(features=self.config.features)

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator(self.config.split)]

    def _generate_tables(self):
        rows, schema = self.config.generator(), self.config.features.arrow_schema
        for number, batch in enumerate(iter(lambda: list(itertools.islice(rows, READ_BATCH)), [])):
            yield Key(0, number), pa.Table.from_pylist(batch, schema)


def _store_rows(generator: Callable[[], Iterator[dict]], features: Features, key: str) -> Dataset:
    """The generator's rows as a cached table, from the cache where the key is there."""
    builder = RowBuilder(cache_dir=str(cache_folder()), config_id=key, generator=generator,
                         features=features)
    builder.download_and_prepare()
    table = builder.as_dataset(split=builder.config.split)
    table._fingerprint = key  # of the content, where `datasets` takes one of the generator
    return table


@cache
def _code_digest() -> str:
    """A hash of the modules that decide what row a record becomes."""
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in (
        choices, conversations, fields, tool_calls))).hexdigest()


def _parse_records(origins: list[Origin], kind: str, systems: dict) -> Iterator[dict]:
    """Every record as a row of the cached table, with its name and line, or with its error."""
    record, seen = None, defaultdict(set)
    for file, origin in enumerate(origins):
        form = cache(partial(choices.find_form, origin.records))
        for line, record in origin.records():
            entry = {"hash": 0, "rest": 0, "group": 0, "file": file, "line": line, "system": False}
            try:
                yield entry | _parse_record(origin, (kind, form), record, systems, seen)
            except BadInput as error:
                yield entry | {"error": _storable(str(error)), "field": _storable(error.field)}
    if record is None:  # `datasets` (5.2) cannot read back a table without a row
        yield {"hash": 0, "rest": 0, "group": 0, "file": NO_ROW, "line": NO_ROW, "system": False}


def _storable(text: str) -> str:
    """The text without halves of surrogate pairs, which Arrow cannot store."""
    return text.encode(errors="replace").decode()


def _parse_record(origin: Origin, read_as: tuple, record, systems: dict, seen: dict[str, set]) -> dict:
    """The record's row, name, group and shape, with the system message for it if it has none of its own.

    `read_as` has the role's kind, and the form of the file's answers as `parse_row` takes it.
    """
    if isinstance(record, BadInput):
        raise record
    record = without_nulls(record) if origin.unit == "row" else record
    (kind, form), shape = read_as, origin.shape
    parsed = parse_row(record, kind, shape, form)
    row, unused = parsed.row, parsed.unused
    # The name is of the row without an added system message, so that another one moves no row into or out of
    # the probe. Its numbers are stored signed: `datasets` (5.2) takes no larger integer from Python.
    numbers = (*row_hash(row), _hash_group(parsed.group)) if parsed.group else (*row_hash(row), 0)
    name, rest, group = np.array(numbers, dtype=np.uint64).view(np.int64).tolist()
    entry = {"hash": name, "rest": rest, "group": group or name, "shape": parsed.shape}
    if kind == "tasks":
        type_field, system = systems.get("field", "type"), systems.get("default")
        if isinstance(sort := record.get(type_field), str):
            unused = [name for name in unused if name != type_field]
            system = systems.get("types", {}).get(sort) or system
            entry["type"] = _count_name(sort, seen["type"])
        if system and row["messages"][0]["role"] != "system":
            row["messages"].insert(0, {"role": "system", "content": system})
        entry["system"] = row["messages"][0]["role"] == "system"
    if unused:
        entry["unused"] = _count_name("\n".join(dict.fromkeys(unused)), seen["unused"])
    return entry | ({"json": _json_bytes(row)} if kind == "tasks" else row)


def _hash_group(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")


def _count_name(name: str, seen: set[str]) -> str | None:
    """The name as it is stored, as long as there are not too many different ones."""
    if len(seen) >= MAX_NAMES and name not in seen:
        return None
    seen.add(name)
    return _storable(name)


def _read_tasks(batch: dict[str, list]) -> dict[str, list]:
    """Tasks of a cached table as `conversations` has them, by column; what none of them has is left out."""
    rows = [json.loads(row) for row in batch["json"]]
    return {name: [row.get(name) for row in rows] for name in sorted({name for row in rows for name in row})}


def _split_usable(table: Dataset, kind: str, origins: list[Origin]) -> Rows:
    """The usable rows of a cached table, with what was counted over all of it."""
    def numbers(*names: str) -> np.ndarray:
        return np.stack([table.data.column(name).to_numpy() for name in names])

    lines, faultless = numbers("file", "line"), table.data.column("error").is_null().to_numpy()
    usable, bad = np.flatnonzero(faultless & (lines[0] != NO_ROW)), np.flatnonzero(~faultless)
    faults = [(origins[row["file"]].where(row["line"]), row["error"], row["field"])
              for row in table.select(bad[:NAMED_BAD_ROWS])]
    reasons, unused = Counter(), Counter()
    for error, count in _value_counts(table, "error").items():
        reasons[re.sub(r"\d+", "N", OWN_TO_A_ROW.sub("", error))] += count
    for names, count in _value_counts(table, "unused").items():
        unused.update(dict.fromkeys(names.split("\n"), count))
    rows = table.select_columns(list(BODIES[kind]))
    rows = rows if len(usable) == len(table) else rows.select(usable)
    return Rows(
        rows.with_transform(_read_tasks) if kind == "tasks" else rows,
        numbers("hash", "rest")[:, usable].view(np.uint64), numbers("group")[0, usable], lines[:, usable],
        origins,
        {"shapes": _value_counts(table, "shape"), "types": _value_counts(table, "type"),
         "systems": int(numbers("system").sum()), "unused": dict(unused.most_common()),
         "passed_over": {}, "offered_probe": None,  # of a source as a whole, see `read_source`
         "bad": len(bad), "bad_reasons": dict(reasons.most_common()),
         "first_bad": [f"{where}: {error}" for where, error, _ in faults],
         "first_fault": {"where": faults[0][0], "field": faults[0][2] or ""} if faults else {}})


def _value_counts(table: Dataset, column: str) -> dict[str, int]:
    values = table.data.column(column).drop_null().value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in values}


def name_columns(rows: Rows, kind: str) -> str | None:
    """The source with its columns read as fields, where no row has those of a shape; None where none fit."""
    lacks_fields = any(reason.startswith("no field") for reason in rows.about["bad_reasons"])
    return propose_source(rows.origins[0], kind) if lacks_fields and not len(rows.table) else None


def read_source(source: str, role: str, bad_rows: str = "stop", systems: dict | None = None) -> Rows:
    """The rows of a source (see `parse_source`) for a role; raises BadInput for none, and for bad ones."""
    kind = role.split("_")[1]
    rows = read_rows(open_sources(source, role), kind, systems)
    rows.about |= describe_source(source, role)
    bad, usable = rows.about["bad"], len(rows.table)
    if bad and (bad_rows == "stop" or not usable):
        more = f"{bad} of {bad + usable} rows cannot be used; `sftbench check` lists them"
        columns = name_columns(rows, kind)
        proposal = f"; its columns may be read as {columns}" if columns else ""
        drop = ", and `-p bad_rows drop` leaves such rows out" * (usable > 1)
        raise BadInput(f"{role}: {rows.about['first_bad'][0]} ({more if bad > 1 else 'correct it'}{drop})"
                       f"{proposal}", **rows.about["first_fault"])
    if not usable:
        files = ", ".join(origin.name for origin in rows.origins)
        raise BadInput(f"{role}: {files}: the file holds no row", field=role, where=files)
    return rows
