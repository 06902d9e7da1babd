"""The modes: named chains of stages from a base or a chat model, as plain data.

The seven of `modes.toml` and a mode of your own have the same shape: `notebooks/own_mode.toml` explains it. A
stage states its kind (`cpt` or `sft`) and the share of each role in its data. Shares are parts of the stage's
tokens, as rows differ too much in length for shares of rows to mean anything; one epoch is one pass over the
stage's first role.
"""

import dataclasses
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..errors import BadInput, file_error
from ..named.models import chat_name
from .recipe import ROLES, Recipe, suggest_name

EXAMPLE = "notebooks/own_mode.toml is an example"
MODE_KEYS, STAGE_KEYS = ("name", "sentence", "start", "stages"), ("name", "kind", "shares")


@dataclass(frozen=True)
class StagePlan:
    """A stage of a mode before any recipe: `shares` are parts of its tokens by role and add up to 1."""

    name: str
    kind: str  # cpt or sft
    shares: dict[str, float]


@dataclass(frozen=True)
class Mode:
    """A chain: where it starts (`base` or `chat`) and its stages in order, with one sentence for people."""

    name: str
    sentence: str
    start: str
    stages: tuple[StagePlan, ...]

    @property
    def roles(self) -> list[str]:
        """The roles that its stages draw from, each once, in order of first use."""
        return list(dict.fromkeys(role for stage in self.stages for role in stage.shares))


def _require(holds: object, where: str, field: str, problem: str) -> None:
    if not holds:
        raise file_error(where, problem, field)


def _refuse_unknown(values: dict, known: tuple[str, ...], where: str) -> None:
    """Refuse a key that nothing reads: a rate of a stage, say, is the recipe's."""
    for key in values:
        _require(key in known, where, key, f"unknown key {key!r}{suggest_name(key, known)}; here belong "
                                           f"{', '.join(known)}, and all else in the recipe")


def _parse_mode(values: dict, where: str) -> Mode:
    """The mode of a TOML table; raises BadInput, naming the file, the stage and the key."""
    _refuse_unknown(values, MODE_KEYS, where)
    for key in MODE_KEYS:
        _require(values.get(key), where, key, f"the mode lacks {key!r}; {EXAMPLE}")
    start, tables, stages = values["start"], values["stages"], {}
    _require(start in ("base", "chat"), where, "start", f"start must be 'base' or 'chat', not {start!r}")
    _require(isinstance(tables, list) and all(isinstance(table, dict) for table in tables), where, "stages",
             "stages must be a list of tables; write [[stages]] above each stage")
    for number, table in enumerate(tables, 1):
        stage = _parse_stage(table, f"{where}: stage {number}", stages)
        stages[stage.name] = stage
    return Mode(values["name"], values["sentence"], start, tuple(stages.values()))


def _parse_stage(values: dict, where: str, earlier: dict[str, StagePlan]) -> StagePlan:
    """A stage of a mode; raises BadInput for a name that is taken, an unknown kind or role, no share."""
    _refuse_unknown(values, STAGE_KEYS, where)
    name, kind, shares = values.get("name", ""), values.get("kind"), values.get("shares")
    _require(isinstance(name, str) and name.isidentifier() and name not in earlier, where, "name",
             f"name must be a plain word of its own (letters, digits, _), not {name!r}")
    _require(kind in ("cpt", "sft"), where, "kind", f"kind must be 'cpt' or 'sft', not {kind!r}")
    _require(isinstance(shares, dict) and shares, where, "shares",
             "shares must name at least one role, as { domain_text = 1.0 }")
    for role, share in shares.items():
        _require(role in ROLES, where, role,
                 f"unknown role {role!r}{suggest_name(role, ROLES)}; roles are {', '.join(ROLES)}")
        _require(type(share) in (int, float) and 0 < share < float("inf"), where, role,
                 f"the share of {role} must be a number above 0, not {share!r}")
    total = sum(shares.values())
    return StagePlan(name, kind, {role: share / total for role, share in shares.items()})


