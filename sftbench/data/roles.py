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
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from ..errors import BadInput, RunFailed
from ..pocket import FOLDERS
from ..pocket.world import SPLITS, world_rows
from ..recipes.recipe import ROLES, Recipe, suggest_name
from ..runs.stage_store import hash_key
from .conversations import parse_row
from .readers import READ_BATCH, Origin, open_sources, origin_in_memory

CACHE_FORMAT = 2  # of the cached files: another number makes them anew
NAMED_BAD_ROWS = 20  # rows that are named one by one
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


def canonical_bytes(row: dict) -> bytes:
    """A row as bytes; equal rows give equal bytes."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False).encode()


def row_hash(row: dict) -> tuple[int, int]:
    """The two numbers that name a row's content."""
    digest = hashlib.sha256(canonical_bytes(row)).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def read_rows(found: list[Origin], kind: str, systems: dict | None = None) -> Rows:
    """The rows of these origins for a role of this kind ("text" or "tasks"), bad ones left out and counted.

    `systems` gives tasks without a system message one: `types` by the row's field `field`, else `default`.
    """
    systems = systems if kind == "tasks" and systems else {}
    parts = {"format": CACHE_FORMAT, "kind": kind, "systems": systems,
             "origins": [(one.name, one.content, one.shape) for one in found]}
    path = cached_folder("rows", parts, lambda place: _write_rows(place, found, kind, systems))
    about = json.loads((path / "about.json").read_text(encoding="utf-8"))
    table = datasets.Dataset.from_file(str(path / "rows.arrow"))
    names, places = (np.load(path / f"{name}.npy") for name in ("names", "places"))
    return Rows(path, table, names, places, about | {"weights": [one.weight for one in found]})


