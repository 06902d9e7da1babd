"""Roles from files: what trains, what is held out as a probe, what is dropped and why, system messages.

Rows lie in arrow files and are told apart by a hash of their content, so a million take little memory.
"""

import hashlib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np

from . import formats, pocket, rows
from .errors import BadInput
from .pocket import world
from .recipe import ROLES, Recipe, nearest
from .rows import Rows

EXAMPLES = 5  # places named for each reason of dropping


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
            self.dropped[reason] = {"rows": len(indices),
                                    "examples": [self.rows.where(index) for index in indices[:EXAMPLES]]}


def digest(some: list[dict]) -> str:
    """A hash of rows and their order, 20 hex digits."""
    whole = hashlib.sha256()
    for row in some:
        whole.update(rows.canonical(row))
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
        systems, probe = systems_of(recipe.system_prompts, name), None
        if source == "pocket":
            train, probe = (rows.read([formats.in_memory("pocket", world.rows(
                name, half, recipe.pocket_seed, recipe.pocket_related))], name.split("_")[1], systems)
                for half in world.SPLITS)
        elif source:
            train = read(source, name, recipe.bad_rows, systems)
        if probe_source is not None:
            probe = read(probe_source, f"{name}_probe", recipe.bad_rows, systems)
        roles[name] = role_of(source or probe_source, train if source else None, probe, recipe, systems)
    return roles


def _pocket_serves(recipe: Recipe, name: str) -> bool:
    side = name.split("_")[0]
    own = any(getattr(recipe, other) for other in ROLES if other.startswith(side))
    return recipe.model in pocket.FOLDERS and not own


def read(source: str, role: str, bad_rows: str = "stop", systems: dict | None = None) -> Rows:
    """The rows of a source (see `formats.origins`) for a role; raises BadInput for none, and for bad ones."""
    found = rows.read(formats.origins(source, role), role.split("_")[1], systems)
    if bad_rows == "stop" or not len(found.table):
        rows.refuse_bad(found, role)
    return found


def role_of(source: str, train: Rows | None, probe: Rows | None, recipe: Recipe, systems: dict) -> Role:
    """Training rows and probe: the probe is given or split off, and no training row stands in it."""
    if train is None:
        train, chosen, held = probe, np.array([], dtype=int), np.arange(len(probe.table))
    elif probe is None:
        probe = train
        chosen, held = split(train.names[0], recipe.probe_share, source)
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
                                          "examples": train.about["first_bad"][:EXAMPLES]}
    role.drop("also in the probe", chosen[leak])
    role.drop("left out by its file's weight", chosen[~leak & (times == 0)])
    return role


def split(names: np.ndarray, share: float, source: str = "data") -> tuple[np.ndarray, np.ndarray]:
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


def systems_of(given: str | None, role: str) -> dict:
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
                           f"{nearest(name, ('default', 'field', 'types', *tasks))}")
        if not isinstance(value, dict if name == "types" else str):
            wanted = "a table" if name == "types" else "text"
            raise BadInput(f"system_prompts: {given}: {name} must be {wanted}")
    if not all(isinstance(text, str) for text in types.values()):
        raise BadInput(f"system_prompts: {given}: every entry of types must be text")
    return {"field": values.get("field", "type"), "types": types,
            "default": values.get(role) or values.get("default")}
