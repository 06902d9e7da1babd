"""Rows read once: checked, made one shape, and written into an arrow file that is mapped from then on.

The file lies below the cache of `datasets` under a hash of what it was made from, and may be removed at any
time. Every row keeps its file and line, so that whatever is wrong with it can be told.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from .errors import BadInput, RunFailed
from .formats import BATCH, Origin
from .shapes import to_row
from .store import key_of

FORMAT = 2  # of the cached files: another number makes them anew
SHOWN = 20  # rows that are named one by one
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass
class Rows:
    """Rows in an arrow file, and `about`: files, units, weights, shapes, types, bad rows, system messages.

    `table` has the column `text` or `messages`. `names` are two numbers a row, 128 bits of a hash of its
    content; the first alone tells rows apart (among a million, two are taken for one with a chance of 3e-8).
    `places` are the number of its file and its line.
    """

    path: Path
    table: datasets.Dataset
    names: np.ndarray
    places: np.ndarray
    about: dict

    def where(self, index: int) -> str:
        """The file and line of a row."""
        file, line = self.places[:, index]
        return f"{self.about['files'][file]}, {self.about['units'][file]} {line}"

    def batches(self) -> Iterator[list[dict]]:
        """All rows in order, some at a time, read and not mapped, so that no page of the file stays."""
        with pa.OSFile(str(self.path / "rows.arrow")) as file:
            for batch in pa.ipc.open_stream(file):
                yield batch.to_pylist()


def canonical(row: dict) -> bytes:
    """A row as bytes; equal rows give equal bytes."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False).encode()


def name_of(row: dict) -> tuple[int, int]:
    """The two numbers that name a row's content."""
    digest = hashlib.sha256(canonical(row)).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def read(found: list[Origin], kind: str, systems: dict | None = None) -> Rows:
    """The rows of these origins for a role of this kind ("text" or "tasks"), bad ones left out and counted.

    `systems` gives tasks without a system message one: `types` by the row's field `field`, else `default`.
    """
    systems = systems if kind == "tasks" and systems else {}
    parts = {"format": FORMAT, "kind": kind, "systems": systems,
             "origins": [(one.name, one.content, one.shape) for one in found]}
    path = cached("rows", parts, lambda place: _write(place, found, kind, systems))
    about = json.loads((path / "about.json").read_text(encoding="utf-8"))
    table = datasets.Dataset.from_file(str(path / "rows.arrow"))
    names, places = (np.load(path / f"{name}.npy") for name in ("names", "places"))
    return Rows(path, table, names, places, about | {"weights": [one.weight for one in found]})


def _write(place: Path, found: list[Origin], kind: str, systems: dict) -> None:
    about = {"files": [one.name for one in found], "units": [one.unit for one in found],
             "shapes": Counter(), "types": Counter(), "systems": 0, "bad": 0, "first_bad": []}
    body = "text" if kind == "text" else "messages"
    schema = pa.schema([(body, pa.string() if kind == "text" else _MESSAGES)])
    names, places = [np.empty((2, 0), np.uint64)], [np.empty((2, 0), np.int32)]
    with pa.OSFile(str(place / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        made = _made(found, kind, systems, about)
        while held := list(itertools.islice(made, BATCH)):
            bodies, batch_names, batch_places = zip(*held, strict=True)
            writer.write_batch(pa.record_batch({body: list(bodies)}, schema=schema))
            names.append(np.array(batch_names, dtype=np.uint64).T)
            places.append(np.array(batch_places, dtype=np.int32).T)
    np.save(place / "names.npy", np.concatenate(names, axis=1))
    np.save(place / "places.npy", np.concatenate(places, axis=1))
    (place / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _made(found: list[Origin], kind: str, systems: dict, about: dict) -> Iterator[tuple]:
    """The good rows, each with its name and place; what is seen on the way is counted in `about`."""
    for number, origin in enumerate(found):
        for line, record in origin.records():
            try:
                shape, row, name = _checked(origin, kind, record)
            except BadInput as error:
                about["bad"] += 1
                if len(about["first_bad"]) < SHOWN:
                    join = "," if str(error).startswith("column") else ":"
                    about["first_bad"].append(f"{origin.name}, {origin.unit} {line}{join} {error}")
                continue
            about["shapes"][shape] += 1
            if kind == "tasks":
                _add_system(row["messages"], record, systems, about)
            yield row["text" if kind == "text" else "messages"], name, (number, line)


def _checked(origin: Origin, kind: str, record) -> tuple[str, dict, tuple[int, int]]:
    """The record's shape, its row, and the row's name; raises BadInput."""
    if isinstance(record, BadInput):
        raise record
    shape, row = to_row(record, kind, origin.shape)
    return shape, row, name_of(row)


def _add_system(messages: list[dict], record: dict, systems: dict, about: dict) -> None:
    """Count the row's type, and give it the system message for it if it has none of its own.

    The row's name is taken before, so that other system messages never move a row into or out of the probe.
    """
    kind = record.get(systems.get("field", "type"))
    if isinstance(kind, str) and (kind in about["types"] or len(about["types"]) < BATCH):
        about["types"][kind] += 1
    given = systems.get("types", {}).get(kind) if isinstance(kind, str) else None
    given = given or systems.get("default")
    if given and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": given})
    about["systems"] += messages[0]["role"] == "system"


def refuse_bad(rows: Rows, role: str) -> None:
    """Raise BadInput where a row could not be used, naming the first and the number of all, or for no row."""
    bad, total = rows.about["bad"], rows.about["bad"] + len(rows.table)
    if bad:
        more = f"{bad} of {total} rows cannot be used; `sftbench check` lists them" if bad > 1 else "mend it"
        raise BadInput(f"{role}: {rows.about['first_bad'][0]} ({more}, and `-p bad_rows drop` leaves such "
                       "rows out)")
    if not total:
        raise BadInput(f"{role}: {', '.join(rows.about['files'])}: the file holds no row")


def cached(kind: str, parts: dict, write: Callable[[Path], None]) -> Path:
    """The folder of what `parts` decide, filled by `write` if it is not there, whole or not at all.

    Raises RunFailed where the cache cannot be written.
    """
    root = Path(datasets.config.HF_DATASETS_CACHE) / "sftbench"
    place = root / f"{kind}-{key_of(**parts)}"
    if (place / "about.json").exists():
        return place
    temporary = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
        write(temporary)
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(temporary, place)
    except OSError as error:
        raise RunFailed(f"{root} cannot be written ({error}); free space, or set HF_DATASETS_CACHE to "
                        "a folder with room") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return place
