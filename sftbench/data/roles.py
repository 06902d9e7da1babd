"""Roles: the four kinds of data, each with its training rows, its probe, and a record of what was dropped."""

import difflib
import hashlib
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath

import numpy as np
from datasets import Dataset

from ..distributed import process_count
from ..errors import BadInput
from ..named.libraries import describe_libraries, library_rows
from ..pocket import FOLDERS
from ..pocket.world import SPLITS, world_rows
from ..recipes.modes import StagePlan, find_start_model
from ..recipes.recipe import FREE_FIELDS, ROLES, Recipe, recipe_to_dict, suggest_name
from ..sources.names import expand_path
from ..sources.origins import origin_in_memory
from .fields import MARKS, RATINGS
from .rows import Rows, digest_rows, read_rows, read_source

DROPPED_EXAMPLES = 5  # lines named for each reason of dropping
LARGEST_PROBE = 0.5  # of the rows, if no larger share is wanted


@dataclass
class Role:
    """One role's data: `train` as a mapped table, `probe` as a list.

    `times` says how often each training row is drawn in one pass (its file's weight). `rows` is all that was
    read, `chosen` the training rows' numbers in it, `systems` what gave system messages; `shared_groups` are
    training rows whose question (of texts: document) a given probe has too, with another answer;
    `offered_probe` is the source's own split to probe with, where no probe is given; `dropped` has the number
    of rows that were left out and examples of their lines, by reason.
    """

    source: str
    train: Dataset
    probe: list[dict]
    rows: Rows
    chosen: np.ndarray
    times: np.ndarray
    shared_groups: int = 0
    offered_probe: str | None = None
    dropped: dict = field(default_factory=dict)
    systems: dict = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A hash of the training rows, their order, weights and system messages, for stage keys."""
        digest = hashlib.sha256(json.dumps(self.systems, sort_keys=True).encode())
        digest.update(self.rows.names[:, self.chosen].tobytes())
        digest.update(self.times.tobytes())
        return digest.hexdigest()[:20]

    def sample_rows(self, count: int) -> list[dict]:
        """The first training rows in the order of a hash: from anywhere in the files, always the same."""
        order = np.argsort(self.rows.names[0, self.chosen], kind="stable")[:count]
        return [self.train[number] for number in order.tolist()]

    def drop(self, reason: str, indices: np.ndarray) -> None:
        """Record rows that are left out, by their numbers in `rows`."""
        if len(indices):
            self.dropped[reason] = {
                "rows": len(indices),
                "examples": [self.rows.where(index) for index in indices[:DROPPED_EXAMPLES]],
            }


def load_roles(recipe: Recipe) -> dict[str, Role]:
    """Every role that has data, with its probe; roles without data are absent.

    A pocket model brings the pocket's data for the domain, and for the general side, where the user gave none
    of that side; any other model brings nothing. The recipe's `domain` names another built-in one. Raises
    BadInput, naming file and line, for rows that cannot be used, unless the recipe drops them.
    """
    roles, built_in = {}, _built_in_rows(recipe)
    for name in ROLES:
        source = getattr(recipe, name) or next((known for known in built_in if name in built_in[known]), None)
        probe_source = getattr(recipe, f"{name}_probe")
        if source is None and probe_source is None:
            continue
        systems, probe = load_system_prompts(recipe.system_prompts, name), None
        if name in built_in.get(source, {}):
            train, probe = (read_rows([origin_in_memory(source, built_in[source][name](split))],
                                      name.split("_")[1], systems) for split in SPLITS)
        elif source:
            train = read_source(source, name, recipe.bad_rows, systems)
        if probe_source is not None:
            probe = read_source(probe_source, f"{name}_probe", recipe.bad_rows, systems)
        roles[name] = split_role(source or probe_source, train if source else None, probe, recipe, systems)
    return roles


def _built_in_rows(recipe: Recipe) -> dict[str, dict[str, Callable[[str], list[dict]]]]:
    """By what is built in and serves this recipe: for each role a function from a split to its rows.

    Raises BadInput for a `domain` beside data of the user's own for that side.
    """
    free = [name for name in ROLES if not any(
        getattr(recipe, other) for other in ROLES if other.split("_")[0] == name.split("_")[0])]
    domain = [name for name in ROLES if name.startswith("domain") and recipe.domain]
    if own := set(domain) - set(free):
        raise BadInput(f"domain {recipe.domain} and data of your own ({min(own)}): give one of them",
                       field="domain")
    pocket = [name for name in free if name not in domain] if find_start_model(recipe) in FOLDERS else []
    return {describe_libraries(): {name: partial(library_rows, name, size=recipe.library_fields)
                                   for name in domain},
            "pocket": {name: partial(world_rows, name, seed=recipe.pocket_seed,
                                     related=recipe.pocket_related) for name in pocket}}


def split_role(source: str, train: Rows | None, probe: Rows | None, recipe: Recipe, systems: dict) -> Role:
    """Training rows and probe: the probe is given or split off, and no training row is in it."""
    offered = train.about["offered_probe"] if train and probe is None else None
    if train is None:
        train, chosen, probed = probe, np.array([], dtype=int), np.arange(len(probe.table))
    elif probe is None:
        probe = train
        chosen, probed = split_rows(train.names[0], train.groups, recipe.probe_share, source)
    else:
        chosen, probed = np.arange(len(train.table)), np.arange(len(probe.table))
    if len(probed) > recipe.probe_rows:
        probed = probed[np.argsort(probe.names[0, probed], kind="stable")][:recipe.probe_rows]
    weights = np.array([origin.weight for origin in train.origins])[train.lines[0, chosen]]
    # a weight of 2.3 is two times, or three for the rows whose hash lies in the lowest 0.3
    times = np.floor(weights).astype(np.int64) + (train.names[1, chosen] / 2.0**64 < weights % 1)
    leaked = np.isin(train.names[0, chosen], probe.names[0, probed])
    drawn = ~leaked & (times > 0)
    shared = drawn & np.isin(train.groups[chosen], probe.groups[probed]) & (probe is not train)
    role = Role(source, train.table.select(chosen[drawn]), list(probe.table.select(probed)), train,
                chosen[drawn], times[drawn], int(shared.sum()), offered, systems=systems)
    if train.about["bad"]:
        role.dropped["cannot be used"] = {"rows": train.about["bad"],
                                          "examples": train.about["first_bad"][:DROPPED_EXAMPLES]}
    role.drop("also in the probe", chosen[leaked])
    role.drop("left out by its file's weight", chosen[~leaked & (times == 0)])
    return role


def split_rows(names: np.ndarray, groups: np.ndarray, share: float,
               source: str = "data") -> tuple[np.ndarray, np.ndarray]:
    """The numbers of training and of probe rows, by each row's group alone: added rows move no others.

    A group of rows, such as one question's answers, is on one side only, unless all rows are of one group.
    The group of the smallest number is always the probe's, and a probe has no row twice. Raises BadInput for
    fewer than two different rows.
    """
    different, first = np.unique(names, return_index=True)
    if len(different) < 2:
        raise BadInput(f"{source}: {len(different)} different row(s); at least 2 are needed, "
                       "one of them as a probe", where=source)
    groups = groups.view(np.uint64)
    kinds, sizes = np.unique(groups, return_counts=True)
    if len(kinds) < 2:
        groups, kinds, sizes = names, different, np.ones(len(different))
    probed = groups < np.uint64(max(int(share * 2**64), int(kinds[0]) + 1))
    if probed.all():
        probed = groups != kinds[-1]
    if probed.mean() > max(share, LARGEST_PROBE):  # a group that has most of the rows is left to training
        probed = groups == kinds[sizes.argmin()]
    unique = np.zeros(len(names), dtype=bool)
    unique[first] = True
    return np.flatnonzero(~probed), np.flatnonzero(probed & unique)


def role_warnings(name: str, role: Role) -> list[str]:
    """What of a role's data may be meant otherwise than it is used, each with what to do."""
    ratings = [f"`{field}`" for field in role.rows.about["unused"] if RATINGS & set(
        re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", field).lower()))]
    unsplit = [PurePath(name).name for name in role.rows.about.get("unsplit", ())]
    missing = role.rows.about.get("missing", ())
    more, what = role.shared_groups, "document" if name.endswith("_text") else "question"
    slips = [f"`{field}` (as {near!r}?)" for field in role.rows.about["unused"] if f"`{field}`" not in ratings
             for near in difflib.get_close_matches(field.rpartition(".")[2], MARKS, 1, 0.8)]
    cases = {f"{name}: {', '.join(slips)} is not read; correct the name if it marks what is to train": slips,
             f"{name}: {', '.join(ratings)} may say which rows are good, and all of them are trained; keep "
             "the good rows only, or remove the field": ratings,
             f"{name}: {more:,} training rows share a {what} with a row of the probe, whose scores they "
             "raise; take them out of one of the two": more,
             f"{name}: {', '.join(unsplit[:3])}{' and more' * (len(unsplit) > 3)}: trained too, though no "
             "split is in the name, which others have; FOLDER#train leaves such files out": unsplit,
             f"{name}: {len(missing):,} file(s) lack by their numbers ({', '.join(missing[:3])}"
             f"{' and more' * (len(missing) > 3)}); fetch the rest, or rename the files": missing,
             f"{name}: some rows are held out as its probe, while its source has a split for that; give it: "
             f"-p {name}_probe {shlex.quote(role.offered_probe or '')}": role.offered_probe}
    return [text for text, applies in cases.items() if applies]


def check_roles(recipe: Recipe, plans: tuple[StagePlan, ...], roles: dict[str, Role]) -> None:
    """Refuse a mode that draws from a role without data, naming the role and what would serve."""
    for plan in plans:
        for role in plan.shares:
            if role in roles and "also in the probe" in roles[role].dropped and not roles[role].train:
                raise BadInput(f"mode {recipe.mode}, stage {plan.name}: every row of {role} is also in "
                               f"its probe, so none is left to train on; give another {role}_probe",
                               field=f"{role}_probe")
            if role not in roles or not roles[role].train:
                shape = "text" if role.endswith("_text") else "questions and answers"
                raise BadInput(f"mode {recipe.mode}, stage {plan.name}: no data for {role}; "
                               f"give a file or folder of {shape} as {role}, "
                               "or take a mode without it", field=role)


def keep_best_key(recipe: Recipe, roles: dict[str, Role]) -> dict:
    """What decides beside a stage's own settings which of its points is kept, for its key; empty without.

    Which rows are scored while a stage trains depends on all stages, so such a stage is shared between runs
    of equal recipes alone. Raises BadInput for a role without a probe, and with several processes.
    """
    if recipe.keep_best is None:
        return {}
    if recipe.keep_best not in roles:
        raise BadInput(f"keep_best {recipe.keep_best}: there is no probe of this role; there is one of "
                       f"{', '.join(roles)}", field="keep_best")
    if process_count() > 1:
        raise BadInput("keep_best goes with one process; leave it out", field="keep_best")
    values = {name: value for name, value in recipe_to_dict(recipe).items() if name not in FREE_FIELDS}
    return {"keep_best": values, "probe": digest_rows(roles[recipe.keep_best].probe),
            "all_data": {name: role.digest for name, role in roles.items()}}


def load_system_prompts(given: str | None, role: str) -> dict:
    """What gives a role's tasks their system messages: `field`, `types` (text by type) and `default` text.

    `given` is a text for all tasks, or the path of a TOML file with `default`, a text for each role by its
    name, `field` (the row's field that has its type; default `type`) and a table `types`. Raises BadInput.
    """
    if given is None or role.endswith("_text"):
        return {}
    if not given.endswith(".toml"):
        return {"default": given}

    def refuse(why: str, name: str = "system_prompts"):
        raise BadInput(f"system_prompts: {given}: {why}", field=name, where=given) from None

    try:
        values = tomllib.loads(expand_path(given).read_text(encoding="utf-8"))
    except OSError:
        refuse("no such file")
    except ValueError as error:
        refuse(f"not TOML: {error}")
    names = ("default", "field", "types", *(name for name in ROLES if name.endswith("_tasks")))
    for name, value in values.items():
        if name not in names:
            refuse(f"unknown name {name!r}{suggest_name(name, names)}", name)
        if not isinstance(value, dict if name == "types" else str):
            refuse(f"{name} must be {'a table' if name == 'types' else 'text'}", name)
    types = values.get("types", {})
    if not all(isinstance(text, str) for text in types.values()):
        refuse("every entry of types must be text", "types")
    return {"field": values.get("field", "type"), "types": types,
            "default": values.get(role) or values.get("default")}