def _write_rows(place: Path, found: list[Origin], kind: str, systems: dict) -> None:
    about = {"files": [one.name for one in found], "units": [one.unit for one in found],
             "shapes": Counter(), "types": Counter(), "systems": 0, "bad": 0, "first_bad": []}
    body = "text" if kind == "text" else "messages"
    schema = pa.schema([(body, pa.string() if kind == "text" else _MESSAGES)])
    names, places = [np.empty((2, 0), np.uint64)], [np.empty((2, 0), np.int32)]
    with pa.OSFile(str(place / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        made = _parsed_rows(found, kind, systems, about)
        while held := list(itertools.islice(made, READ_BATCH)):
            bodies, batch_names, batch_places = zip(*held, strict=True)
            writer.write_batch(pa.record_batch({body: list(bodies)}, schema=schema))
            names.append(np.array(batch_names, dtype=np.uint64).T)
            places.append(np.array(batch_places, dtype=np.int32).T)
    np.save(place / "names.npy", np.concatenate(names, axis=1))
    np.save(place / "places.npy", np.concatenate(places, axis=1))
    (place / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _parsed_rows(found: list[Origin], kind: str, systems: dict, about: dict) -> Iterator[tuple]:
    """The good rows, each with its name and place; what is seen on the way is counted in `about`."""
    for number, origin in enumerate(found):
        for line, record in origin.records():
            try:
                shape, row, name = _parse_record(origin, kind, record)
            except BadInput as error:
                about["bad"] += 1
                if len(about["first_bad"]) < NAMED_BAD_ROWS:
                    join = "," if str(error).startswith("column") else ":"
                    about["first_bad"].append(f"{origin.name}, {origin.unit} {line}{join} {error}")
                continue
            about["shapes"][shape] += 1
            if kind == "tasks":
                _add_system(row["messages"], record, systems, about)
            yield row["text" if kind == "text" else "messages"], name, (number, line)


def _parse_record(origin: Origin, kind: str, record) -> tuple[str, dict, tuple[int, int]]:
    """The record's shape, its row, and the row's name; raises BadInput."""
    if isinstance(record, BadInput):
        raise record
    shape, row = parse_row(record, kind, origin.shape)
    return shape, row, row_hash(row)


def _add_system(messages: list[dict], record: dict, systems: dict, about: dict) -> None:
    """Count the row's type, and give it the system message for it if it has none of its own.

    The row's name is taken before, so that other system messages never move a row into or out of the probe.
    """
    kind = record.get(systems.get("field", "type"))
    if isinstance(kind, str) and (kind in about["types"] or len(about["types"]) < READ_BATCH):
        about["types"][kind] += 1
    given = systems.get("types", {}).get(kind) if isinstance(kind, str) else None
    given = given or systems.get("default")
    if given and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": given})
    about["systems"] += messages[0]["role"] == "system"


def refuse_bad_rows(rows: Rows, role: str) -> None:
    """Raise BadInput where a row could not be used, naming the first and the number of all, or for no row."""
    bad, total = rows.about["bad"], rows.about["bad"] + len(rows.table)
    if bad:
        more = f"{bad} of {total} rows cannot be used; `sftbench check` lists them" if bad > 1 else "mend it"
        raise BadInput(f"{role}: {rows.about['first_bad'][0]} ({more}, and `-p bad_rows drop` leaves such "
                       "rows out)")
    if not total:
        raise BadInput(f"{role}: {', '.join(rows.about['files'])}: the file holds no row")


def cached_folder(kind: str, parts: dict, write: Callable[[Path], None]) -> Path:
    """The folder of what `parts` decide, filled by `write` if it is not there, whole or not at all.

    Raises RunFailed where the cache cannot be written.
    """
    root = Path(datasets.config.HF_DATASETS_CACHE) / "sftbench"
    place = root / f"{kind}-{hash_key(**parts)}"
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

DROPPED_EXAMPLES = 5  # places named for each reason of dropping


@dataclass
class Role:
    """The rows of one role: `train` as a mapped table, `probe` as a list, what was dropped: rows, examples.

    `times` says how often each training row stands in one pass (its file's weight). `rows` is all that was
    read, `chosen` the training rows' numbers in it, `systems` what gave system messages.
    """

    source: str
    train: datasets.Dataset
    probe: list[dict]
    rows: Rows
    chosen: np.ndarray
    times: np.ndarray
    dropped: dict = field(default_factory=dict)
    systems: dict = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A hash of the training rows, their order, weights and system messages, for stage keys."""
        whole = hashlib.sha256(json.dumps(self.systems, sort_keys=True).encode())
        whole.update(self.rows.names[:, self.chosen].tobytes())
        whole.update(self.times.tobytes())
        return whole.hexdigest()[:20]

    def drop(self, reason: str, indices: np.ndarray) -> None:
        """Record rows that are left out, by their numbers in `rows`."""
        if len(indices):
            self.dropped[reason] = {
                "rows": len(indices),
                "examples": [self.rows.where(index) for index in indices[:DROPPED_EXAMPLES]],
            }


def digest_rows(some: list[dict]) -> str:
    """A hash of rows and their order, 20 hex digits."""
    whole = hashlib.sha256()
    for row in some:
        whole.update(canonical_bytes(row))
    return whole.hexdigest()[:20]


def load_roles(recipe: Recipe) -> dict[str, Role]:
    """Every role that has data, with its probe; roles without data are absent.

    A pocket model brings the pocket's data for the domain, and for the general side, where the user gave none
    of that side; any other model brings nothing. Raises BadInput, naming file and line, for rows that cannot
    be used, unless the recipe drops them.
    """
    roles = {}
    for name in ROLES:
        source = getattr(recipe, name) or ("pocket" if _pocket_serves(recipe, name) else None)
        probe_source = getattr(recipe, f"{name}_probe")
        if source is None and probe_source is None:
            continue
        systems, probe = load_system_prompts(recipe.system_prompts, name), None
        if source == "pocket":
            train, probe = (read_rows([origin_in_memory("pocket", world_rows(
                name, half, recipe.pocket_seed, recipe.pocket_related))], name.split("_")[1], systems)
                for half in SPLITS)
        elif source:
            train = read_source(source, name, recipe.bad_rows, systems)
        if probe_source is not None:
            probe = read_source(probe_source, f"{name}_probe", recipe.bad_rows, systems)
        roles[name] = split_role(source or probe_source, train if source else None, probe, recipe, systems)
    return roles


def _pocket_serves(recipe: Recipe, name: str) -> bool:
    side = name.split("_")[0]
    own = any(getattr(recipe, other) for other in ROLES if other.startswith(side))
    return recipe.model in FOLDERS and not own


def read_source(source: str, role: str, bad_rows: str = "stop", systems: dict | None = None) -> Rows:
    """The rows of a source (see `formats.origins`) for a role; raises BadInput for none, and for bad ones."""
    found = read_rows(open_sources(source, role), role.split("_")[1], systems)
    if bad_rows == "stop" or not len(found.table):
        refuse_bad_rows(found, role)
    return found


def split_role(source: str, train: Rows | None, probe: Rows | None, recipe: Recipe, systems: dict) -> Role:
    """Training rows and probe: the probe is given or split off, and no training row stands in it."""
    if train is None:
        train, chosen, held = probe, np.array([], dtype=int), np.arange(len(probe.table))
    elif probe is None:
        probe = train
        chosen, held = split_rows(train.names[0], recipe.probe_share, source)
    else:
        chosen, held = np.arange(len(train.table)), np.arange(len(probe.table))
    if len(held) > recipe.probe_rows:
        held = held[np.argsort(probe.names[0, held], kind="stable")][:recipe.probe_rows]
    weights = np.array(train.about["weights"])[train.places[0, chosen]]
    # a weight of 2.3 is two times, or three for the rows whose hash lies in the lowest 0.3
    times = np.floor(weights).astype(np.int64) + (train.names[1, chosen] / 2.0**64 < weights % 1)
    leak = np.isin(train.names[0, chosen], probe.names[0, held])
    kept = ~leak & (times > 0)
    role = Role(source, train.table.select(chosen[kept]), list(probe.table.select(held)), train, chosen[kept],
                times[kept], systems=systems)
    if train.about["bad"]:
        role.dropped["cannot be used"] = {"rows": train.about["bad"],
                                          "examples": train.about["first_bad"][:DROPPED_EXAMPLES]}
    role.drop("also in the probe", chosen[leak])
    role.drop("left out by its file's weight", chosen[~leak & (times == 0)])
    return role


def split_rows(names: np.ndarray, share: float, source: str = "data") -> tuple[np.ndarray, np.ndarray]:
    """The numbers of training and of probe rows, told apart by each row's name: added rows move no others.

    The row of the smallest name is always a probe row, and a probe holds no row twice. Raises BadInput for
    fewer than two different rows.
    """
    different, first = np.unique(names, return_index=True)
    if len(different) < 2:
        raise BadInput(f"{source}: {len(different)} different row(s); at least 2 are needed, "
                       "one of them as a probe")
    held = names < np.uint64(max(int(share * 2**64), int(different[0]) + 1))
    if held.all():
        held = names != different[-1]
    unique = np.zeros(len(names), dtype=bool)
    unique[first] = True
    return np.flatnonzero(~held), np.flatnonzero(held & unique)


def load_system_prompts(given: str | None, role: str) -> dict:
    """What gives a role's tasks their system messages: `field`, `types` (text by type) and `default` text.

    `given` is a text for all tasks, or the path of a TOML file with `default`, a text for each role by its
    name, `field` (where a row's type stands; default `type`) and a table `types`. Raises BadInput.
    """
    if given is None or role.endswith("_text"):
        return {}
    if not given.endswith(".toml"):
        return {"default": given}
    try:
        values = tomllib.loads(Path(given).read_text(encoding="utf-8"))
    except OSError:
        raise BadInput(f"system_prompts: {given}: no such file") from None
    except ValueError as error:
        raise BadInput(f"system_prompts: {given}: not TOML: {error}") from None
    tasks = [name for name in ROLES if name.endswith("_tasks")]
    types = values.get("types", {})
    for name, value in values.items():
        if name not in ("default", "field", "types", *tasks):
            raise BadInput(f"system_prompts: {given}: unknown name {name!r}"
                           f"{suggest_name(name, ('default', 'field', 'types', *tasks))}")
        if not isinstance(value, dict if name == "types" else str):
            wanted = "a table" if name == "types" else "text"
            raise BadInput(f"system_prompts: {given}: {name} must be {wanted}")
    if not all(isinstance(text, str) for text in types.values()):
        raise BadInput(f"system_prompts: {given}: every entry of types must be text")
    return {"field": values.get("field", "type"), "types": types,
            "default": values.get(role) or values.get("default")}