def _read_toml(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise file_error(path, f"no such mode file; {EXAMPLE}", "mode") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise file_error(path, f"not a TOML file: {error}", "mode") from None


_FILE = Path(__file__).with_suffix(".toml")
MODES = {number: _parse_mode(values, f"{_FILE}: mode {number}")
         for number, values in _read_toml(_FILE).items()}


def load_mode(mode: str) -> Mode:
    """The mode of this number or name, or of this TOML file; raises BadInput with the nearest name."""
    mode = str(mode)
    known = MODES | {entry.name: entry for entry in MODES.values()}
    if mode in known:
        return known[mode]
    if mode.endswith(".toml"):
        path = Path(mode).expanduser()
        return _parse_mode(_read_toml(path), str(path))
    near = "" if mode.isdigit() else suggest_name(mode, known)  # 12 is not a slip for 2
    raise BadInput(f"unknown mode {mode!r}{near}; give 1 to 7, or the path of a .toml file", field="mode")


def recipe_stages(recipe: Recipe, mode: Mode | None = None) -> tuple[StagePlan, ...]:
    """The stages of the recipe's mode with its two mixing knobs applied.

    `task_share` is the part of tasks in a CPT stage that mixes them in, `general_share` the part of general
    tasks among all tasks of a stage that holds both kinds.
    """
    return tuple(dataclasses.replace(stage, shares=_mixed_shares(stage, recipe))
                 for stage in (mode or load_mode(recipe.mode)).stages)


def _mixed_shares(stage: StagePlan, recipe: Recipe) -> dict[str, float]:
    shares, wanted = stage.shares, recipe.task_share
    tasks = {role for role in shares if role.endswith("_tasks")}
    total = sum(shares[role] for role in tasks)
    if wanted is not None and stage.kind == "cpt" and tasks and tasks < shares.keys():
        shares = {role: share * (wanted / total if role in tasks else (1 - wanted) / (1 - total))
                  for role, share in shares.items()}
        total = wanted
    if recipe.general_share is not None and len(tasks) == 2:
        shares = shares | {"domain_tasks": total * (1 - recipe.general_share),
                           "general_tasks": total * recipe.general_share}
    return {role: round(share, 6) for role, share in shares.items() if share > 0}


def format_chain(mode: Mode) -> str:
    """The chain as a line of text: its start, and each stage with the roles it draws from."""
    boxes = [mode.start]
    for stage in mode.stages:
        shares = " + ".join(f"{share:.0%} " * (share < 1) + role.replace("_", " ")
                            for role, share in stage.shares.items())
        boxes.append(f"{stage.kind.upper()} {shares}")
    return "  ->  ".join(f"[ {box} ]" for box in boxes)


def find_start_model(recipe: Recipe, mode: Mode | None = None) -> str:
    """The model the mode starts from; raises BadInput where a chat model is needed and none is named."""
    if (mode or load_mode(recipe.mode)).start == "base":
        return recipe.model
    if recipe.chat_model:
        return recipe.chat_model
    if recipe.model in ("pocket", "pocket-chat"):
        return "pocket-chat"
    if chat := chat_name(recipe.model):
        return chat
    raise BadInput(f"mode {recipe.mode} starts from a chat model: name one as chat_model "
                   f"(model is {recipe.model!r})", field="chat_model")


def check_method_chain(recipe: Recipe) -> None:
    """Refuse a chain in which a prefix would have to be handed to another method."""
    methods = {"cpt": recipe.cpt_method or recipe.method, "sft": recipe.method}
    chain = [(stage.name, methods[stage.kind]) for stage in load_mode(recipe.mode).stages]
    for (name, method), (later_name, later) in pairwise(chain):
        if method == "ptuning_v2" != later:
            raise BadInput(f"stage {name} trains a prefix (ptuning_v2), which cannot be merged into the "
                           f"weights, so stage {later_name} cannot go on with {later}; take ptuning_v2 for "
                           f"both, or another method for {name}", field="method")
